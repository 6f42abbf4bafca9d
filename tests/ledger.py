"""Broken corpora, and where each of their rows goes in a defence without a cluster."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from poisoncam_ray import artifact
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.corpus import Corpus, Slice
from poisoncam_ray.folder import Folder, part_name
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.clean import write_unit
from poisoncam_ray.stages.index import index_slice
from tests.tars import image, special, tar_bytes

CONFIG = load_config(overrides=["encoder.image_size=16"])
N, GROUP = 40, 10


def table(n: int = N, first: int = 0) -> pa.Table:
    rows = range(first, first + n)
    return pa.table(
        {
            "image": pa.array([{"bytes": image(i), "path": f"{i}.png"} for i in rows]),
            "caption": [f"{i} {'word ' * 40}" for i in rows],
            "number": list(rows),
        }
    )


def write_parquet(path: Path, first: int = 0, compression: str = "zstd") -> None:
    options = {"row_group_size": GROUP, "compression": compression, "use_dictionary": False}
    pq.write_table(table(first=first), path, **options)


def spoil(path: Path, group: int, column: int, share: float = 0.5) -> None:
    """Overwrite the end of a column chunk, so that its pages cannot be read."""
    chunk = pq.ParquetFile(path).metadata.row_group(group).column(column)
    data, size = bytearray(path.read_bytes()), chunk.total_compressed_size
    start = chunk.data_page_offset + int(size * share)
    stop = chunk.data_page_offset + size
    data[start:stop] = b"\xff" * (stop - start)
    path.write_bytes(data)


class Ends(NamedTuple):
    """Where the rows of a corpus went.

    Attributes:
        kept: ids of the kept rows.
        removed: ids of the removed rows.
        errors: the kind of each dead row, by its id.
    """

    kept: list[str]
    removed: list[str]
    errors: dict[str, str]


def defend(corpus: Corpus, run: Folder, copies: bool = True, slices: list[Slice] | None = None) -> Ends:
    """Index and Clean without a cluster. Of each slice every third row that is alive is removed.

    Args:
        corpus: the corpus.
        run: the run folder.
        copies: whether the kept rows are written and not listed.
        slices: those of a sample; None for all.
    """
    index, dead = run / artifact.INDEX, run / artifact.DEAD_ROWS
    ends, slices = Ends([], [], {}), slices or corpus.slices()
    for slice_ in slices:
        index_slice(slice_, corpus, CONFIG, index, dead)
        name = part_name(slice_.index)
        ids = index.read_table(name)["image_id"].to_pylist()
        fates = [artifact.REMOVE if i % 3 == 1 else artifact.KEEP for i in range(len(ids))]
        for image_id, fate in zip(ids, fates, strict=True):
            (ends.removed if fate == artifact.REMOVE else ends.kept).append(image_id)
        n = len(ids)
        columns = {
            "image_id": pa.array(ids, pa.string()),
            "p_poison": np.full(n, 0.5, np.float32),
            "fate": pa.array(fates, pa.string()),
            "family": pa.array([0] * n, pa.int32()),
            **{side: pa.array([1] * n, pa.int32()) for side in SIDES},
        }
        (run / artifact.SCORES).write_table(name, pa.table(columns, schema=artifact.SCORE_SCHEMA))
    without = [
        image_id
        for name in (index / artifact.NO_IMAGE).parts()
        for image_id in (index / artifact.NO_IMAGE).read_table(name)["image_id"].to_pylist()
    ]
    ends.kept.extend(without)
    for name in dead.parts():
        rows = dead.read_table(name).to_pylist()
        ends.errors.update({row["image_id"]: row["error"] for row in rows})
    counts: Counter[str] = Counter()
    for number, unit in enumerate(corpus.units(slices)):
        write_unit(number, unit, corpus, run, copies)
        counts.update((run / artifact.CLEAN).read_json(artifact.unit_name(number)))
    assert counts.pop("no_image") == len(without)
    assert counts == {"kept": len(ends.kept), "removed": len(ends.removed), "dead": len(ends.errors)}
    announced = sum(slice_.stop - slice_.start for slice_ in slices)
    assert announced == len({*ends.kept, *ends.removed, *ends.errors}) == counts.total()
    return ends


def write_mixed_parquet(folder: Path) -> dict[str, pa.Table]:
    """Good and broken shards, and what they held before they broke."""
    folder.mkdir()
    for i, name in enumerate(("a", "cut", "caption", "picture", "z")):
        write_parquet(folder / f"{name}.parquet", 100 * i)
    whole = {path.name: pq.read_table(path) for path in folder.iterdir()}
    (folder / "cut.parquet").write_bytes((folder / "cut.parquet").read_bytes()[:-9])
    (folder / "empty.parquet").write_bytes(b"")
    pq.write_table(pa.table({"other": [1, 2]}), folder / "other.parquet")
    spoil(folder / "caption.parquet", group=1, column=2)
    spoil(folder / "picture.parquet", group=0, column=0)
    spoil(folder / "picture.parquet", group=2, column=0)
    return whole


def samples(first: int, n: int = 12) -> list[tuple[str, bytes]]:
    pairs = ((f"{i:03d}.png", f"{i:03d}.txt") for i in range(first, first + n))
    return [m for png, txt in pairs for m in ((png, image(int(png[:3]))), (txt, txt.encode() * 90))]


def write_mixed_tars(folder: Path) -> None:
    folder.mkdir()
    good, cut, twins = samples(0), samples(100), samples(200)
    (folder / "good.tar").write_bytes(tar_bytes(good))
    at = len(tar_bytes(cut[:15]).rstrip(b"\0")) - 3
    (folder / "cut.tar").write_bytes(tar_bytes(cut)[:at])
    (folder / "twins.tar").write_bytes(tar_bytes([*twins, ("204.cls", b"0")], tarfile.GNU_FORMAT))
    evil = [special("303.png", tarfile.SYMTYPE, "../x"), ("304.png", b"broken"), ("305.txt", b"")]
    odd = [m if isinstance(m, tuple) else (m, b"") for m in evil]
    (folder / "odd.tar").write_bytes(tar_bytes(samples(300, 3) + odd + samples(306, 3)))
    (folder / "text.tar").write_bytes(b"not a tar" * 200)
