"""What `Corpus` promises holds for every format, on a disk, on another store and on S3.

What a corpus holds and what was written is read back here by pyarrow and tarfile, not by the code under test.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from poisoncam_ray.corpus import DEAD, KEPT, REMOVED, Corpus, Slice, Source, open_corpus
from poisoncam_ray.corpus.webdataset import WebDatasetCorpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.store import connect
from tests.tars import image, rows_of, tar_bytes

FIRST, SECOND = 14, 11
"""Rows of the two files, or folders, that hold any."""
N = FIRST + SECOND
Stored = tuple[str, bytes, Any]
"""A row as it lies in a corpus: the path of its file, the image, and all else that belongs to it."""


@dataclass(frozen=True)
class Format:
    """A format under test.

    Attributes:
        write: writes a corpus of N images into a folder.
        rows_in: the rows in the bytes of one file, each as (image, all else).
        broken: the file that `spoil` makes unreadable.
        lost: rows that are lost with it, of N.
        beside: names of files that belong to no row.
    """

    write: Callable[[Path], None]
    rows_in: Callable[[bytes], list[tuple[bytes, Any]]]
    broken: str
    lost: int
    beside: tuple[str, ...] = ("captions.txt",)


def shards(suffix: str, encode: Callable[[range], bytes]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        rows = {"train/a": range(FIRST), "train/b": range(0), "val": range(FIRST, N)}
        for stem, numbers in rows.items():
            path = folder / f"{stem}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(numbers))

    return write


def encode_parquet(nested: bool) -> Callable[[range], bytes]:
    def encode(numbers: range) -> bytes:
        cells = [{"bytes": image(i), "path": f"{i}.png"} if nested else image(i) for i in numbers]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if nested else pa.binary()
        table = pa.table(
            {
                "key": pa.array(["same"] * len(numbers), pa.string()),
                "picture": pa.array(cells, kind),
                "number": pa.array(numbers, pa.int64()),
            }
        )
        sink = io.BytesIO()
        pq.write_table(table, sink, row_group_size=6)
        return sink.getvalue()

    return encode


def parquet_rows(data: bytes) -> list[tuple[bytes, Any]]:
    rows = pq.read_table(pa.BufferReader(data)).to_pylist()
    cells = [row.pop("picture") for row in rows]
    return [
        (cell.pop("bytes"), (row, cell)) if isinstance(cell, dict) else (cell, row)
        for row, cell in zip(rows, cells, strict=True)
    ]


def encode_arrow(numbers: range) -> bytes:
    table = pq.read_table(pa.BufferReader(encode_parquet(True)(numbers)))
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema.with_metadata({"huggingface": "{}"})) as stream:
        for first in range(0, len(table), 6):
            stream.write_table(table.slice(first, 6))
    return sink.getvalue()


def arrow_rows(data: bytes) -> list[tuple[bytes, Any]]:
    with pa.ipc.open_stream(data) as stream:
        assert stream.schema.metadata == {b"huggingface": b"{}"}
        rows = stream.read_all().to_pylist()
    cells = [row.pop("picture") for row in rows]
    return [(cell.pop("bytes"), (row, cell)) for row, cell in zip(rows, cells, strict=True)]


def write_saved(folder: Path) -> None:
    shards(".arrow", encode_arrow)(folder)
    for place in (folder, folder / "train"):
        names = [path.name for path in sorted(place.glob("*.arrow"), reverse=True)]
        state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "12ab"}
        (place / "state.json").write_text(json.dumps(state))
        (place / "dataset_info.json").write_text('{"features": {}}')
        (place / "cache-0.arrow").write_bytes(b"no part of the dataset")


def encode_tar(numbers: range) -> bytes:
    return tar_bytes(m for i in numbers for m in ((f"{i:02}.png", image(i)), (f"{i:02}.txt", b"%d" % i)))


def write_tars_and_tables(folder: Path) -> None:
    shards(".tar", encode_tar)(folder)
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as archive:
            keys = {name.partition(".")[0]: None for name in archive.getnames()}
        pq.write_table(pa.table({"key": pa.array([*keys, "failed"])}), path.with_suffix(".parquet"))
    (folder / "train" / "a_stats.json").write_text("{}")


def tar_rows(data: bytes) -> list[tuple[bytes, Any]]:
    """All else: every byte of the sample's members, headers and padding included."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
    rows = []
    for picture, text in zip(members[::2], members[1::2], strict=True):
        assert picture.name.removesuffix("png") == text.name.removesuffix("txt")
        stop = text.offset_data + -(-text.size // 512) * 512
        content = data[picture.offset_data : picture.offset_data + picture.size]
        rows.append((content, data[picture.offset : stop]))
    return rows


def write_images(folder: Path) -> None:
    for i in range(N):
        path = folder / ("train" if i < FIRST else "val") / f"{i:02} #ä[1].png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(i))
    (folder / "captions.txt").write_text("no image")


def image_rows(data: bytes) -> list[tuple[bytes, Any]]:
    return [(data, None)]


BROKEN_IMAGE = f"val/{N - 1:02} #ä[1].png"
FORMATS = {
    "parquet": Format(shards(".parquet", encode_parquet(False)), parquet_rows, "val.parquet", SECOND),
    "parquet struct": Format(shards(".parquet", encode_parquet(True)), parquet_rows, "val.parquet", SECOND),
    "arrow": Format(
        write_saved,
        arrow_rows,
        "val.arrow",
        SECOND,
        ("state.json", "dataset_info.json", "cache-0.arrow"),
    ),
    "tables beside tars": Format(
        write_tars_and_tables,
        tar_rows,
        "val.tar",
        SECOND,
        ("a.parquet", "b.parquet", "val.parquet", "a_stats.json"),
    ),
    "webdataset": Format(shards(".tar", encode_tar), tar_rows, "val.tar", SECOND),
    "folder": Format(write_images, image_rows, BROKEN_IMAGE, 1),
}


@dataclass(frozen=True)
class Made:
    """A corpus on disk."""

    format: Format
    folder: Path

    @property
    def uri(self) -> str:
        return str(self.folder / "in")

    def open(self, name: str = "in", rows_per_slice: int = 4) -> Corpus:
        return open_corpus(str(self.folder / name), rows_per_slice=rows_per_slice)

    def files(self, name: str = "in") -> dict[str, bytes]:
        """Every file with rows by its path, sorted, hidden ones included."""
        return {
            path: data
            for path, data in self.every_file(name).items()
            if path.rpartition("/")[2] not in self.format.beside
        }

    def every_file(self, name: str = "in") -> dict[str, bytes]:
        root = self.folder / name
        paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
        return {path: paths[path].read_bytes() for path in sorted(paths)}

    def stored(self, name: str = "in") -> list[Stored]:
        return [(p, *row) for p, data in self.files(name).items() for row in self.format.rows_in(data)]

    def spoil(self) -> None:
        """Make one file unreadable."""
        path = self.folder / "in" / self.format.broken
        path.unlink()
        if self.format.broken == BROKEN_IMAGE:
            os.mkfifo(path)
        else:
            path.write_bytes(b"neither Parquet nor tar" * 99)


@pytest.fixture(params=list(FORMATS))
def made(request, tmp_path) -> Made:
    corpus = Made(FORMATS[request.param], tmp_path)
    corpus.format.write(tmp_path / "in")
    assert len(corpus.stored()) == N
    return corpus


def split(corpus: Corpus, fates: list[int], clean: str, removed: str) -> tuple[int, int]:
    """Split every unit by the fates of the corpus's rows; rows kept and removed."""
    left, kept, gone = list(fates), 0, 0
    for unit in corpus.units():
        n = sum(slice_.stop - slice_.start for slice_ in unit)
        here, left = left[:n], left[n:]
        counts = corpus.split(unit, here, clean, removed)
        assert counts == (here.count(KEPT), here.count(REMOVED))
        kept, gone = kept + counts[0], gone + counts[1]
    assert not left
    corpus.finish(clean, removed, dict)
    return kept, gone


# ---------------------------------------------------------------- listing and slices


def listed(made: Made, corpus: Corpus) -> list[tuple[str, int]]:
    """Path and size of each listed file with rows."""
    return [
        pair for pair in untagged(corpus.sources()) if pair[0].rpartition("/")[2] not in made.format.beside
    ]


def test_every_file_is_listed_by_path_and_size(made):
    corpus = made.open()
    files = made.files()
    assert listed(made, corpus) == [(path, len(data)) for path, data in files.items()]
    assert corpus.uri == made.uri
    before = corpus.sources()
    os.utime(made.folder / "in" / before[0].path, (1, 1))
    assert corpus.sources()[0] != before[0] and corpus.sources()[1:] == before[1:]


def test_a_sound_file_has_no_problem(made):
    corpus = made.open()
    assert {corpus.check(source) for source in corpus.sources()} == {None}


@pytest.mark.parametrize("rows_per_slice", [1, 4, 1024])
def test_slices_are_a_partition_of_the_rows(made, rows_per_slice):
    corpus = made.open(rows_per_slice=rows_per_slice)
    slices = corpus.slices()
    assert [s.index for s in slices] == list(range(len(slices)))
    assert all(0 <= s.stop - s.start <= rows_per_slice for s in slices)
    ids = [s.image_id(i) for s in slices for i in range(s.stop - s.start)]
    assert len(ids) == len(set(ids)) == N
    assert corpus.slices(corpus.sources()) == slices


@pytest.mark.parametrize("rows_per_slice", [1, 4, 1024])
def test_no_two_units_write_one_file(made, rows_per_slice):
    corpus = made.open(rows_per_slice=rows_per_slice)
    slices = corpus.slices()
    units = corpus.units(slices)
    assert [s for unit in units for s in unit] == slices and corpus.units() == units
    written = [{f for s in unit for f in s.files or (s.source,)} for unit in units]
    assert all(one.isdisjoint(other) for one, other in combinations(written, 2))


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("whole", [False, True])
def test_every_row_is_read_once_in_order(made, whole):
    corpus = made.open()
    read = [(s, row) for s in corpus.slices() for row in corpus.read(s, whole=whole)]
    assert [row.data for _, row in read] == [data for _, data, _ in made.stored()]
    assert [row.error for _, row in read] == [None] * N
    assert [row.image_id for _, row in read] == [
        s.image_id(row - s.start) for s in corpus.slices() for row in range(s.start, s.stop)
    ]
    assert all(
        s.start <= row.row < s.stop and s.image_id(row.row - s.start) == row.image_id for s, row in read
    )


def test_images_are_fetched_in_the_order_asked_and_repeats_too(made):
    corpus = made.open()
    data = {row.image_id: row.data for row in rows_of(corpus)}
    ids = [*list(data)[::-2], *list(data)[:3], *list(data)[:3]]
    assert corpus.fetch(ids) == [data[i] for i in ids]
    assert corpus.fetch([]) == []


def test_an_image_that_is_not_there_cannot_be_fetched(made):
    corpus = made.open()
    (last,) = (row.image_id for row in rows_of(corpus)[-1:])
    wrong = f"{last.rpartition('#')[0]}#{N}" if corpus.sharded else f"{last}.png"
    with pytest.raises(UserError, match="index"):
        corpus.fetch([last, wrong])


def test_a_copy_in_another_process_is_the_same_corpus(made):
    corpus, slices = made.open(), made.open().slices()
    copy, copies = pickle.loads(pickle.dumps((corpus, slices)))
    assert copy == corpus and copies == slices
    assert [row for s in copies for row in copy.read(s)] == rows_of(corpus)


# ---------------------------------------------------------------- splitting

MIXTURE = np.random.default_rng(0).integers(0, 3, N).tolist()
# Of the first shard a whole row group is dead, of the second nothing is removed.
UNEVEN = [DEAD] * 6 + [KEPT, REMOVED] * 4 + [KEPT] * SECOND
FATES = {
    "none": [KEPT] * N,
    "all": [REMOVED] * N,
    "mixture": MIXTURE,
    "uneven": UNEVEN,
    "dead": [DEAD] * N,
}


@pytest.mark.parametrize("fates", FATES.values(), ids=list(FATES))
def test_kept_and_removed_rows_are_those_of_the_corpus_byte_for_byte(made, fates):
    corpus, stored = made.open(), made.stored()
    for _ in range(2):  # the second try of a task finds what the first has written
        counts = split(corpus, fates, str(made.folder / "clean"), str(made.folder / "removed"))
        assert counts == (fates.count(KEPT), fates.count(REMOVED))
        assert sum(counts) + fates.count(DEAD) == N
        for name, fate in (("clean", KEPT), ("removed", REMOVED)):
            wanted = [row for row, f in zip(stored, fates, strict=True) if f == fate]
            assert made.stored(name) == wanted
            # Nothing but the corpus's own files. Kept shards may have no row: of Parquet all, of tars those
            # that had none before.
            left = {path for path, *_ in wanted}
            if corpus.sharded and fate == KEPT:
                rowless = set(made.files()) - {path for path, *_ in stored}
                left |= rowless if isinstance(corpus, WebDatasetCorpus) else set(made.files())
            assert set(made.files(name)) == left
            if wanted:
                again = made.open(name)
                assert type(again) is type(corpus)
                assert [row.data for row in rows_of(again)] == [data for _, data, _ in wanted]
    assert made.stored() == stored


def test_a_wrong_number_of_fates_writes_nothing(made):
    corpus = made.open()
    unit = corpus.units()[0]
    n = sum(slice_.stop - slice_.start for slice_ in unit)
    for wrong in (n - 1, n + 1):
        with pytest.raises(ValueError, match=f"{wrong} fates for {n} "):
            corpus.split(unit, [KEPT] * wrong, str(made.folder / "clean"), str(made.folder / "removed"))
    assert not made.files("clean") and not made.files("removed")


def test_the_corpus_is_never_its_own_output_by_whatever_name(made):
    corpus, other = made.open(), str(made.folder / "other")
    (made.folder / "link").symlink_to(made.folder / "in")
    unit = corpus.units()[0]
    fates = [KEPT] * sum(slice_.stop - slice_.start for slice_ in unit)
    before = made.files()
    for place in (f"{made.uri}/", f"file://{made.uri}", f"{made.uri}/train/..", f"{made.folder}/link"):
        for kept, removed in ((place, other), (other, place)):
            with pytest.raises(UserError, match="is the corpus itself"):
                corpus.split(unit, fates, kept, removed)
    assert made.files() == before and not made.files("other")


# ---------------------------------------------------------------- broken inputs


def test_a_broken_file_costs_its_own_rows(made):
    whole = [row for row in made.stored() if row[0] != made.format.broken]
    made.spoil()
    corpus = made.open()
    problems = [p for p in map(corpus.check, corpus.sources()) if p]
    named = [(p.source, p.rows, p.kind) for p in problems]
    assert named == ([(made.format.broken, None, "unreadable_shard")] if corpus.sharded else [])
    assert all(p.reason.isprintable() and p.reason for p in problems)
    rows = rows_of(corpus)
    assert [row.data for row in rows if not row.error] == [data for _, data, _ in whole]
    (dead,) = (row for row in rows if row.error)
    assert dead.data is None and dead.error[1]
    assert dead.error[0] == ("unreadable_shard" if corpus.sharded else "unreadable")
    with pytest.raises(UserError, match="cannot be read"):
        corpus.fetch([dead.image_id])

    fates = [DEAD if row.error else i % 2 for i, row in enumerate(rows)]
    split(corpus, fates, str(made.folder / "clean"), str(made.folder / "removed"))
    alive = [fate for fate in fates if fate != DEAD]
    assert len(alive) == N - made.format.lost
    for name, fate in (("clean", KEPT), ("removed", REMOVED)):
        assert made.stored(name) == [row for row, f in zip(whole, alive, strict=True) if f == fate]
        assert made.format.broken not in made.files(name)


def test_a_file_that_is_gone_is_a_mistake_and_no_dead_row(made):
    corpus = made.open()
    slices, sources = corpus.slices(), corpus.sources()
    (made.folder / "in" / made.format.broken).unlink()
    with pytest.raises(UserError, match="is gone from"):
        list(corpus.read(slices[-1]))
    if corpus.sharded:
        with pytest.raises(UserError, match="is gone from"):
            corpus.check(sources[-1])


def test_a_corpus_of_which_nothing_can_be_read_is_a_mistake(tmp_path):
    for suffix in (".parquet", ".tar"):
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        for i in range(2):
            (folder / f"{i}{suffix}").write_bytes(b"neither Parquet nor tar" * 99)
        with pytest.raises(UserError, match=rf"shard 0\{suffix} cannot be read"):
            open_corpus(str(folder)).slices()


# ---------------------------------------------------------------- other stores


def without_version(slices: list[Slice]) -> list[Slice]:
    """A store has tags of its own."""
    return [Slice(**{**vars(s), "version": None}) for s in slices]


def untagged(sources: list[Source]) -> list[tuple[str, int]]:
    return [(source.path, source.size) for source in sources]


def files_at(uri: str) -> dict[str, bytes]:
    fs, root = connect(uri)
    fs.invalidate_cache()
    return {str(path)[len(root) + 1 :]: fs.cat_file(path) for path in fs.find(root)}


def check_store(made: Made, root: str) -> None:
    """The corpus under `root` is read and split as on a disk."""
    fs, place = connect(root)
    for path, data in made.every_file().items():
        fs.pipe_file(f"{place}/in/{path}", data)
    disk, store = made.open(), open_corpus(f"{root}/in", rows_per_slice=4)
    assert untagged(store.sources()) == untagged(disk.sources())
    assert {store.check(source) for source in store.sources()} == {None}
    assert without_version(store.slices()) == without_version(disk.slices())
    assert rows_of(store) == rows_of(disk)
    ids = [row.image_id for row in rows_of(disk)][::-2]
    assert store.fetch(ids) == disk.fetch(ids)
    before = store.sources()
    for fates in (MIXTURE, UNEVEN):
        name = uuid.uuid4().hex
        here, there = f"{made.folder}/{name}", f"{root}/{name}"
        for corpus, output in ((disk, here), (store, there)):
            split(corpus, fates, f"{output}/clean", f"{output}/removed")
        for name in ("clean", "removed"):
            assert files_at(f"{there}/{name}") == files_at(f"{here}/{name}") != {}
    assert store.sources() == before
    at = next(i for i, s in enumerate(before) if s.path.rpartition("/")[2] not in made.format.beside)
    fs.pipe_file(f"{place}/in/{before[at].path}", b"other")
    after = store.sources()
    assert after.pop(at) != before.pop(at) and after == before


def test_another_store_gives_what_the_disk_gives(made):
    """The memory filesystem takes the way of every store that is not a local disk."""
    check_store(made, f"memory://{uuid.uuid4().hex}")


@pytest.mark.s3
def test_s3_gives_what_the_disk_gives(made, s3, use_s3):
    use_s3(s3.environment())
    check_store(made, f"s3://{s3.bucket}/{uuid.uuid4().hex}")
