"""Broken shards and damage inside a shard: every row is kept, removed or dead.

stages/test_check.py tests that a run stops before any work unless it is told to go on.
"""

from __future__ import annotations

import errno
import os
import pickle
from collections import Counter

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray import artifact
from poisoncam_ray.corpus import DEAD, KEPT, REMOVED, open_corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from tests.examples import examples
from tests.ledger import (
    GROUP,
    N,
    defend,
    samples,
    spoil,
    table,
    write_mixed_parquet,
    write_mixed_tars,
    write_parquet,
)
from tests.tars import image, raw_members, rows_of, tar_bytes


def by_shard(ids: list[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for source, _, row in (image_id.rpartition("#") for image_id in ids):
        found.setdefault(source, []).append(int(row))
    return found


# ---------------------------------------------------------------- the ledger


@pytest.mark.parametrize("step", [7, 1024])
def test_parquet_ledger(tmp_path, step):
    folder = tmp_path / "in"
    whole = write_mixed_parquet(folder)
    ends = defend(open_corpus(str(folder), rows_per_slice=step), Folder(str(tmp_path / "run")))
    lost = {f"{name}.parquet#0": "unreadable_shard" for name in ("cut", "empty")}
    lost |= {f"other.parquet#{i}": "other_schema" for i in range(2)}
    lost |= {f"caption.parquet#{i}": "unreadable" for i in range(10, 20)}
    lost |= {f"picture.parquet#{i}": "unreadable" for i in (*range(10), *range(20, 30))}
    assert ends.errors == lost
    for ids, name in ((ends.kept, artifact.CLEAN_ROWS), (ends.removed, artifact.REMOVED_ROWS)):
        rows = by_shard(ids)
        assert {p.name for p in (tmp_path / "run" / name).glob("*")} == set(rows)
        for source, numbers in rows.items():
            written = pq.read_table(tmp_path / "run" / name / source)
            assert written.equals(whole[source].take(numbers))


def test_rows_without_an_image_are_kept_and_rows_that_hold_only_a_path_are_not(tmp_path):
    whole, nested = table(), table().schema.field("image").type
    cells = whole["image"].to_pylist()
    cells[2] = cells[N - 1] = None
    cells[11] = {"bytes": None, "path": None}
    cells[12] = {"bytes": None, "path": "https://host/12.png"}
    whole = whole.set_column(0, "image", pa.array(cells, nested))
    (tmp_path / "in").mkdir()
    pq.write_table(whole, tmp_path / "in/a.parquet", row_group_size=GROUP)
    pq.write_table(whole.set_column(0, "image", pa.nulls(N)), tmp_path / "in/b.parquet")
    ends = defend(open_corpus(str(tmp_path / "in"), rows_per_slice=7), Folder(str(tmp_path / "run")))
    assert ends.errors == {"a.parquet#12": "not_embedded"}
    rows = by_shard(ends.kept)
    assert {2, 11, N - 1} < set(rows["a.parquet"]) and sorted(rows["b.parquet"]) == list(range(N))
    for source, numbers in rows.items():
        written = pq.read_table(tmp_path / "run" / artifact.CLEAN_ROWS / source)
        assert written.equals(pq.read_table(tmp_path / "in" / source).take(sorted(numbers)))


def test_tar_ledger(tmp_path):
    folder = tmp_path / "in"
    write_mixed_tars(folder)
    ends = defend(open_corpus(str(folder), rows_per_slice=5), Folder(str(tmp_path / "run")))
    assert ends.errors == {
        "cut.tar#7": "unreadable_shard",
        "twins.tar#4": "duplicate_key",
        "twins.tar#12": "duplicate_key",
        "odd.tar#3": "unsafe_member",
        "odd.tar#4": "undecodable",
        "odd.tar#5": "no_image",
        "text.tar#0": "unreadable_shard",
    }
    first = {"good.tar": 0, "cut.tar": 100, "twins.tar": 200, "odd.tar": 300}
    (folder / "cut.tar").write_bytes(tar_bytes(samples(100)))
    for ids, name in ((ends.kept, artifact.CLEAN_ROWS), (ends.removed, artifact.REMOVED_ROWS)):
        rows = by_shard(ids)
        assert {p.name for p in (tmp_path / "run" / name).glob("*")} == set(rows)
        for source, numbers in rows.items():
            stems = {f"{first[source] + row:03d}" for row in numbers}
            wanted = [m for m in raw_members(folder / source) if m[0][:3] in stems]
            assert raw_members(tmp_path / "run" / name / source) == wanted


SICK = {"eio": errno.EIO, "denied": errno.EACCES, "busy": errno.EAGAIN}


class Sick(LocalFileSystem):
    """A local disk with files that give read errors, may not be read, or need patience, by their names."""

    protocol = "sick"

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(str(path).removeprefix("sick://"))

    def _open(self, path, mode="rb", **options):
        code = SICK.get(os.path.basename(path).split(".")[0])
        if code and "r" in mode:
            raise OSError(code, os.strerror(code), path)
        return super()._open(path, mode, **options)


fsspec.register_implementation("sick", Sick, clobber=True)


def test_folder_ledger(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(9):
        (folder / f"{i}.png").write_bytes(image(i))
    for name in ("eio", "denied", "text"):
        (folder / f"{name}.png").write_bytes(b"text")
    os.mkfifo(folder / "pipe.png")
    ends = defend(open_corpus(f"sick://{folder}", rows_per_slice=4), Folder(str(tmp_path / "run")))
    assert ends.errors == {
        "eio.png": "unreadable",
        "denied.png": "unreadable",
        "pipe.png": "unreadable",
        "text.png": "undecodable",
    }
    for ids, name in ((ends.kept, artifact.CLEAN_ROWS), (ends.removed, artifact.REMOVED_ROWS)):
        found = {p.name: p.read_bytes() for p in (tmp_path / "run" / name).glob("*")}
        assert found == {i: image(int(i[0])) for i in ids}


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_read_errors_of_a_shard_are_its_own(tmp_path, kind):
    for name in ("good", "eio", "denied"):
        path = tmp_path / f"{name}.{kind}"
        if kind == "parquet":
            write_parquet(path)
        else:
            path.write_bytes(tar_bytes([("0.png", b"")]))
    corpus = open_corpus(f"sick://{tmp_path}")
    problems = [corpus.check(source) for source in corpus.sources()]
    assert [problem and problem.rows for problem in problems] == [None] * 3
    assert [problem and problem.kind for problem in problems] == ["unreadable_shard"] * 2 + [None]
    rows = rows_of(corpus)
    dead = [(row.image_id, row.error[0]) for row in rows if row.error]
    assert dead == [(f"{name}.{kind}#0", "unreadable_shard") for name in ("denied", "eio")]
    (tmp_path / f"good.{kind}").rename(tmp_path / f"busy.{kind}")
    with pytest.raises(OSError) as caught:
        rows_of(open_corpus(f"sick://{tmp_path}"))
    assert caught.value.errno == errno.EAGAIN
    # A store that asks for patience says nothing about the shard.
    with pytest.raises(OSError) as caught:
        [corpus.check(source) for source in corpus.sources()]
    assert caught.value.errno == errno.EAGAIN


# ---------------------------------------------------------------- Parquet, inside


@examples(60)
@given(st.integers(0, 3), st.integers(0, 3), st.sampled_from(["zstd", "snappy"]), st.integers(1, 50))
def test_damage_costs_its_row_group(tmp_path_factory, group, column, compression, step):
    folder = tmp_path_factory.mktemp("p")
    write_parquet(folder / "a.parquet", compression=compression)
    whole = table()
    spoil(folder / "a.parquet", group, column, share=0)
    corpus = open_corpus(str(folder), rows_per_slice=step)
    rows = rows_of(corpus)
    assert [row.row for row in rows] == list(range(N))
    dead = [row.row for row in rows if row.error]
    assert dead == list(range(group * GROUP, (group + 1) * GROUP))
    assert all(row.data == image(row.row) for row in rows if not row.error)
    # The other columns matter only to who writes the rows.
    assert any(row.error for row in rows_of(corpus, whole=False)) == (column == 0)
    (unit,) = corpus.units()
    fates = [DEAD if row.error else KEPT for row in rows]
    assert corpus.split(unit, fates, f"{folder}/kept", f"{folder}/removed") == (N - GROUP, 0)
    alive = [i for i in range(N) if i not in dead]
    assert pq.read_table(f"{folder}/kept/a.parquet").equals(whole.take(alive))
    with pytest.raises(UserError, match="cannot be read"):
        corpus.split(unit, [KEPT] * (N - 1) + [REMOVED], f"{folder}/kept2", f"{folder}/removed2")
    assert not list(folder.glob("kept2/*")) and not list(folder.glob("removed2/*"))


def test_rows_before_the_damage_live(tmp_path):
    """Within a large row group what was read before the damage is alive, and is written."""
    n = 1000
    pages = {"data_page_size": 2000, "write_batch_size": 50}
    pq.write_table(table(n), tmp_path / "a.parquet", use_dictionary=False, **pages)
    spoil(tmp_path / "a.parquet", 0, 0, share=0.6)
    corpus = open_corpus(str(tmp_path), rows_per_slice=100)
    rows = rows_of(corpus)
    alive = [row.row for row in rows if not row.error]
    assert alive == list(range(len(alive))) and 100 < len(alive) < n
    unit = corpus.units()[0]
    fates = [KEPT] * len(alive) + [DEAD] * (n - len(alive))
    assert corpus.split(unit, fates, f"{tmp_path}/kept", f"{tmp_path}/r") == (len(alive), 0)
    assert pq.read_table(tmp_path / "kept/a.parquet").equals(table(n).take(alive))
    with pytest.raises(UserError, match="cannot be read"):
        corpus.fetch([f"a.parquet#{n - 1}"])
    assert corpus.fetch(["a.parquet#5"]) == [image(5)]


def test_the_image_column_is_found_behind_broken_shards(tmp_path):
    write_parquet(tmp_path / "a.parquet")
    for i in range(3):
        (tmp_path / f"0{i}.parquet").write_bytes(b"")
    corpus = open_corpus(str(tmp_path))
    assert corpus.image_column == "image"
    assert Counter(bool(row.error) for row in rows_of(corpus)) == {True: 3, False: N}


def test_errors_travel_between_processes(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    (tmp_path / "b").mkdir()
    pq.write_table(table(2).drop_columns("image"), tmp_path / "b/b.parquet")
    for uri in (tmp_path / "a.parquet", tmp_path / "b"):
        with pytest.raises(UserError) as caught:
            open_corpus(str(uri))
        again = pickle.loads(pickle.dumps(caught.value))
        assert str(again) == str(caught.value) and str(again).endswith(".")
