"""One Parquet shard: opened, streamed in bounded batches, and written again with the same layout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from poisoncam_ray.corpus import storage
from poisoncam_ray.errors import UserError

# Rows decoded at once: bounds memory inside large row groups, and keeps each batch of nested binary values
# below the 2 GiB at which Arrow cannot chunk them.
_BATCH = 64


@dataclass(frozen=True)
class Shard:
    """An open shard; `source` is its path relative to the corpus."""

    source: str
    file: pq.ParquetFile

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

    def batches(self, start: int, stop: int, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches that cover rows [start, stop), each with the row number it begins at; reads only the row
        groups touched, so the first and last batch may reach further."""
        groups, begin, row = [], None, 0
        for group, n in enumerate(self.group_rows):
            if row < stop and row + n > start:
                groups.append(group)
                begin = row if begin is None else begin
            row += n
        row = begin or 0
        for batch in self._stream(groups, columns):
            if row >= stop:
                return
            if row + len(batch) > start:
                yield row, batch
            row += len(batch)

    def row_groups(self) -> Iterator[pa.Table]:
        """Each row group, all columns."""
        for group in range(self.file.metadata.num_row_groups):
            table = pa.Table.from_batches(list(self._stream([group], None)), schema=self.schema)
            # One dictionary a row group, or the writer would lose categories and their order.
            yield table.unify_dictionaries()

    def _stream(self, groups: list[int], columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        if not groups:
            return
        with _reading(self.source):
            batches = self.file.iter_batches(_BATCH, row_groups=groups, columns=columns)
        while True:
            with _reading(self.source):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


@contextlib.contextmanager
def open_shard(uri: str, source: str) -> Iterator[Shard]:
    """Open the shard `uri`/`source`. Raises UserError naming it when it cannot be read."""
    fs, root = storage.connect(uri)
    with contextlib.ExitStack() as stack:
        with _reading(source):
            # Parquet knows the ranges it wants: a read-ahead cache would only fetch more.
            remote = {} if storage.is_local(fs) else {"cache_type": "none"}
            handle = stack.enter_context(fs.open(f"{root}/{source}", "rb", **remote))
            shard = Shard(source, stack.enter_context(pq.ParquetFile(handle)))
        yield shard


@contextlib.contextmanager
def _reading(source: str) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(
            f"Parquet shard {source} cannot be read ({reason}): replace it or take it out of the corpus."
        ) from error


@contextlib.contextmanager
def open_writer(
    like: Shard, uri: str, extra: Mapping[str, pa.Array] | None = None
) -> Iterator[Callable[[pa.Table], None]]:
    """A function that writes a table as one row group (none when it is empty) of a new shard at `uri`, same
    path, schema, metadata, codecs and encodings as `like`, plus the columns `extra`. The shard appears when
    the block ends well."""
    schema = like.schema
    for name, values in (extra or {}).items():
        schema = schema.append(pa.field(name, values.type))
    with (
        storage.whole_file(uri, like.source) as path,
        open(path, "wb") as sink,
        pq.ParquetWriter(sink, schema, **_settings(like.file.metadata)) as writer,
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


def is_image_type(kind: pa.DataType) -> bool:
    """Binary, or a struct with a binary field `bytes`."""
    if pa.types.is_struct(kind):
        i = kind.get_field_index("bytes")
        return i >= 0 and _is_binary(kind.field(i).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def image_values(array: pa.Array) -> pa.Array:
    """The binary values of an image column, null where the struct or its bytes are null."""
    if pa.types.is_struct(array.type):
        array = array.flatten()[array.type.get_field_index("bytes")]
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
