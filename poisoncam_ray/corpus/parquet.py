"""Parquet shards as a corpus: a row is an image, "<shard>#<row>" its id, so ids are unique whatever the
user's own keys are. The image column is binary or struct{bytes, path} (the Hugging Face layout).
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from poisoncam_ray.corpus import storage
from poisoncam_ray.corpus.shards import Shard, cut, image_values, is_image_type, open_shard, open_writer
from poisoncam_ray.corpus.storage import PARQUET_SUFFIXES, Row, Slice, Source
from poisoncam_ray.errors import UserError

# Shards read at once in random access: each may hold a row group in memory.
_FETCHES = 4


@dataclass(frozen=True)
class ParquetCorpus:
    """Shards under `uri`, any depth (only the file `only` when it is set). Holds no open handle; made by
    `open_corpus`."""

    uri: str
    image_column: str
    rows_per_slice: int = 1024
    only: str = ""

    def sources(self) -> list[Source]:
        """All shards, sorted by path."""
        found = storage.list_sources(f"{self.uri}/{self.only}" if self.only else self.uri)
        return [s for s in found if s.path.lower().endswith(PARQUET_SUFFIXES)]

    def slices(self, sources: Sequence[Source] | None = None) -> list[Slice]:
        """Runs of about `rows_per_slice` rows that end at row groups where those are small enough; an empty
        shard gives one empty slice. Reads every footer. UserError: unreadable shard, image column missing in
        one, or no rows at all."""
        paths = [s.path for s in (self.sources() if sources is None else sources)]
        ranges = storage.in_parallel(self._ranges, paths)
        if not any(stop for parts in ranges for _, stop in parts):
            raise UserError(f"The Parquet files in {self.uri} hold no rows: give a corpus that has images.")
        flat = [(p, a, b) for p, parts in zip(paths, ranges, strict=True) for a, b in parts]
        return [Slice(i, p, a, b) for i, (p, a, b) in enumerate(flat)]

    def units(self, slices: Sequence[Slice] | None = None) -> list[list[Slice]]:
        """What one writing task handles: all slices of a shard."""
        by_source: dict[str, list[Slice]] = defaultdict(list)
        for part in self.slices() if slices is None else slices:
            by_source[part.source].append(part)
        return list(by_source.values())

    def changed(self, sources: Sequence[Source]) -> list[str]:
        """One sentence for each shard that differs from `sources`; empty when nothing changed."""
        return storage.changes(sources, self.sources())

    def read(self, part: Slice) -> Iterator[Row]:
        """Every row of the slice once, in order; memory is bounded by a row group. UserError when the shard
        cannot be read."""
        with open_shard(self.uri, part.source) as shard:
            _check_rows(shard, part.stop)
            for start, batch in self._image_batches(shard, part.start, part.stop):
                for row, data in enumerate(image_values(batch.column(0)), start):
                    if part.start <= row < part.stop:
                        yield Row(row, f"{part.source}#{row}", data.as_py())

    def fetch(self, image_ids: Sequence[str]) -> list[bytes]:
        """The bytes of these images, in the order asked; each row group is read once. UserError for a shard
        that changed so that a row is gone or null."""
        wanted: dict[str, set[int]] = defaultdict(set)
        for image_id in image_ids:
            source, _, row = image_id.rpartition("#")
            wanted[source].add(int(row))
        pairs = storage.in_parallel(lambda item: self._fetch_rows(*item), list(wanted.items()), _FETCHES)
        found = {image_id: data for part in pairs for image_id, data in part.items()}
        return [found[i] for i in image_ids]

    def labels(self, part: Slice, column: str) -> list[str]:
        """The column's values as strings ("" for null), one a row of the slice. UserError: no such column."""
        with open_shard(self.uri, part.source) as shard:
            names = shard.schema.names
            if column not in names:
                raise UserError(
                    f"There is no column {column} in {part.source}: use one of {', '.join(names)}."
                )
            rows = (
                (row, value)
                for start, batch in shard.batches(part.start, part.stop, [column])
                for row, value in enumerate(batch.column(0).to_pylist(), start)
            )
            return ["" if v is None else str(v) for row, v in rows if part.start <= row < part.stop]

    def split(
        self,
        unit: Sequence[Slice],
        fate_N: Sequence[int] | np.ndarray,
        removed_columns: Mapping[str, list[Any]],
        kept_uri: str,
        removed_uri: str,
    ) -> tuple[int, int]:
        """Write the shard's kept rows (fate 0) to `kept_uri` and its removed rows (1), with
        `removed_columns` added, to `removed_uri`, under the same path; 2 (dead) goes nowhere.

        Values, schema, metadata, column order, row groups and codec stay. Kept is written even when empty,
        removed only when not. Returns (kept, removed)."""
        source, fates = unit[0].source, np.asarray(fate_N)
        kept, removed = int((fates == 0).sum()), int((fates == 1).sum())
        extra = storage.removed_arrays(dict(removed_columns), removed)
        storage.refuse_same_place(self.uri, kept_uri, removed_uri)
        with contextlib.ExitStack() as stack:
            shard = stack.enter_context(open_shard(self.uri, source))
            _check_rows(shard, len(fates), exactly=True)
            write_kept = stack.enter_context(open_writer(shard, kept_uri))
            write_removed = stack.enter_context(open_writer(shard, removed_uri, extra)) if removed else None
            row = taken = 0
            for table in shard.row_groups():
                fate = fates[row : row + len(table)]
                row += len(table)
                write_kept(table.filter(pa.array(fate == 0)))
                if write_removed and (fate == 1).any():
                    gone = table.filter(pa.array(fate == 1))
                    for name, values in extra.items():
                        gone = gone.append_column(name, values.slice(taken, len(gone)))
                    taken += len(gone)
                    write_removed(gone)
        if not removed:
            storage.delete(removed_uri, source)
        return kept, removed

    def rewrite(self, unit: Sequence[Slice], replacements: Mapping[str, bytes], out_uri: str) -> None:
        """Write the shard to `out_uri`, same path and layout, with the bytes of some images replaced."""
        storage.refuse_same_place(self.uri, out_uri)
        source = unit[0].source
        new = {
            int(i.rpartition("#")[2]): d for i, d in replacements.items() if i.rpartition("#")[0] == source
        }
        with open_shard(self.uri, source) as shard:
            if len(new) != len(replacements) or any(r >= shard.n_rows for r in new):
                raise ValueError(f"some of {len(replacements)} replacements are no rows of {source}")
            with open_writer(shard, out_uri) as write:
                row = 0
                for table in shard.row_groups():
                    write(self._replace(table, row, new))
                    row += len(table)

    def _ranges(self, source: str) -> list[tuple[int, int]]:
        with open_shard(self.uri, source) as shard:
            if shard.n_rows:
                _check_image_column(shard, self.image_column)
            return cut(shard.group_rows, self.rows_per_slice)

    def _image_batches(self, shard: Shard, start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        name = self.image_column
        nested = pa.types.is_struct(shard.schema.field(name).type)
        return shard.batches(start, stop, [f"{name}.bytes" if nested else name])

    def _fetch_rows(self, source: str, rows: set[int]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        with open_shard(self.uri, source) as shard:
            _check_rows(shard, max(rows) + 1)
            first = 0
            for n in shard.group_rows:
                here = sorted(r for r in rows if first <= r < first + n)
                first += n
                if not here:
                    continue
                for start, batch in self._image_batches(shard, here[0], here[-1] + 1):
                    values = image_values(batch.column(0))
                    inside = [r for r in here if start <= r < start + len(batch)]
                    found.update({f"{source}#{r}": values[r - start].as_py() for r in inside})
        if nulls := [i for i, data in found.items() if data is None]:
            raise UserError(f"The image {nulls[0]} is null: index the corpus again if it changed.")
        return found

    def _replace(self, table: pa.Table, first_row: int, new: Mapping[int, bytes]) -> pa.Table:
        here = {r - first_row: d for r, d in new.items() if first_row <= r < first_row + len(table)}
        if not here:
            return table
        index = table.column_names.index(self.image_column)
        field = table.schema.field(index)
        chunks, start = [], 0
        for chunk in table.column(index).chunks:
            values = chunk.to_pylist()
            for row, data in here.items():
                if start <= row < start + len(values):
                    old = values[row - start]
                    nested = pa.types.is_struct(field.type)
                    values[row - start] = {**(old or {}), "bytes": data} if nested else data
            chunks.append(pa.array(values, type=field.type))
            start += len(values)
        return table.set_column(index, field, pa.chunked_array(chunks, type=field.type))


def find_image_column(uri: str, paths: Sequence[str], asked: str | None) -> str:
    """The image column: `asked` when given and fit, or the only one there is, by the first of the
    shards `uri`/`paths` that has rows. Raises UserError that names the candidates otherwise."""
    for path in paths:
        with open_shard(uri, path) as shard:
            if not shard.n_rows:
                continue
            names = shard.schema.names
            if taken := [n for n in storage.REMOVED_TYPES if n in names]:
                raise UserError(f"The column {taken[0]} of {path} is needed for results: rename it.")
            if asked:
                _check_image_column(shard, asked)
                return asked
            fit = _candidates(shard)
            if len(fit) == 1:
                return fit[0]
            if fit:
                raise UserError(
                    f"Several columns of {path} may hold images: set image_column to one of {', '.join(fit)}."
                )
            raise UserError(
                f"No column of {path} holds images (binary or struct{{bytes, path}}): it has "
                f"{', '.join(names)}."
            )
    raise UserError(f"The Parquet files in {uri} hold no rows: give a corpus that has images.")


def _candidates(shard: Shard) -> list[str]:
    return [f.name for f in shard.schema if is_image_type(f.type)]


def _check_image_column(shard: Shard, name: str) -> None:
    names, fit = shard.schema.names, _candidates(shard)
    # A shard in which every image is null may have lost the column's type.
    if name in fit or (name in names and pa.types.is_null(shard.schema.field(name).type)):
        return
    wrong = "is not binary or struct{bytes, path}" if name in names else "is missing"
    advice = f"set image_column to {' or '.join(fit)}" if fit else f"the shard has only {', '.join(names)}"
    raise UserError(f"The image column {name} {wrong} in {shard.source}: {advice}.")


def _check_rows(shard: Shard, rows: int, exactly: bool = False) -> None:
    if shard.n_rows < rows or (exactly and shard.n_rows != rows):
        raise UserError(
            f"Parquet shard {shard.source} changed since it was indexed ({shard.n_rows} rows now): "
            "index again."
        )
