"""The table of slices gives back the slices."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.artifact import SLICE_SCHEMA, SLICES
from poisoncam_ray.corpus import Slice, Source
from poisoncam_ray.corpus.slices import same_cut, slice_table, slices_of, source_table
from poisoncam_ray.folder import Folder

numbers = st.integers(0, 2**62)
slices = st.builds(
    Slice,
    index=numbers,
    source=st.text(),
    start=numbers,
    stop=numbers,
    files=st.none() | st.lists(st.text(), max_size=4).map(tuple),
    version=st.none() | st.text(),
    error=st.none() | st.text(),
    span=st.none() | st.tuples(numbers, numbers),
    twins=st.none() | st.lists(numbers, max_size=4).map(tuple),
    kind=st.none() | st.text(),
)


def test_the_table_holds_every_field_of_a_slice():
    assert SLICE_SCHEMA.names == [*(field.name for field in fields(Slice)), "rows"]


@given(st.lists(slices, max_size=5))
def test_slices_come_back_as_they_were(made):
    table = slice_table(made, list(range(len(made))))
    assert slices_of(table) == made
    assert table["rows"].to_pylist() == list(range(len(made)))
    assert same_cut(table, slice_table(made))


def test_one_column_is_read_alone(tmp_path):
    made = [Slice(0, ".", 0, 2, ("a.png", "b.png")), Slice(1, ".", 2, 3, ("c.png",))]
    folder = Folder(str(tmp_path))
    folder.write_table(SLICES, slice_table(made, [2, 0]))
    assert folder.read_table(SLICES, ["rows"]).to_pydict() == {"rows": [2, 0]}
    assert slices_of(folder.read_table(SLICES)) == made


def test_the_sources_are_kept_by_path_size_and_tag():
    table = source_table([Source("a/b.parquet", 2**40, "e7"), Source("c.parquet", 0, "")])
    assert table.to_pydict() == {"path": ["a/b.parquet", "c.parquet"], "size": [2**40, 0], "tag": ["e7", ""]}
