"""Index: whatever lies in the image column, every row is indexed or dead, and not both."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from poisoncam_ray import artifact
from poisoncam_ray.artifact import SLICES
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.corpus.slices import slice_table
from poisoncam_ray.errors import LedgerError, UserError
from poisoncam_ray.folder import Folder, Ledger, Manifest, part_name
from poisoncam_ray.progress import Progress
from poisoncam_ray.runner import Runner
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.index import ENOUGH, Index, index_slice, refuse_mostly_dead, refuse_other_cut
from poisoncam_ray.stages.pixels import fetch_images, read_slice

CONFIG = load_config(
    overrides=["corpus.rows_per_slice=5", "corpus.max_pixels=10000", "encoder.image_size=16"]
)


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
    "elsewhere": (None, "not_embedded"),
    "no bytes": (b"", "empty"),
    "text": (b"<html>404</html>", "undecodable"),
    "jpeg 2000": (encode(picture(), "JPEG2000"), "undecodable"),
    "cut": (encode(picture(size=(90, 90)), "JPEG")[:900], "truncated"),
    "cut png": (encode(picture(size=(90, 90)))[:-40], "truncated"),
    "header only": (encode(picture(), "JPEG")[:4], "truncated"),
    "zero size": (png_header(0, 5), "zero_size"),
    "bomb": (png_header(60_000, 60_000), "bomb"),
    "a little too large": (encode(Image.new("L", (101, 100))), "bomb"),
    "lying header": (png_header(50, 50), "truncated"),
}


WITHOUT = {"null": None, "null bytes": {"bytes": None, "path": None}, "no path": {"bytes": None, "path": ""}}
"""Cells without an image."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Rows of all kinds in turns, over two shards and one empty one; the user's own key repeats."""
    folder = tmp_path_factory.mktemp("index") / "corpus"
    folder.mkdir()
    images = {**ALIVE, **{name: data for name, (data, _) in DEAD.items()}}
    cells = {name: {"bytes": data, "path": "same.jpg"} for name, data in images.items()} | WITHOUT
    names = sorted(cells, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for shard, chosen in enumerate((names[:9], [], names[9:])):
        table = pa.table(
            {
                "image": pa.array([cells[name] for name in chosen], kind),
                "key": pa.array(["same"] * len(chosen)),
                "name": pa.array(chosen, pa.string()),
            }
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


def test_every_row_is_in_one_place_and_the_ledger_says_so(indexed, corpus):
    names, index = names_by_id(corpus), indexed / artifact.INDEX
    places = (index, indexed / artifact.DEAD_ROWS, index / artifact.NO_IMAGE)
    alive, dead, without = ([row["image_id"] for row in rows_of(place)] for place in places)
    assert sorted(alive + dead + without) == sorted(names)
    assert {names[i] for i in alive} == set(ALIVE) and {names[i] for i in without} == set(WITHOUT)
    manifest = Manifest.read(index)
    assert manifest.ledger == Ledger(len(names), len(ALIVE), dead=len(DEAD), no_image=len(WITHOUT))
    assert manifest.ledger.balanced and "3 rows without an image" in manifest.facts["summary"]


def test_a_dead_row_says_where_it_lies_and_why(indexed, corpus):
    names = names_by_id(corpus)
    for row in rows_of(indexed / artifact.DEAD_ROWS):
        assert row["error"] == DEAD[names[row["image_id"]]][1], names[row["image_id"]]
        assert row["message"] and row["stage"] == Index.title
        assert f"{row['source']}#{row['row']}" == row["image_id"]


def test_the_index_describes_the_stored_bytes(indexed, corpus):
    names = names_by_id(corpus)
    for row in rows_of(indexed / artifact.INDEX):
        data = ALIVE[names[row["image_id"]]]
        assert row["sha256"] == hashlib.sha256(data).hexdigest() and row["bytes"] == len(data)
        assert (row["width"], row["height"]) == Image.open(io.BytesIO(data)).size
    index = indexed / artifact.INDEX
    assert index.read_table(SLICES)["rows"].to_pylist() == [index.rows(name) for name in index.parts()]


def test_equal_images_under_equal_keys_stay_two_rows(indexed, corpus):
    names = names_by_id(corpus)
    twins = [row for row in rows_of(indexed / artifact.INDEX) if names[row["image_id"]].startswith("twice")]
    assert len(twins) == 2 and twins[0]["sha256"] == twins[1]["sha256"]


def test_what_is_indexed_can_be_read_by_slice_and_by_id(indexed, corpus):
    opened = open_corpus(str(corpus), rows_per_slice=5)
    for slice_ in opened.slices():
        ids, x_NCHW = read_slice(opened, CONFIG, indexed / artifact.INDEX, slice_)
        assert x_NCHW.shape == (len(ids), 3, 16, 16) and x_NCHW.dtype == np.uint8
        assert np.array_equal(fetch_images(opened, CONFIG, ids[::-1]), x_NCHW[::-1])


def test_a_file_of_a_folder_that_was_replaced_is_not_taken_for_what_was_indexed(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, colour in (("a", 10), ("b", 20)):
        Image.new("RGB", (20, 20), (colour, 0, 0)).save(corpus / f"{name}.png")
    opened, index = open_corpus(str(corpus)), Folder(str(tmp_path / "index"))
    (slice_,) = opened.slices()
    index_slice(slice_, opened, CONFIG, index, Folder(str(tmp_path / "dead")))
    assert read_slice(opened, CONFIG, index, slice_)[0] == ["a.png", "b.png"]
    Image.new("RGB", (20, 20), (0, 30, 0)).save(corpus / "b.png")
    with pytest.raises(LedgerError, match=r"b\.png changed since it was indexed"):
        read_slice(opened, CONFIG, index, slice_)


def test_a_slice_indexed_again_gives_the_same_files(corpus, tmp_path):
    opened = open_corpus(str(corpus), rows_per_slice=5)
    out, dead = Folder(str(tmp_path / "out")), Folder(str(tmp_path / "dead"))
    for _ in range(2):
        counts = [index_slice(slice_, opened, CONFIG, out, dead) for slice_ in opened.slices()]
        files = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    sums = [sum(count[kind] for count in counts) for kind in ("alive", "dead", "no_image")]
    assert sums == [len(ALIVE), len(DEAD), len(WITHOUT)]
    assert len(out.parts()) == len(counts)


def test_a_corpus_without_one_image_that_decodes_is_a_mistake(ray_cluster, tmp_path):
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.table({"image": [b"no", b"image"]}), tmp_path / "corpus" / "a.parquet")
    runner = Runner(str(tmp_path / "corpus"), str(tmp_path / "run"), CONFIG, [Index()])
    with pytest.raises(UserError, match=r"None of the 2 rows .*/dead for"):
        runner.run(Progress())


@pytest.mark.parametrize("kind", [pa.binary(), pa.struct([("bytes", pa.binary()), ("path", pa.string())])])
def test_a_corpus_of_null_images_is_a_mistake(ray_cluster, tmp_path, kind):
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.table({"image": pa.nulls(3, kind)}), tmp_path / "corpus" / "a.parquet")
    runner = Runner(str(tmp_path / "corpus"), str(tmp_path / "run"), CONFIG, [Index()])
    with pytest.raises(UserError, match=r"None of the 3 rows .* holds an image, all are null: give a corpus"):
        runner.run(Progress())


def test_null_images_do_not_count_for_the_share_of_dead_rows(ray_cluster, tmp_path):
    """As img2dataset writes failed downloads to Parquet."""
    (tmp_path / "corpus").mkdir()
    cells = [ALIVE["twice"]] * 3 + [None] * 40 + [b"no image"]
    pq.write_table(pa.table({"jpg": pa.array(cells, pa.binary())}), tmp_path / "corpus" / "a.parquet")
    config = load_config(overrides=["encoder.image_size=16", "corpus.max_dead_fraction=0.25"])
    for _ in range(2):  # again, from what lies there
        Runner(str(tmp_path / "corpus"), str(tmp_path / "run"), config, [Index()]).run(Progress())
        index = Folder(str(tmp_path / "run" / artifact.INDEX))
        assert Manifest.read(index).ledger == Ledger(44, 3, dead=1, no_image=40)
        index.delete("_manifest.json")


def dead_parts(folder: Path, parts: list[list[str]]) -> Folder:
    for i, kinds in enumerate(parts):
        rows = [{"image_id": f"{i}#{j}", "error": kind} for j, kind in enumerate(kinds)]
        Folder(str(folder)).write_table(f"part-{i:06d}.parquet", pa.Table.from_pylist(rows))
    return Folder(str(folder))


@pytest.mark.parametrize(
    ("alive", "died", "limit", "enough", "refused"),
    [
        (0, 999, 0.0, ENOUGH, False),
        (0, 1000, 0.99, ENOUGH, True),
        (0, 1000, 1.0, ENOUGH, False),
        (500, 500, 0.5, ENOUGH, False),
        (499, 501, 0.5, ENOUGH, True),
        (10**9, 1, 0.0, ENOUGH, True),
        (2, 1, 0.3, 1, True),
        (0, 0, 0.0, 1, False),
    ],
)
def test_a_corpus_is_refused_by_the_share_of_rows_that_died(tmp_path, alive, died, limit, enough, refused):
    folder = dead_parts(tmp_path, [["bomb"]])
    if not refused:
        refuse_mostly_dead(alive, died, limit, folder, enough)
        return
    with pytest.raises(UserError, match=f"{died:,} of the {alive + died:,} rows"):
        refuse_mostly_dead(alive, died, limit, folder, enough)


def test_the_refusal_names_the_commonest_kinds_the_place_and_the_way_on(tmp_path):
    folder = dead_parts(tmp_path, [["bomb", "empty", "empty"], ["truncated", "truncated", "empty"]])
    with pytest.raises(UserError) as caught:
        refuse_mostly_dead(2, 6, 0.25, folder, enough=1)
    said = str(caught.value)
    assert "6 of the 8 rows read are broken (3 empty, 2 truncated, 1 bomb; " in said and folder.uri in said
    assert "--max-dead-fraction=0.25 allows: the same command with a higher one goes on" in said


def test_a_mostly_broken_corpus_stops_early_and_a_higher_limit_goes_on(ray_cluster, tmp_path):
    (tmp_path / "corpus").mkdir()
    cells = [b"no image"] * 1990 + [ALIVE["twice"]] * 20
    pq.write_table(pa.table({"image": cells}), tmp_path / "corpus" / "a.parquet")
    settings = ["corpus.rows_per_slice=50", "encoder.image_size=16"]

    def run(limit: float) -> Manifest:
        config = load_config(overrides=[*settings, f"corpus.max_dead_fraction={limit}"])
        Runner(str(tmp_path / "corpus"), str(tmp_path / "run"), config, [Index()]).run(Progress())
        return Manifest.read(Folder(str(tmp_path / "run")) / artifact.INDEX)

    with pytest.raises(UserError, match=r"of the 1,0[0-9]{2} rows read are broken .*undecodable"):
        run(0.5)
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / artifact.INDEX).glob("part-*")}
    assert done
    # Reused slices count: the same limit stops before anything is read.
    with pytest.raises(UserError, match="rows read are broken"):
        run(0.5)
    manifest = run(1.0)
    assert manifest.ledger == Ledger(2010, 20, dead=1990)
    assert manifest.facts["slices_reused"] >= len(done)
    assert {p: p.stat().st_mtime_ns for p in done} == done


