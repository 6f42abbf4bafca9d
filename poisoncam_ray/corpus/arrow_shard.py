"""One Arrow shard: an IPC stream, as `datasets.save_to_disk` writes it. It has no table of contents: the
headers of its messages are walked, and only they are read for that.

A header says how long its message is. It is believed no further than the file reaches.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa

from poisoncam_ray.corpus.parquet_shard import Batch, reading
from poisoncam_ray.corpus.shardfile import ShardFile, UnreadableError, open_file, open_sink, version_of
from poisoncam_ray.corpus.tar import read_at

# The headers lie apart: a longer read-ahead would fetch images that are skipped.
_READAHEAD: dict[str, Any] = {"cache_type": "readahead", "block_size": 2**16}
_MARK = 0xFFFFFFFF
_SCHEMA, _DICTIONARY, _RECORD_BATCH = 1, 2, 3
# The schema holds the features in words, all names of classes among them.
_HEADER_MAX = 2**26
# datasets writes a hundred images a batch.
_BATCH_MAX = 2**32


@dataclass(frozen=True)
class _Message:
    """A message's bytes [start, stop) in the file; `rows` of a record batch."""

    start: int
    stop: int
    rows: int


@dataclass(frozen=True)
class _Layout:
    """What the headers say: the schema, and where each record batch lies."""

    schema: pa.Schema
    batches: tuple[_Message, ...]


@dataclass(frozen=True)
class ArrowShard:
    """An open shard, as `parquet_shard.Shard` is one. A record batch is a row group."""

    source: str
    handle: ShardFile
    layout: _Layout

    @property
    def schema(self) -> pa.Schema:
        return self.layout.schema

    @property
    def group_rows(self) -> list[int]:
        """Rows of each record batch."""
        return [batch.rows for batch in self.layout.batches]

    @property
    def n_rows(self) -> int:
        return sum(self.group_rows)

    def batches(self, start: int, stop: int, columns: list[str] | None) -> Iterator[Batch]:
        """Read the record batches of the rows [start, stop), in order. One that is damaged comes with an
        `error`. `columns` is not used: a record batch is read whole."""
        first = 0
        for message in self.layout.batches:
            if first < stop and first + message.rows > start:
                try:
                    yield Batch(first, message.rows, self._read(message))
                except UnreadableError as error:
                    yield Batch(first, message.rows, error=error)
            first += message.rows

    def table(self, group: int, rows: int) -> pa.Table:
        """Read a record batch. `rows` is not used.

        Raises:
            UnreadableError: it is damaged.
        """
        return pa.Table.from_batches([self._read(self.layout.batches[group])], schema=self.schema)

    def _read(self, message: _Message) -> pa.RecordBatch:
        with reading(self.handle, "Arrow"):
            stored = read_at(self.handle, message.start, message.stop - message.start)
            batch = pa.ipc.read_record_batch(pa.py_buffer(stored), self.schema)
            # A stored length or offset may lead out of the batch: nothing of it is touched before this.
            batch.validate(full=True)
            if len(batch) != message.rows:
                raise ValueError("a record batch of another length")
            return batch


@contextlib.contextmanager
def open_arrow(uri: str, source: str, version: str | None = None) -> Iterator[ArrowShard]:
    """Open an Arrow shard and walk its headers; the process remembers where its record batches lie.

    Args:
        uri: the corpus.
        source: the shard's path in it.
        version: the version that was listed; None for whichever is there.

    Raises:
        UnreadableError: a header cannot be read or cannot be true, record batches are compressed, or columns
            are encoded by dictionaries, which `datasets` does not write.
        UserError: the shard is gone or is not that version.
    """
    with open_file(uri, source, version, **_READAHEAD) as handle:
        yield ArrowShard(source, handle, _layout(uri, source, version_of(handle.source)))


@lru_cache(maxsize=64)
def _layout(uri: str, source: str, version: str) -> _Layout:
    with open_file(uri, source, version, **_READAHEAD) as file, reading(file, "Arrow"):
        messages = list(_messages(file))
        if not messages or messages[0].rows >= 0:
            raise ValueError("it holds no schema")
        head, *batches = messages
        schema = pa.ipc.read_schema(pa.py_buffer(read_at(file, 0, head.stop)))
        # An offset of a row takes a byte at least.
        if sum(batch.rows for batch in batches) > file.source.size:
            raise ValueError(f"its headers count more rows than it has bytes ({file.source.size})")
        return _Layout(schema, tuple(batches))


def _messages(file: ShardFile) -> Iterator[_Message]:
    """All messages up to the end mark or the file's end; the first has −1 rows and holds the schema."""
    at, size = 0, file.source.size
    while at < size:
        mark, length = struct.unpack("<II", read_at(file, at, 8).ljust(8, b"\0"))
        if mark != _MARK:
            raise ValueError(f"no Arrow stream at byte {at}")
        if length == 0:
            return
        if length > min(_HEADER_MAX, size - at - 8):
            raise ValueError(f"a header of {length} bytes at byte {at}")
        kind, rows, body = _header(read_at(file, at + 8, length))
        stop = at + 8 + length + body
        if body < 0 or stop > size:
            raise ValueError(f"the file ends early, in the message at byte {at}")
        if kind == _DICTIONARY:
            raise ValueError("a column is encoded by a dictionary")
        if kind != (_RECORD_BATCH if at else _SCHEMA):
            raise ValueError(f"a message of another kind ({kind}) at byte {at}")
        if rows < 0 and at:
            raise ValueError(f"a record batch of {rows} rows at byte {at}")
        if body > _BATCH_MAX:
            raise ValueError(f"a record batch of {body} bytes, more than the limit of {_BATCH_MAX}")
        yield _Message(at, stop, rows)
        at = stop


def _header(data: bytes) -> tuple[int, int, int]:
    """Kind, rows and length of the body of a message, from its flatbuffer (Arrow's Message.fbs).

    Raises:
        ValueError: the body is compressed.
        struct.error: an offset leads out of the flatbuffer.
    """

    def field(table: int, number: int, form: str, default: int = 0) -> tuple[int, int]:
        """Place and value of a table's field."""
        vtable = table - struct.unpack_from("<i", data, table)[0]
        entry = 4 + 2 * number
        if vtable < 0 or entry >= struct.unpack_from("<H", data, vtable)[0]:
            return 0, default
        offset = struct.unpack_from("<H", data, vtable + entry)[0]
        return (table + offset, struct.unpack_from(form, data, table + offset)[0]) if offset else (0, default)

    root = struct.unpack_from("<I", data, 0)[0]
    kind, body = field(root, 1, "<B")[1], field(root, 3, "<q")[1]
    if kind != _RECORD_BATCH:
        return kind, -1, body
    place, offset = field(root, 2, "<I")
    batch = place + offset
    if field(batch, 3, "<I")[0]:
        raise ValueError("its record batches are compressed")
    return kind, field(batch, 0, "<q")[1], body


@contextlib.contextmanager
def open_arrow_writer(like: ArrowShard, uri: str) -> Iterator[Callable[[pa.Table], None]]:
    """Write a new shard with the path, schema and metadata of another.

    Args:
        like: the other shard.
        uri: the folder for the new one. It appears there when the block ends without an exception.

    Yields:
        A function that writes a table as one record batch; of an empty table it writes nothing.
    """
    with open_sink(uri, like.source) as sink, pa.ipc.new_stream(sink, like.schema) as writer:
        yield lambda table: writer.write_table(table.combine_chunks()) if len(table) else None
