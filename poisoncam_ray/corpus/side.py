"""A table beside a tar: 00000.parquet beside 00000.tar, as img2dataset and NeMo Curator write them.

The table has a row for each sample, found by its key, and img2dataset adds a row for each failed download.
The tar's samples decide: a row of the table follows the sample of its key, and a row of no sample stays with
the kept ones, or goes with the removed ones where the shard keeps none. What img2dataset counted while it
downloaded lies in 00000_stats.json. It is copied as it is, and so describes the shard as it was downloaded.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import numpy as np
import pyarrow as pa

from poisoncam_ray.corpus.columns import is_text
from poisoncam_ray.corpus.parquet_shard import Shard, open_shard, open_writer, rows_where
from poisoncam_ray.corpus.protocol import KEPT
from poisoncam_ray.corpus.shardfile import UnreadableError
from poisoncam_ray.errors import UserError

KEYS = ("key", "id", "image_id")
"""Columns that may hold the samples' keys. The first is img2dataset's."""
ROWS_MAX = 2**20
"""Rows of a table, at most. img2dataset writes ten thousand, and equal rows compress to nothing."""
STATS = "_stats.json"
"""How the name ends of what img2dataset counted."""


def table_of(tar: str) -> str:
    """The name of a tar's table."""
    return f"{tar.rpartition('.')[0]}.parquet"


def stats_of(tar: str) -> str:
    """The name of what img2dataset counted of a tar."""
    return f"{tar.rpartition('.')[0]}{STATS}"


def key_column(uri: str, path: str) -> str:
    """The name of a table's column with the samples' keys.

    Raises:
        UnreadableError: the table's footer is damaged.
        UserError: no column can hold keys.
    """
    with open_shard(uri, path) as shard:
        return _key_column(shard)


def read_keys(uri: str, path: str) -> tuple[str, np.ndarray]:
    """Read a whole table, so that damage is found before any work.

    Args:
        uri: the corpus.
        path: the table's path in it.

    Returns:
        The name of the column with the keys, and their digests, uint64.

    Raises:
        UnreadableError: the table is damaged or has more than `ROWS_MAX` rows.
        UserError: no column can hold keys.
    """
    keys = array("Q")
    with open_shard(uri, path) as shard:
        column = _key_column(shard)
        if shard.n_rows > ROWS_MAX:
            why = f"{shard.n_rows:,} rows, more than the limit of {ROWS_MAX:,}"
            raise UnreadableError(f"The table {path}", why)
        for batch in shard.batches(0, shard.n_rows, None):
            keys.extend(digest(key) for key in batch.values().column(column).to_pylist() if key is not None)
    return column, np.array(keys, np.uint64)


def digest(key: str) -> int:
    """A hash of a sample's key, 0 … 2⁶⁴ − 1: it takes less memory than the key."""
    data = key.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def split_table(
    uri: str, path: str, fates: Mapping[str, int], places: Mapping[int, str], rest: int = KEPT
) -> None:
    """Write the rows of the kept and of the removed samples, with the schema, row groups and codecs of the
    table.

    Args:
        uri: the corpus.
        path: the table's path in it, and in the folders it is written to.
        fates: KEPT, REMOVED or DEAD by the sample's key.
        places: the folder for KEPT, for REMOVED, or for both.
        rest: the fate of a row of no sample.

    Raises:
        UserError: the table is gone or damaged.
    """
    with ExitStack() as stack:
        shard = stack.enter_context(open_shard(uri, path))
        column = _key_column(shard)
        writers = {fate: stack.enter_context(open_writer(shard, place)) for fate, place in places.items()}
        for table in _groups(shard):
            keys = table.column(column).to_pylist()
            fate_N = np.array([fates.get(key, rest) for key in keys], np.int8)
            for fate, write in writers.items():
                write(rows_where(table, fate_N == fate))


def _groups(shard: Shard) -> Iterator[pa.Table]:
    return (shard.table(group, rows) for group, rows in enumerate(shard.group_rows))


def _key_column(shard: Shard) -> str:
    names = shard.schema.names
    found = next((name for name in KEYS if name in names and is_text(shard.schema.field(name).type)), None)
    if found is None:
        raise UserError(
            f"The table {shard.source} beside the tar of that name has no text column with the samples' keys "
            f"({', '.join(KEYS[:-1])} or {KEYS[-1]}; it has {', '.join(names)}): add one, or take the table "
            "away."
        )
    return found
