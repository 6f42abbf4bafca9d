"""One Parquet shard: opened, streamed in bounded batches, and written again with the same layout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from poisoncam_ray.corpus import storage
from poisoncam_ray.corpus.shardfile import ShardFile, UnreadableError, open_file, reason_of

# Rows decoded at once: bounds memory inside large row groups, and keeps each batch of nested binary values
# below the 2 GiB at which Arrow cannot chunk them.
_BATCH = 64
_ROWS_FREE = 10_000_000
# Images hardly compress: a row group that unpacks to more than this many times its size is no corpus.
_RATIO = 100
_UNPACKED_FREE = 2**28


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
        """Raise ValueError when the footer's counts contradict each other or cannot be true."""
        groups = self.group_rows
        if min(groups, default=0) < 0 or sum(groups) != self.n_rows:
            raise ValueError(f"its footer counts {self.n_rows} rows, its row groups {sum(groups)}")
        # Millions of equal cells compress to nothing; beyond that an image takes a byte at least.
        if self.n_rows > _ROWS_FREE + self.handle.source.size:
            raise ValueError(f"its footer counts {self.n_rows} rows in {self.handle.source.size} bytes")

    def pieces(self, start: int, stop: int, columns: list[str] | None) -> Iterator[Piece]:
        """Rows that cover [start, stop), in order; all columns when `columns` is None. Reads only the row
        groups touched, so the first and last piece may reach further. Damage costs the rest of its group."""
        row = 0
        for group, n in enumerate(self.group_rows):
            end = row + n
            if row < stop and end > start:
                for piece in self._group(group, row, n, columns):
                    if piece.first >= stop:
                        break
                    if piece.first + piece.rows > start:
                        yield piece
            row = end

    def table(self, group: int, rows: int) -> pa.Table:
        """The first `rows` or a few more rows of a row group, all columns. Raises UnreadableError."""
        batches, have = [], 0
        for piece in self._group(group, 0, self.group_rows[group], None):
            batches.append(piece.whole())
            have += piece.rows
            if have >= rows:
                break
        # One dictionary a row group, or the writer would lose categories and their order.
        return pa.Table.from_batches(batches, schema=self.schema).unify_dictionaries()

    def _refuse_bomb(self, group: int) -> None:
        metadata = self.file.metadata.row_group(group)
        chunks = [metadata.column(i) for i in range(metadata.num_columns)]
        stored = sum(chunk.total_compressed_size for chunk in chunks)
        unpacked = sum(chunk.total_uncompressed_size for chunk in chunks)
        if unpacked > max(_UNPACKED_FREE, _RATIO * stored):
            reason = f"row group {group} would unpack from {stored} to {unpacked} bytes"
            raise UnreadableError(f"Parquet shard {self.source}", reason)

    def _group(self, group: int, first: int, n: int, columns: list[str] | None) -> Iterator[Piece]:
        row, end = first, first + n
        try:
            with _reading(self.handle):
                self._refuse_bomb(group)
                batches = self.file.iter_batches(_BATCH, row_groups=[group], columns=columns)
            while row < end:
                with _reading(self.handle):
                    batch = next(batches, None)
                if batch is None or row + len(batch) > end:
                    raise UnreadableError(f"Parquet shard {self.source}", "a row group of another length")
                yield Piece(row, len(batch), batch)
                row += len(batch)
        except UnreadableError as error:
            yield Piece(row, end - row, error=error)


@dataclass(frozen=True)
class Piece:
    """Rows [first, first + rows) of a shard, or why they cannot be read."""

    first: int
    rows: int
    batch: pa.RecordBatch | None = None
    error: UnreadableError | None = None

    def whole(self) -> pa.RecordBatch:
        """The batch. Raises UnreadableError when there is none."""
        if self.error:
            raise self.error
        return self.batch


@contextlib.contextmanager
def open_shard(uri: str, source: str, version: str | None = None) -> Iterator[Shard]:
    """Open the shard `uri`/`source`. Raises UnreadableError when its footer cannot be read, and all that
    `open_file` raises."""
    # Parquet knows the ranges it wants: a read-ahead cache would only fetch more.
    with contextlib.ExitStack() as stack:
        handle = stack.enter_context(open_file(uri, source, version, cache_type="none"))
        with _reading(handle):
            file = pq.ParquetFile(handle, page_checksum_verification=True)
            shard = Shard(source, stack.enter_context(file), handle)
            shard.check_counts()
        yield shard


@contextlib.contextmanager
def _reading(handle: ShardFile) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if handle.trouble:
            raise handle.trouble from error
        if isinstance(error, pa.ArrowException | OSError | ValueError | KeyError | MemoryError):
            raise UnreadableError(f"Parquet shard {handle.source.path}", reason_of(error)) from error
        raise


@contextlib.contextmanager
def open_writer(like: Shard, uri: str) -> Iterator[Callable[[pa.Table], None]]:
    """A function that writes a table as one row group (none when it is empty) of a new shard at `uri`, same
    path, schema, metadata, codecs and encodings as `like`. The shard appears when the block ends well."""
    with (
        storage.whole_file(uri, like.source) as path,
        open(path, "wb") as sink,
        pq.ParquetWriter(sink, like.schema, **_settings(like.file.metadata)) as writer,
    ):
        yield lambda table: writer.write_table(table, max(len(table), 1)) if len(table) else None


def _settings(metadata: pq.FileMetaData) -> dict[str, Any]:
    """Writer options that repeat how the file was written."""
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
    """Ranges [start, stop) of at most `rows_per_slice` rows over row groups of these sizes; whole row groups
    where they fit, one empty range when there are no rows."""
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
