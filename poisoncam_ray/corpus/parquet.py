"""Parquet shards as a corpus: a row is an image, "<shard>#<row>" its id, so ids are unique whatever the
user's own keys are. The image column is binary or struct{bytes, path} (the Hugging Face layout).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from poisoncam_ray.corpus import storage
from poisoncam_ray.corpus.columns import column_fault, image_values
from poisoncam_ray.corpus.shardfile import (
    OTHER_SCHEMA,
    UNREADABLE_SHARD,
    Problem,
    UnreadableError,
    by_shard,
    copy_whole,
    dead_rows,
    fetch_by_shard,
    list_shards,
    one_line,
    refuse_all_dead,
    refuse_climbing,
    version_of,
)
from poisoncam_ray.corpus.shards import Piece, Shard, cut, open_shard, open_writer
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
        return list_shards(self.uri, self.only, PARQUET_SUFFIXES)

    def check(self, source: Source) -> Problem | None:
        """Read the shard's footer and nothing else.

        Args:
            source: The shard as listed.

        Returns:
            Why none of its rows can be read: it has no readable footer, or its image column is missing or of
            another type. None when there is no such reason. Other columns may differ between shards.

        Raises:
            UserError: The shard is gone or changed since it was listed, or a column has the name of one that
                results need.
        """
        return self._footer(source)[1]

    def slices(self, sources: Sequence[Source] | None = None) -> list[Slice]:
        """Runs of about `rows_per_slice` rows that end at row groups where those are small enough; an empty
        shard gives one empty slice. Reads every footer. A shard without a readable footer gives one dead
        row; all rows of a shard without the image column are dead. UserError: no shard gives a row."""
        shards = storage.in_parallel(self._scan, list(self.sources() if sources is None else sources))
        flat = [part for parts in shards for part in parts]
        refuse_all_dead(self.uri, flat, "Parquet")
        return [replace(part, index=i) for i, part in enumerate(flat)]

    def units(self, slices: Sequence[Slice] | None = None) -> list[list[Slice]]:
        """What one writing task handles: all slices of a shard."""
        return by_shard(self.slices() if slices is None else slices)

    def read(self, part: Slice, whole: bool = False) -> Iterator[Row]:
        """Every row of the slice once, in order; memory is bounded by a row group. A dead row has an `error`:
        what cannot be read and the rest of its row group. `whole` demands that all columns can be read, not
        the image alone. UserError when the shard is gone or changed."""
        if part.error is not None:
            yield from dead_rows(part)
            return
        try:
            with open_shard(self.uri, part.source, part.version) as shard:
                _check_rows(shard, part.stop)
                for piece in shard.pieces(part.start, part.stop, None if whole else self._columns(shard)):
                    first, stop = max(part.start, piece.first), min(part.stop, piece.first + piece.rows)
                    yield from self._rows(part.source, range(first, stop), piece)
        except UnreadableError as error:  # on opening: later damage comes as a piece
            yield from self._rows(part.source, range(part.start, part.stop), Piece(0, 0, error=error))

    def fetch(self, image_ids: Sequence[str]) -> list[bytes]:
        """The bytes of these images, in the order asked; each row group is read once. UserError for a shard
        that changed so that a row is gone or null."""
        return fetch_by_shard(image_ids, self._fetch_rows, _FETCHES)

    def labels(self, part: Slice, column: str) -> list[str]:
        """The column's values as strings ("" for null or dead), one a row of the slice. UserError: no such
        column."""
        if part.error is not None:
            return [""] * (part.stop - part.start)
        found = [""] * (part.stop - part.start)
        with open_shard(self.uri, part.source, part.version) as shard:
            names = shard.schema.names
            if column not in names:
                raise UserError(
                    f"There is no column {column} in {part.source}: use one of {', '.join(names)}."
                )
            for piece in shard.pieces(part.start, part.stop, [column]):
                values = [] if piece.error else piece.whole().column(0).to_pylist()
                for row, value in enumerate(values, piece.first):
                    if part.start <= row < part.stop and value is not None:
                        found[row - part.start] = str(value)
        return found

    def split(
        self,
        unit: Sequence[Slice],
        fate_N: Sequence[int] | np.ndarray,
        kept_uri: str,
        removed_uri: str,
        sha256: Mapping[str, str] | None = None,
    ) -> tuple[int, int]:
        """Write the shard's kept rows (fate 0) to `kept_uri` and its removed rows (1) to `removed_uri`, under
        the same path; 2 (dead) goes nowhere.

        Values, schema, metadata, column order, row groups and codec stay. Kept is written even when empty
        (not for a shard that cannot be read at all), removed only when not. Row groups that are wholly dead
        are not read; UserError when another row cannot be. `sha256` is not used: the shard's version tells of
        a change. Returns (kept, removed)."""
        source, fates = unit[0].source, np.asarray(fate_N)
        refuse_climbing(source)
        kept, removed = int((fates == 0).sum()), int((fates == 1).sum())
        storage.refuse_same_place(self.uri, kept_uri, removed_uri)
        if unit[0].error is not None:
            storage.delete(kept_uri, source)
            storage.delete(removed_uri, source)
            return 0, 0
        with contextlib.ExitStack() as stack:
            shard = stack.enter_context(open_shard(self.uri, source, unit[0].version))
            _check_rows(shard, len(fates), exactly=True)
            write_kept = stack.enter_context(open_writer(shard, kept_uri))
            write_removed = stack.enter_context(open_writer(shard, removed_uri)) if removed else None
            row = 0
            for group, n in enumerate(shard.group_rows):
                living = np.flatnonzero(fates[row : row + n] != 2)
                row += n
                if not len(living):
                    continue
                table = shard.table(group, int(living[-1]) + 1)
                fate = fates[row - n : row][: len(table)]
                write_kept(_rows_of(table, fate == 0))
                if write_removed and (fate == 1).any():
                    write_removed(_rows_of(table, fate == 1))
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
        if unit[0].error is not None:
            copy_whole(self.uri, unit[0], out_uri)
            return
        with open_shard(self.uri, source, unit[0].version) as shard:
            if len(new) != len(replacements) or any(r >= shard.n_rows for r in new):
                raise ValueError(f"some of {len(replacements)} replacements are no rows of {source}")
            with open_writer(shard, out_uri) as write:
                row = 0
                for group, n in enumerate(shard.group_rows):
                    write(self._replace(shard.table(group, n), row, new))
                    row += n

    def _scan(self, source: Source) -> list[Slice]:
        """The shard's slices, not numbered yet."""
        group_rows, problem = self._footer(source)
        error, kind = (problem.reason, problem.kind) if problem else (None, None)
        return [
            Slice(0, source.path, start, stop, version=version_of(source), error=error, kind=kind)
            for start, stop in cut(group_rows, self.rows_per_slice)
        ]

    def _footer(self, source: Source) -> tuple[list[int], Problem | None]:
        """The rows of each row group, and why none of them can be read. A shard without a readable footer
        counts as one row."""
        try:
            with open_shard(self.uri, source.path, version_of(source)) as shard:
                group_rows, names = shard.group_rows, shard.schema.names
                wrong = column_fault(shard, self.image_column) if shard.n_rows else None
        except UnreadableError as error:
            return [1], Problem(source.path, None, UNREADABLE_SHARD, error.reason)
        if wrong is None:
            return group_rows, None
        reason = one_line(f"the image column {self.image_column} {wrong}; the columns are {', '.join(names)}")
        return group_rows, Problem(source.path, sum(group_rows), OTHER_SCHEMA, reason)

    def _columns(self, shard: Shard) -> list[str]:
        name = self.image_column
        return [f"{name}.bytes" if pa.types.is_struct(shard.schema.field(name).type) else name]

    def _rows(self, source: str, rows: range, piece: Piece) -> Iterator[Row]:
        if piece.error:
            fault = "unreadable", piece.error.reason
            yield from (Row(row, f"{source}#{row}", None, fault) for row in rows)
            return
        batch = piece.whole()
        values = image_values(batch.column(batch.schema.names.index(self.image_column)))
        yield from (Row(row, f"{source}#{row}", values[row - piece.first].as_py()) for row in rows)

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
                for piece in shard.pieces(here[0], here[-1] + 1, self._columns(shard)):
                    if inside := [r for r in here if piece.first <= r < piece.first + piece.rows]:
                        values = image_values(piece.whole().column(0))
                        found.update({f"{source}#{r}": values[r - piece.first].as_py() for r in inside})
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


def _rows_of(table: pa.Table, wanted_N: np.ndarray) -> pa.Table:
    """Rows of the table as runs of neighbours: Arrow has no filter for views of strings."""
    edges = np.flatnonzero(np.diff(wanted_N, prepend=False, append=False))
    runs = [table.slice(start, stop - start) for start, stop in edges.reshape(-1, 2).tolist()]
    return pa.concat_tables(runs) if runs else table.slice(0, 0)


def _check_rows(shard: Shard, rows: int, exactly: bool = False) -> None:
    if shard.n_rows < rows or (exactly and shard.n_rows != rows):
        raise UserError(
            f"Parquet shard {shard.source} changed since it was indexed ({shard.n_rows} rows now): "
            "index again."
        )
