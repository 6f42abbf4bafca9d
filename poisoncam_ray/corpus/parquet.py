"""Parquet shards as a corpus: a row is an image, and "<shard>#<row>" is its id.

Ids are unique whatever the user's own keys are. The image column is binary or struct{bytes, path} (the
Hugging Face layout).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from poisoncam_ray.corpus.columns import column_fault, image_paths, image_values
from poisoncam_ray.corpus.listing import PARQUET_SUFFIXES, refuse_same_place
from poisoncam_ray.corpus.parquet_shard import Batch, cut, open_shard, open_writer, rows_where
from poisoncam_ray.corpus.protocol import (
    KEPT,
    OTHER_SCHEMA,
    REMOVED,
    UNREADABLE_SHARD,
    Lost,
    Problem,
    Row,
    Slice,
    Source,
)
from poisoncam_ray.corpus.shardfile import (
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
from poisoncam_ray.errors import UserError
from poisoncam_ray.store import delete, in_parallel

# Shards that `fetch` reads at once: each may hold a batch of a row group in memory.
_FETCHES = 4


@dataclass(frozen=True)
class ParquetCorpus:
    """Shards under `uri`, at any depth. `protocol.Corpus` says what the methods promise.

    Attributes:
        uri: the folder.
        image_column: the column that holds the images.
        rows_per_slice: rows of a slice, at most.
        only: the corpus's only shard; "" for all.
        follow_links: whether links that leave the folder are followed.
    """

    sharded: ClassVar[bool] = True
    kind: ClassVar[str] = "Parquet"
    """What messages call the shards."""

    uri: str
    image_column: str
    rows_per_slice: int = 1024
    only: str = ""
    follow_links: bool = False

    def sources(self) -> list[Source]:
        """All shards, sorted by path."""
        return list_shards(self.uri, self.only, PARQUET_SUFFIXES, self.follow_links)

    def check(self, source: Source) -> Problem | None:
        """Read the shard's footer and nothing else. A problem is a footer that cannot be read, or an image
        column that is missing or of another type. Other columns may differ between shards."""
        return self._footer(source)[1]

    def slices(self, sources: Sequence[Source] | None = None) -> list[Slice]:
        """Runs of rows that end at row groups, where these are small enough. Reads every footer. A shard
        without a readable footer gives one dead row; all rows of a shard without the image column are
        dead."""
        shards = in_parallel(self._scan, list(self.sources() if sources is None else sources))
        flat = [slice_ for slices in shards for slice_ in slices]
        refuse_all_dead(self.uri, flat, self.kind)
        return [replace(slice_, index=i) for i, slice_ in enumerate(flat)]

    def units(self, slices: Sequence[Slice] | None = None) -> list[list[Slice]]:
        """All slices of each shard."""
        return by_shard(self.slices() if slices is None else slices)

    def read(self, slice_: Slice, whole: bool = False) -> Iterator[Row]:
        """The rows, a batch of a row group in memory. Damage makes the rest of its row group dead. `whole`
        reads all columns; dead is then also a row that holds the path of its image and not the image."""
        if slice_.error is not None:
            yield from dead_rows(slice_)
            return
        source, start, stop = slice_.source, slice_.start, slice_.stop
        try:
            with self.open_shard(source, slice_.version) as shard:
                self._check_rows(shard, stop)
                for batch in shard.batches(start, stop, None if whole else self._columns(shard)):
                    rows = range(max(start, batch.first), min(stop, batch.first + batch.rows))
                    yield from self._rows(source, rows, batch)
        except UnreadableError as error:  # on opening: later damage comes as a batch
            yield from self._rows(source, range(start, stop), Batch(0, 0, error=error))

    def fetch(self, image_ids: Sequence[str]) -> list[bytes]:
        """The bytes of these images, in the order asked. Each row group is read once."""
        return fetch_by_shard(image_ids, self._fetch_rows, _FETCHES)

    def split(
        self,
        unit: Sequence[Slice],
        fate_N: Sequence[int] | np.ndarray,
        kept_uri: str | None,
        removed_uri: str,
        sha256: Mapping[str, str] | None = None,
    ) -> tuple[int, int]:
        """Write the kept and the removed rows as shards with the same path, values, schema, metadata, column
        order, row groups and codec. A shard that keeps every row is copied, byte for byte. Row groups of
        which nothing is written are not read. `sha256` is not used."""
        source, fates = unit[0].source, np.asarray(fate_N)
        refuse_climbing(source)
        if len(fates) != unit[-1].stop:
            raise ValueError(f"{len(fates)} fates for {unit[-1].stop} rows")
        kept, removed = int((fates == KEPT).sum()), int((fates == REMOVED).sum())
        refuse_same_place(self.uri, kept_uri, removed_uri)
        if not removed:
            delete(removed_uri, source)
        if unit[0].error is not None:
            if kept_uri is not None:
                delete(kept_uri, source)
            return 0, 0
        if not removed and (kept_uri is None or kept == len(fates)):
            if kept_uri is not None:
                copy_whole(self.uri, unit[0], kept_uri)
            return kept, 0
        wanted = (REMOVED,) if kept_uri is None else (KEPT, REMOVED)
        with contextlib.ExitStack() as stack:
            shard = stack.enter_context(self.open_shard(source, unit[0].version))
            self._check_rows(shard, len(fates), exactly=kept_uri is not None)
            write_kept = (
                stack.enter_context(self.open_writer(shard, kept_uri)) if kept_uri is not None else None
            )
            write_removed = stack.enter_context(self.open_writer(shard, removed_uri)) if removed else None
            row = 0
            for group, n in enumerate(shard.group_rows):
                living = np.flatnonzero(np.isin(fates[row : row + n], wanted))
                row += n
                if not len(living):
                    continue
                table = shard.table(group, int(living[-1]) + 1)
                fate = fates[row - n : row][: len(table)]
                if write_kept:
                    write_kept(rows_where(table, fate == KEPT))
                if write_removed and (fate == REMOVED).any():
                    write_removed(rows_where(table, fate == REMOVED))
        return kept, removed

    def finish(self, kept_uri: str, removed_uri: str, lost: Lost) -> None:
        """Nothing: all that is in the corpus belongs to a shard."""

    def open_shard(self, source: str, version: str | None = None) -> AbstractContextManager[Any]:
        """Open a shard; `parquet_shard.open_shard` says how."""
        return open_shard(self.uri, source, version)

    def open_writer(self, like: Any, uri: str) -> AbstractContextManager[Callable[[pa.Table], None]]:
        """Write a shard like another one; `parquet_shard.open_writer` says how."""
        return open_writer(like, uri)

    def _scan(self, source: Source) -> list[Slice]:
        """The shard's slices, not numbered yet."""
        group_rows, problem = self._footer(source)
        error, kind = (problem.reason, problem.kind) if problem else (None, None)
        return [
            Slice(0, source.path, start, stop, version=version_of(source), error=error, kind=kind)
            for start, stop in cut(group_rows, self.rows_per_slice)
        ]

    def _footer(self, source: Source) -> tuple[list[int], Problem | None]:
        """How many rows each row group has, and why none of them can be read. A shard without a readable
        footer counts as one row."""
        try:
            with self.open_shard(source.path, version_of(source)) as shard:
                group_rows, names = shard.group_rows, shard.schema.names
                wrong = column_fault(shard, self.image_column) if shard.n_rows else None
        except UnreadableError as error:
            return [1], Problem(source.path, None, UNREADABLE_SHARD, error.reason)
        if wrong is None:
            return group_rows, None
        reason = one_line(f"the image column {self.image_column} {wrong}; the columns are {', '.join(names)}")
        return group_rows, Problem(source.path, sum(group_rows), OTHER_SCHEMA, reason)

    def _columns(self, shard: Any) -> list[str]:
        name = self.image_column
        return [f"{name}.bytes" if pa.types.is_struct(shard.schema.field(name).type) else name]

    def _rows(self, source: str, rows: range, batch: Batch) -> Iterator[Row]:
        if batch.error:
            fault = "unreadable", batch.error.reason
            yield from (Row(row, f"{source}#{row}", None, fault) for row in rows)
            return
        column = self._column(batch)
        values, paths = image_values(column), image_paths(column)
        for row in rows:
            data = values[row - batch.first].as_py()
            path = paths[row - batch.first].as_py() if data is None and paths is not None else None
            # A reader would open the path, and show an image that nobody has looked at.
            elsewhere = ("not_embedded", one_line(f"the shard holds only its path, {path}")) if path else None
            yield Row(row, f"{source}#{row}", data, elsewhere)

    def _column(self, batch: Batch) -> pa.Array:
        read = batch.values()
        return read.column(read.schema.names.index(self.image_column))

    def _check_rows(self, shard: Any, rows: int, exactly: bool = False) -> None:
        if shard.n_rows < rows or (exactly and shard.n_rows != rows):
            raise UserError(
                f"{self.kind} shard {shard.source} changed since it was indexed ({shard.n_rows} rows now): "
                "index again."
            )

    def _fetch_rows(self, source: str, rows: set[int]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        with self.open_shard(source) as shard:
            self._check_rows(shard, max(rows) + 1)
            first = 0
            for n in shard.group_rows:
                here = sorted(r for r in rows if first <= r < first + n)
                first += n
                if not here:
                    continue
                for batch in shard.batches(here[0], here[-1] + 1, self._columns(shard)):
                    if inside := [r for r in here if batch.first <= r < batch.first + batch.rows]:
                        values = image_values(self._column(batch))
                        found.update({f"{source}#{r}": values[r - batch.first].as_py() for r in inside})
        if nulls := [i for i, data in found.items() if data is None]:
            raise UserError(f"The image {nulls[0]} is null: index the corpus again if it changed.")
        return found