def test_a_corpus_that_is_cut_otherwise_than_before_is_refused(tmp_path, corpus):
    opened = open_corpus(str(corpus), rows_per_slice=5)
    index, slices = Folder(str(tmp_path / "index")), opened.slices()
    refuse_other_cut(index, slices)
    index.write_table(SLICES, slice_table(slices))
    refuse_other_cut(index, slices)
    lost = replace(slices[0], start=0, stop=1, error="no footer")
    for other in (slices[1:], [lost, *slices[1:]]):
        with pytest.raises(UserError, match="use a new output folder"):
            refuse_other_cut(index, other)
    index.write_table(SLICES, slice_table([lost, *slices[1:]]))
    refuse_other_cut(index, [replace(lost, error="no footer, in other words"), *slices[1:]])


def test_dead_rows_of_a_try_that_did_not_end_go_when_nothing_is_dead(tmp_path, corpus):
    """A task was killed between both files, and its second try decodes more: no row may be in both."""
    opened = open_corpus(str(corpus), rows_per_slice=1)
    out, dead = Folder(str(tmp_path / "out")), Folder(str(tmp_path / "dead"))
    alive = next(p for p in opened.slices() if index_slice(p, opened, CONFIG, out, dead)["alive"])
    name = part_name(alive.index)
    for others in (dead, out / artifact.NO_IMAGE):
        others.write_table(name, pa.table({"image_id": ["a row that lives now"]}))
    index_slice(alive, opened, CONFIG, out, dead)
    assert not dead.exists(name) and not (out / artifact.NO_IMAGE).exists(name) and out.rows(name) == 1


