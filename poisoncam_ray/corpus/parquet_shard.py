"""One Parquet shard: opening it, reading it in bounded batches, and writing another with the same layout."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from poisoncam_ray.corpus.shardfile import ShardFile, UnreadableError, open_file, open_sink, reason_of

# Rows of a batch. It bounds the memory inside large row groups, and keeps a batch of nested binary values
# below the 2 GiB at which Arrow cannot chunk them.
_BATCH = 64
# A footer may announce so many rows whatever the size of the file.
_ROWS_FREE = 10_000_000
# Images hardly compress: a row group that unpacks to more than this many times its size holds none. Smaller
# row groups than _UNPACKED_FREE bytes pass.
_RATIO = 100
_UNPACKED_FREE = 2**28
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, struct.error)


@dataclass(frozen=True)
class Shard:
    """An open shard; `source` is its path relative to the corpus."""

    source: str
    file: pq.ParquetFile
    handle: ShardFile

    @property
    def n_rows(self) -> int:
        return self.file.metadata.num_rows

    @property
    def schema(self) -> pa.Schema:
        return self.file.schema_arrow

    @property
    def group_rows(self) -> list[int]:
        """Rows of each row group."""
        metadata = self.file.metadata
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def check_counts(self) -> None:
        """Raise ValueError if the footer's counts contradict each other or cannot be true."""
        groups = self.group_rows
        if min(groups, default=0) < 0 or sum(groups) != self.n_rows:
            raise ValueError(f"its footer counts {self.n_rows} rows, its row groups {sum(groups)}")
        # Millions of equal cells compress to nothing. Beyond that an image takes at least one byte.
        if self.n_rows > _ROWS_FREE + self.handle.source.size:
            raise ValueError(f"its footer counts {self.n_rows} rows in {self.handle.source.size} bytes")

    def batches(self, start: int, stop: int, columns: list[str] | None) -> Iterator[Batch]:
        """Read the rows [start, stop) in order, and no other row group than theirs.

        Args:
            start: number of the first row.
            stop: number after that of the last row.
            columns: names of the columns; None for all.

        Yields:
            Batches that cover the rows. The first and the last one may reach further. Damage makes the rest
            of its row group one batch with an `error`.
        """
        row = 0
        for group, n in enumerate(self.group_rows):
            end = row + n
            if row < stop and end > start:
                for batch in self._group(group, row, n, columns):
                    if batch.first >= stop:
                        break
                    if batch.first + batch.rows > start:
                        yield batch
            row = end

    def table(self, group: int, rows: int) -> pa.Table:
        """Read the first rows of a row group, with all columns.

        Args:
            group: number of the row group.
            rows: how many rows; up to a batch more may come.

        Raises:
            UnreadableError: the row group is damaged before that row.
        """
        read, have = [], 0
        for batch in self._group(group, 0, self.group_rows[group], None):
            read.append(batch.values())
            have += batch.rows
            if have >= rows:
                break
        # With one dictionary for the whole row group the writer keeps the categories and their order.
        return pa.Table.from_batches(read, schema=self.schema).unify_dictionaries()

    def _refuse_bomb(self, group: int) -> None:
        metadata = self.file.metadata.row_group(group)
        chunks = [metadata.column(i) for i in range(metadata.num_columns)]
        stored = sum(chunk.total_compressed_size for chunk in chunks)
        unpacked = sum(chunk.total_uncompressed_size for chunk in chunks)
        if unpacked > max(_UNPACKED_FREE, _RATIO * stored):
            reason = f"row group {group} would unpack from {stored} to {unpacked} bytes"
            raise UnreadableError(f"Parquet shard {self.source}", reason)

    def _group(self, group: int, first: int, n: int, columns: list[str] | None) -> Iterator[Batch]:
        row, end = first, first + n
        try:
            with reading(self.handle):
                self._refuse_bomb(group)
                batches = self.file.iter_batches(_BATCH, row_groups=[group], columns=columns)
            while row < end:
                with reading(self.handle):
                    batch = next(batches, None)
                if batch is None or row + len(batch) > end:
                    raise UnreadableError(f"Parquet shard {self.source}", "a row group of another length")
                yield Batch(row, len(batch), batch)
                row += len(batch)
        except UnreadableError as error:
            yield Batch(row, end - row, error=error)


