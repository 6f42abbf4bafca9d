"""The files and the slices of a corpus as Parquet tables, as the index keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import pyarrow as pa
import pyarrow.compute as pc

from poisoncam_ray.artifact import SLICE_SCHEMA, SOURCE_SCHEMA
from poisoncam_ray.corpus.protocol import Slice, Source

_NAMES = [field.name for field in fields(Slice)]
_TUPLES = ("files", "span", "twins", "beside")


def source_table(sources: Sequence[Source]) -> pa.Table:
    """One row for each file (SOURCE_SCHEMA)."""
    columns = {name: [getattr(source, name) for source in sources] for name in SOURCE_SCHEMA.names}
    return pa.table(columns, schema=SOURCE_SCHEMA)


def slice_table(slices: Sequence[Slice], rows: Sequence[int] | None = None) -> pa.Table:
    """One row for each slice (SLICE_SCHEMA).

    Args:
        slices: the slices.
        rows: how many rows of each slice are indexed; None before they are counted.
    """
    columns = {name: [getattr(slice_, name) for slice_ in slices] for name in _NAMES}
    counted: Sequence[int | None] = rows or [None] * len(slices)
    return pa.table({**columns, "rows": counted}, schema=SLICE_SCHEMA)


def slices_of(table: pa.Table) -> list[Slice]:
    """The slices in a table that `slice_table` made, in its order."""
    columns = table.select(_NAMES).to_pydict()
    for name in _TUPLES:
        columns[name] = [None if value is None else tuple(value) for value in columns[name]]
    return [Slice(*values) for values in zip(*(columns[name] for name in _NAMES), strict=True)]


def same_cut(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables cut the corpus into the same slices. The words of an `error` may differ."""
    return _cut(one).equals(_cut(other))


def _cut(table: pa.Table) -> pa.Table:
    broken = pc.is_valid(table["error"])
    return table.drop_columns(["error", "rows"]).append_column("broken", broken)
