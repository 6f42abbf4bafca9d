"""Parquet shards: every column type comes back unchanged, row groups cut slices, schemas may drift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.corpus import DEAD, KEPT, REMOVED, Problem, open_corpus
from poisoncam_ray.corpus.parquet_shard import cut, rows_where
from poisoncam_ray.errors import UserError
from tests.corpus.mistakes import refuse
from tests.corpus.tables import rich_table, structs, write_rich
from tests.examples import examples
from tests.tars import image, rows_of


@pytest.fixture
def rich(tmp_path) -> Path:
    """`in/` with three shards, the second of them empty."""
    write_rich(tmp_path / "in")
    return tmp_path


# ---------------------------------------------------------------- reading


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 17))
def test_cut_covers_every_row_once(groups, size):
    ranges = cut(groups, size)
    assert [r for a, b in ranges for r in range(a, b)] == list(range(sum(groups)))
    assert all(b - a <= size for a, b in ranges)
    assert all(b > a for a, b in ranges) or ranges == [(0, 0)]
    if groups and max(groups) <= size:
        edges = {sum(groups[:i]) for i in range(len(groups) + 1)}
        assert all(a in edges and b in edges for a, b in ranges)


@examples(25)
@given(
    st.lists(st.integers(0, 150), min_size=1, max_size=3).filter(any),
    st.integers(1, 90),
    st.integers(1, 200),
    st.booleans(),
)
def test_every_row_is_read_once_in_order(tmp_path_factory, counts, group, size, nested):
    folder = tmp_path_factory.mktemp("c")
    expected = []
    for shard, n in enumerate(counts):
        values = [b"%d-%d" % (shard, i) if i % 7 else None for i in range(n)]
        cells = [{"bytes": v} for v in values] if nested else values
        kind = pa.struct([("bytes", pa.binary())]) if nested else pa.binary()
        name = f"{shard}.parquet"
        pq.write_table(pa.table({"pic": pa.array(cells, kind)}), folder / name, row_group_size=group)
        expected += [(i, f"{name}#{i}", v) for i, v in enumerate(values)]
    corpus = open_corpus(str(folder), rows_per_slice=size)
    assert [(r.row, r.image_id, r.data) for r in rows_of(corpus)] == expected
    ids = [i for _, i, v in expected if v is not None][::-3]
    data = {i: v for _, i, v in expected}
    assert corpus.fetch(ids + ids[:2]) == [data[i] for i in ids + ids[:2]]


def test_slices_end_at_row_groups(rich):
    corpus = open_corpus(str(rich / "in"), rows_per_slice=10)
    assert corpus.image_column == "image"
    slices = corpus.slices()
    assert [(s.index, s.source[-9:], s.start, s.stop) for s in slices] == [
        (0, "a.parquet", 0, 10),
        (1, "a.parquet", 10, 20),
        (2, "a.parquet", 20, 23),
        (3, "b.parquet", 0, 0),
        (4, "c.parquet", 0, 7),
    ]
    assert [len(unit) for unit in corpus.units()] == [3, 1, 1]
    ids = [row.image_id for row in rows_of(corpus)]
    assert ids[0] == "train/a.parquet#0" and len(set(ids)) == 30
    assert [row.data for row in rows_of(corpus)][1:5] == [image(1), None, None, image(4)]
    with pytest.raises(UserError, match="null"):
        corpus.fetch(["train/a.parquet#2"])


def test_one_parquet_file_is_a_corpus(rich, monkeypatch):
    monkeypatch.chdir(rich / "in" / "train")
    for uri in ("c.parquet", str(rich / "in/train/c.parquet"), f"file://{rich}/in/train/c.parquet"):
        corpus = open_corpus(uri)
        assert [s.path for s in corpus.sources()] == ["c.parquet"]
        assert len(rows_of(corpus)) == 7


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())])
def test_other_binary_types(tmp_path, kind):
    values = pa.array([image(1), None, image(1)], pa.binary())
    values = values.dictionary_encode() if pa.types.is_dictionary(kind) else values.cast(kind)
    pq.write_table(pa.table({"a.b": values, "n": [1, 2, 3]}), tmp_path / "x.parquet")
    corpus = open_corpus(str(tmp_path))
    assert [row.data for row in rows_of(corpus)] == [image(1), None, image(1)]
    (unit,) = corpus.units()
    kept, removed = str(tmp_path / "kept"), str(tmp_path / "removed")
    assert corpus.split(unit, [KEPT, DEAD, REMOVED], kept, removed) == (1, 1)
    assert pq.read_schema(f"{kept}/x.parquet") == pq.read_schema(tmp_path / "x.parquet")
    for place in (kept, removed):
        assert pq.read_table(f"{place}/x.parquet", columns=["a.b"]).to_pylist() == [{"a.b": image(1)}]


@given(st.lists(st.booleans(), max_size=30))
def test_runs_of_neighbours_are_the_rows_that_are_wanted(wanted):
    table = pa.table(
        {"n": range(len(wanted)), "s": pa.array([str(i) for i in range(len(wanted))], pa.string_view())}
    )
    rows = rows_where(table, np.array(wanted, bool))
    assert rows["n"].to_pylist() == [i for i, yes in enumerate(wanted) if yes] and rows.schema == table.schema


def test_a_shard_that_changed_is_not_read(rich):
    corpus = open_corpus(str(rich / "in"))
    slices = corpus.slices()
    pq.write_table(rich_table(5), rich / "in/train/a.parquet")
    with pytest.raises(UserError, match="changed since it was indexed"):
        list(corpus.read(slices[0]))


# ---------------------------------------------------------------- writing


def test_split_keeps_everything_about_kept_rows(rich):
    uri, kept_uri, removed_uri = (str(rich / n) for n in ("in", "clean", "removed"))
    corpus = open_corpus(uri, rows_per_slice=10)
    rng = np.random.default_rng(1)
    for unit in corpus.units():
        n = unit[-1].stop
        fates = rng.integers(0, 3, n)
        counts = corpus.split(unit, fates, kept_uri, removed_uri)
        assert counts == ((fates == KEPT).sum(), (fates == REMOVED).sum())

        path = unit[0].source
        before, after = pq.ParquetFile(f"{uri}/{path}"), pq.ParquetFile(f"{kept_uri}/{path}")
        assert after.schema_arrow.equals(before.schema_arrow, check_metadata=True)
        assert after.schema.equals(before.schema)
        table = pq.read_table(f"{uri}/{path}")
        assert pq.read_table(f"{kept_uri}/{path}").equals(table.filter(pa.array(fates == KEPT)))
        pd.testing.assert_frame_equal(
            pq.read_table(
                f"{kept_uri}/{path}", columns=["key", "when", "shade", "label", "number"]
            ).to_pandas(),
            table.select(["key", "when", "shade", "label", "number"]).to_pandas()[fates == KEPT],
        )
        if not n:
            continue
        groups = [before.metadata.row_group(i).num_rows for i in range(before.metadata.num_row_groups)]
        kept = [int((group == KEPT).sum()) for group in np.split(fates, np.cumsum(groups)[:-1])]
        written = [after.metadata.row_group(i).num_rows for i in range(after.metadata.num_row_groups)]
        assert written == [k for k in kept if k]
        first, second = before.metadata.row_group(0), after.metadata.row_group(0)
        for i in range(first.num_columns):
            assert first.column(i).compression == second.column(i).compression

        removed = pq.read_table(f"{removed_uri}/{path}")
        assert removed.equals(table.filter(pa.array(fates == REMOVED)))
        assert removed.schema.equals(table.schema, check_metadata=True)


def test_split_of_all_or_none(rich):
    corpus = open_corpus(str(rich / "in"))
    unit = corpus.units()[0]
    assert corpus.split(unit, [REMOVED] * 23, str(rich / "k"), str(rich / "r")) == (0, 23)
    empty = pq.ParquetFile(rich / "k/train/a.parquet")
    assert empty.metadata.num_rows == 0
    assert empty.schema_arrow.equals(pq.read_schema(rich / "in/train/a.parquet"), check_metadata=True)
    # A second run with another verdict leaves nothing of the first.
    assert corpus.split(unit, [KEPT] * 23, str(rich / "k"), str(rich / "r")) == (23, 0)
    assert not (rich / "r/train/a.parquet").exists()
    assert pq.read_table(rich / "k/train/a.parquet").equals(pq.read_table(rich / "in/train/a.parquet"))
    assert not list(rich.rglob(".writing*"))


def test_a_failed_write_leaves_nothing(rich):
    corpus = open_corpus(str(rich / "in"))
    path = rich / "in/train/a.parquet"
    whole = path.read_bytes()
    middle = pq.ParquetFile(path).metadata.row_group(3).column(1).data_page_offset
    path.write_bytes(whole[:middle] + b"\xff" * 400 + whole[middle + 400 :])
    unit = corpus.units()[0]
    with pytest.raises(UserError, match=r"train/a\.parquet cannot be read"):
        corpus.split(unit, [KEPT] * 22 + [REMOVED], str(rich / "k"), str(rich / "r"))
    assert not [p for name in "kr" for p in (rich / name).rglob("*") if p.is_file()]


# ---------------------------------------------------------------- columns and schemas


def test_mistakes_of_the_image_column(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": structs(2), "text": ["a", "b"]}), path)
    refuse("picture is missing in a.parquet: set image_column to image", tmp_path, image_column="picture")
    refuse("text is not binary .*set image_column to image", tmp_path, image_column="text")
    pq.write_table(pa.table({"text": ["a", "b"], "n": [1, 2]}), path)
    refuse("No column of a.parquet holds images .*text, n", tmp_path)
    refuse("img is missing in a.parquet: the shard has only text, n", tmp_path, image_column="img")
    pq.write_table(pa.table({"image": structs(2), "depth": [b"a", b"b"]}), path)
    refuse("set image_column to one of image, depth", tmp_path)
    assert open_corpus(str(tmp_path), image_column="depth").image_column == "depth"
    pq.write_table(pa.table({"other": [b"a", b"b"]}), tmp_path / "b.parquet")
    found = rows_of(open_corpus(str(tmp_path), image_column="depth"))
    assert [r.error and r.error[0] for r in found] == [None, None, "other_schema", "other_schema"]


def test_a_check_reads_the_footer_and_says_what_is_wrong_with_the_shard(tmp_path):
    def check(name: str, table: pa.Table) -> Problem | None:
        pq.write_table(table, tmp_path / name)
        return corpus.check(next(s for s in corpus.sources() if s.path == name))

    pq.write_table(pa.table({"image": structs(2)}), tmp_path / "a.parquet")
    corpus = open_corpus(str(tmp_path))
    assert [corpus.check(source) for source in corpus.sources()] == [None]
    # A layout of its own, further columns, no rows or no image at all are no other schema.
    assert check("b.parquet", pa.table({"image": [b"x"], "more": [1]})) is None
    assert check("b.parquet", pa.table({"image": pa.nulls(3)})) is None
    assert check("b.parquet", pa.table({"text": pa.array([], pa.string())})) is None
    reason = "the image column image is missing; the columns are img"
    table = pa.table({"img": structs(7)})
    assert check("b.parquet", table) == Problem("b.parquet", 7, "other_schema", reason)
    reason = "the image column image is not binary or struct{bytes, path}; the columns are image, m"
    table = pa.table({"image": ["a"] * 3, "m": [1] * 3})
    assert check("b.parquet", table) == Problem("b.parquet", 3, "other_schema", reason)
    hostile = check("b.parquet", pa.table({"\x1b[2J\n": [1]}))
    assert hostile and hostile.reason.isprintable() and hostile.rows == 1
    # Damage behind a whole footer is found where the rows are read.
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:40] = bytes(36)
    (tmp_path / "a.parquet").write_bytes(data)
    assert corpus.check(corpus.sources()[0]) is None
    for cut_short in (data[:-9], b""):
        (tmp_path / "a.parquet").write_bytes(cut_short)
        problem = corpus.check(corpus.sources()[0])
        assert problem and (problem.source, problem.rows) == ("a.parquet", None)
        assert problem.kind == "unreadable_shard" and problem.reason.isprintable()


def test_all_rows_of_a_shard_with_another_schema_are_dead(tmp_path):
    pq.write_table(pa.table({"image": structs(2)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"img": structs(7), "n": list("abcdefg")}), tmp_path / "b.parquet")
    corpus = open_corpus(str(tmp_path), rows_per_slice=3)
    unit = corpus.units()[1]
    assert [(s.start, s.stop, s.kind) for s in unit] == [
        (0, 3, "other_schema"),
        (3, 6, "other_schema"),
        (6, 7, "other_schema"),
    ]
    rows = [row for slice_ in unit for row in corpus.read(slice_)]
    assert [row.image_id for row in rows] == [f"b.parquet#{i}" for i in range(7)]
    assert {row.error for row in rows} == {("other_schema", unit[0].error)}
    assert corpus.split(unit, [DEAD] * 7, str(tmp_path / "kept"), str(tmp_path / "removed")) == (0, 0)
    assert not (tmp_path / "kept").exists()


def test_unreadable_and_empty_shards(tmp_path):
    pq.write_table(pa.table({"image": structs(0).cast(structs(1).type)}), tmp_path / "a.parquet")
    refuse("hold no rows", tmp_path)
    pq.write_table(pa.table({"image": structs(2)}), tmp_path / "b.parquet")
    assert len(rows_of(open_corpus(str(tmp_path)))) == 2
    # pandas writes an empty frame's object column without a type.
    pq.write_table(pa.table({"image": pa.nulls(0)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": pa.nulls(3)}), tmp_path / "c.parquet")
    assert [r.data is None for r in rows_of(open_corpus(str(tmp_path)))] == [False] * 2 + [True] * 3
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.parquet").write_bytes(b"no parquet at all")
    refuse(r"Parquet shard a\.parquet cannot be read \(.+\)", tmp_path)