@dataclass(frozen=True)
class Batch:
    """Rows [first, first + rows) of a shard, or the `error` why they cannot be read."""

    first: int
    rows: int
    read: pa.RecordBatch | None = None
    error: UnreadableError | None = None

    def values(self) -> pa.RecordBatch:
        """The rows' values.

        Raises:
            UnreadableError: they cannot be read.
        """
        if self.error:
            raise self.error
        return self.read


@contextlib.contextmanager
def open_shard(uri: str, source: str, version: str | None = None) -> Iterator[Shard]:
    """Open a Parquet shard and read its footer.

    Args:
        uri: the corpus.
        source: the shard's path in it.
        version: the version that was listed; None for whichever is there.

    Raises:
        UnreadableError: the footer cannot be read, or its counts cannot be true.
        UserError: the shard is gone or is not that version.
    """
    # Parquet knows the ranges it wants: a read-ahead cache would only fetch more.
    with contextlib.ExitStack() as stack:
        handle = stack.enter_context(open_file(uri, source, version, cache_type="none"))
        with reading(handle):
            file = pq.ParquetFile(handle, page_checksum_verification=True)
            shard = Shard(source, stack.enter_context(file), handle)
            shard.check_counts()
        yield shard


@contextlib.contextmanager
def reading(handle: ShardFile, kind: str = "Parquet") -> Iterator[None]:
    """Turn what a parser raises into UnreadableError, but not what the store raises.

    Args:
        handle: the shard that is parsed.
        kind: what the message calls it: Parquet or Arrow.
    """
    try:
        yield
    except Exception as error:
        if handle.trouble:
            raise handle.trouble from error
        if isinstance(error, _DAMAGE):
            raise UnreadableError(f"{kind} shard {handle.source.path}", reason_of(error)) from error
        raise


@contextlib.contextmanager
def open_writer(like: Shard, uri: str) -> Iterator[Callable[[pa.Table], None]]:
    """Write a new shard with the path, schema, metadata, codecs and encodings of another.

    Args:
        like: the other shard.
        uri: the folder for the new one. It appears there when the block ends without an exception.

    Yields:
        A function that writes a table as one row group; of an empty table it writes nothing.
    """
    with (
        open_sink(uri, like.source) as sink,
        pq.ParquetWriter(sink, like.schema, **_settings(like.file.metadata)) as writer,
    ):
        yield lambda table: writer.write_table(table, max(len(table), 1)) if len(table) else None


def _settings(metadata: pq.FileMetaData) -> dict[str, Any]:
    """The writer's options with which the file was written."""
    if not metadata.num_row_groups:
        return {}
    group = metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    codecs = {"UNCOMPRESSED": "none", "LZ4_RAW": "lz4", "LZ4_HADOOP": "lz4"}
    return {
        "version": metadata.format_version if metadata.format_version in ("1.0", "2.4", "2.6") else "2.6",
        "compression": {c.path_in_schema: codecs.get(c.compression, c.compression.lower()) for c in columns},
        "use_dictionary": [c.path_in_schema for c in columns if any("DICTIONARY" in e for e in c.encodings)],
        "use_deprecated_int96_timestamps": any(c.physical_type == "INT96" for c in columns),
        "use_compliant_nested_type": not any(".list.item" in c.path_in_schema for c in columns),
        "store_schema": b"ARROW:schema" in (metadata.metadata or {}),
        "write_page_index": any(c.has_offset_index for c in columns),
        "sorting_columns": group.sorting_columns or None,
    }


def cut(groups: Sequence[int], rows_per_slice: int) -> list[tuple[int, int]]:
    """Cut a shard into ranges of rows that end at row groups, where these are small enough.

    Args:
        groups: rows of each row group.
        rows_per_slice: rows of a range, at most.

    Returns:
        Ranges [start, stop) that cover all rows; one empty range if there are none.
    """
    ranges: list[tuple[int, int]] = []
    start = stop = 0
    for n in groups:
        if stop > start and stop - start + n > rows_per_slice:
            ranges.append((start, stop))
            start = stop
        stop += n
        while stop - start > rows_per_slice:
            ranges.append((start, start + rows_per_slice))
            start += rows_per_slice
    return [*ranges, (start, stop)] if stop > start or not ranges else ranges


def rows_where(table: pa.Table, wanted_N: np.ndarray) -> pa.Table:
    """The wanted rows, taken as runs of neighbours: Arrow has no filter for views of strings."""
    edges = np.flatnonzero(np.diff(wanted_N, prepend=False, append=False))
    runs = [table.slice(start, stop - start) for start, stop in edges.reshape(-1, 2).tolist()]
    return pa.concat_tables(runs) if runs else table.slice(0, 0)