def test_a_shard_that_breaks_in_the_middle_costs_its_own_rows(ray_cluster, corpus, tmp_path):
    """Its footer is whole, so only the task that reads its pages can know."""
    (tmp_path / "corpus").mkdir()
    data = bytearray((corpus / "2.parquet").read_bytes())
    data[4:400] = bytes(396)
    (tmp_path / "corpus" / "a.parquet").write_bytes(data)
    (tmp_path / "corpus" / "b.parquet").write_bytes((corpus / "0.parquet").read_bytes())
    config = load_config(overrides=["encoder.image_size=16", "corpus.max_dead_fraction=1"])
    Runner(str(tmp_path / "corpus"), str(tmp_path / "run"), config, [Index()]).run(Progress())
    index, dead = (
        Folder(str(tmp_path / "run" / artifact.INDEX)),
        Folder(str(tmp_path / "run" / artifact.DEAD_ROWS)),
    )
    rows = len(ALIVE) + len(DEAD) + len(WITHOUT)
    alive, died, without = rows_of(index), rows_of(dead), rows_of(index / artifact.NO_IMAGE)
    assert Manifest.read(index).ledger == Ledger(rows, len(alive), dead=len(died), no_image=len(without))
    assert alive and {row["source"] for row in alive} == {"b.parquet"}
    assert {row["error"] for row in died if row["source"] == "a.parquet"} == {"unreadable"}


def test_copies_are_part_of_what_was_made_and_go_when_the_index_is_done_again(ray_cluster, corpus, tmp_path):
    shrinking = load_config(
        overrides=["corpus.rows_per_slice=5", "corpus.max_pixels=10000", "encoder.image_size=16",
                   "corpus.shrink_to=32"]
    )  # fmt: skip
    given = str(corpus), str(tmp_path / "run")
    (done,) = Runner(*given, shrinking, [Index()]).run(Progress())
    index = Folder(str(tmp_path / "run")) / artifact.INDEX
    copies = index / artifact.SHRUNK
    assert done.manifest.facts["copies_bytes"] == copies.total_bytes() > 0
    assert sum(copies.rows(name) for name in copies.parts()) == len(ALIVE)
    with pytest.raises(UserError, match=r"corpus\.shrink_to: 32 then, None now"):
        Runner(*given, CONFIG, [Index()])
    (done,) = Runner(*given, CONFIG, [Index()], redo="index").run(Progress())
    assert done.manifest.facts["copies_bytes"] is None and not copies.names()
