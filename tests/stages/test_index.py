"""Index: whatever lies in the image column, every row ends alive or in the dead letter, once."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from poisoncam_ray.artifact import Folder, Ledger, Manifest
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.pipeline import Runner
from poisoncam_ray.progress import Progress
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.dataflow import fetch_images, read_slice
from poisoncam_ray.stages.index import Index, index_slice

CONFIG = load_config(overrides=["index.rows_per_slice=5", "index.max_pixels=10000", "encoder.image_size=16"])


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (20, 12)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that nothing backs."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


ALIVE = {
    "jpeg": encode(picture(), "JPEG"),
    "cmyk": encode(picture("CMYK"), "JPEG"),
    "grey": encode(picture("L"), "JPEG"),
    "16 bit": encode(Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160)),
    "palette": encode(picture("P")),
    "alpha": encode(picture("RGBA")),
    "grey alpha": encode(picture("LA")),
    "bilevel": encode(picture("1")),
    "animated": encode(picture(), "WEBP", save_all=True, append_images=[picture("L").convert("RGB")]),
    "one pixel": encode(picture(size=(1, 1))),
    "sliver": encode(picture(size=(1, 900))),
    "twice": encode(picture(size=(9, 9))),
    "twice again": encode(picture(size=(9, 9))),
}
DEAD = {
    "null": (None, "empty"),
    "no bytes": (b"", "empty"),
    "text": (b"<html>404</html>", "undecodable"),
    "gif": (encode(picture("P"), "GIF"), "undecodable"),
    "cut": (encode(picture(size=(90, 90)), "JPEG")[:900], "truncated"),
    "cut png": (encode(picture(size=(90, 90)))[:-40], "truncated"),
    "header only": (encode(picture(), "JPEG")[:4], "truncated"),
    "zero size": (png_header(0, 5), "zero_size"),
    "bomb": (png_header(60_000, 60_000), "bomb"),
    "a little too large": (encode(Image.new("L", (101, 100))), "bomb"),
    "lying header": (png_header(50, 50), "truncated"),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Alive and dead rows in turns, over two shards and one empty one; the user's own key repeats."""
    folder = tmp_path_factory.mktemp("index") / "corpus"
    folder.mkdir()
    cells = {**ALIVE, **{name: data for name, (data, _) in DEAD.items()}}
    names = sorted(cells, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for shard, chosen in enumerate((names[:9], [], names[9:])):
        images = pa.array([{"bytes": cells[name], "path": "same.jpg"} for name in chosen], kind)
        table = pa.table(
            {"image": images, "key": pa.array(["same"] * len(chosen)), "name": pa.array(chosen, pa.string())}
        )
        pq.write_table(table, folder / f"{shard}.parquet")
    return folder


def names_by_id(corpus: Path) -> dict[str, str]:
    tables = {path.name: pq.read_table(path) for path in sorted(corpus.glob("*.parquet"))}
    return {f"{file}#{i}": name for file, t in tables.items() for i, name in enumerate(t["name"].to_pylist())}


def rows_of(folder: Folder) -> list[dict]:
    return [row for name in folder.parts() for row in folder.read_table(name).to_pylist()]


@pytest.fixture(scope="module")
def indexed(ray_cluster, corpus, tmp_path_factory) -> Folder:
    run = tmp_path_factory.mktemp("run")
    Runner(str(corpus), str(run), CONFIG, [Index()]).run(Progress())
    return Folder(str(run))


def test_every_row_is_alive_or_dead_and_the_ledger_says_so(indexed, corpus):
    names = names_by_id(corpus)
    alive = [row["image_id"] for row in rows_of(indexed / "00_index")]
    dead = [row["image_id"] for row in rows_of(indexed / "dead" / "00_index")]
    assert sorted(alive + dead) == sorted(names) and len(names) == len(ALIVE) + len(DEAD)
    assert {names[i] for i in alive} == set(ALIVE)
    assert Manifest.read(indexed / "00_index").ledger == Ledger(len(names), len(ALIVE), dead=len(DEAD))


def test_the_dead_letter_says_where_and_why(indexed, corpus):
    names = names_by_id(corpus)
    for row in rows_of(indexed / "dead" / "00_index"):
        assert row["error"] == DEAD[names[row["image_id"]]][1], names[row["image_id"]]
        assert row["message"] and row["stage"] == "00_index"
        assert f"{row['source']}#{row['row']}" == row["image_id"]


def test_the_index_describes_the_stored_bytes(indexed, corpus):
    names = names_by_id(corpus)
    for row in rows_of(indexed / "00_index"):
        data = ALIVE[names[row["image_id"]]]
        assert row["sha256"] == hashlib.sha256(data).hexdigest() and row["bytes"] == len(data)
        assert (row["width"], row["height"]) == Image.open(io.BytesIO(data)).size
    assert (indexed / "00_index").read_json("rows.json") == [
        (indexed / "00_index").rows(name) for name in (indexed / "00_index").parts()
    ]


def test_equal_images_under_equal_keys_stay_two_rows(indexed, corpus):
    names = names_by_id(corpus)
    twins = [row for row in rows_of(indexed / "00_index") if names[row["image_id"]].startswith("twice")]
    assert len(twins) == 2 and twins[0]["sha256"] == twins[1]["sha256"]


def test_what_is_indexed_can_be_read_by_slice_and_by_id(indexed, corpus):
    opened = open_corpus(str(corpus), rows_per_slice=5)
    for piece in opened.slices():
        ids, x_NCHW = read_slice(opened, CONFIG, indexed / "00_index", piece)
        assert x_NCHW.shape == (len(ids), 3, 16, 16) and x_NCHW.dtype == np.uint8
        assert np.array_equal(fetch_images(opened, CONFIG, ids[::-1]), x_NCHW[::-1])


def test_a_slice_indexed_again_gives_the_same_files(corpus, tmp_path):
    opened = open_corpus(str(corpus), rows_per_slice=5)
    out, dead = Folder(str(tmp_path / "out")), Folder(str(tmp_path / "dead"))
    for _ in range(2):
        counts = [index_slice(piece, opened, CONFIG, out, dead) for piece in opened.slices()]
        files = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    assert sum(c["alive"] for c in counts) == len(ALIVE) and sum(c["dead"] for c in counts) == len(DEAD)
    assert len(out.parts()) == len(counts)


def test_a_corpus_without_one_image_that_decodes_is_told(ray_cluster, tmp_path):
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.table({"image": [b"no", b"image"]}), tmp_path / "corpus" / "a.parquet")
    runner = Runner(str(tmp_path / "corpus"), str(tmp_path / "run"), CONFIG, [Index()])
    with pytest.raises(UserError, match=r"None of the 2 rows .*/dead/"):
        runner.run(Progress())


def test_a_shard_that_breaks_in_the_middle_is_told_in_one_sentence(ray_cluster, corpus, tmp_path):
    """Its footer is whole, so only the task that reads its pages can know."""
    (tmp_path / "corpus").mkdir()
    data = bytearray((corpus / "2.parquet").read_bytes())
    data[4:400] = bytes(396)
    (tmp_path / "corpus" / "a.parquet").write_bytes(data)
    runner = Runner(str(tmp_path / "corpus"), str(tmp_path / "run"), CONFIG, [Index()])
    with pytest.raises(UserError) as caught:
        runner.run(Progress())
    assert "Parquet shard a.parquet cannot be read" in str(caught.value)
    assert "\n" not in str(caught.value)
