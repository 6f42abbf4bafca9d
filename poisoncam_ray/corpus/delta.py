"""A Delta table as a corpus: the Parquet files of one version of the table.

The table's log names these files, and `deltalake` reads it. The files do not hold the partition columns:
their values are in the log and in the names of the folders (`label=3/`). The output is a folder of plain
Parquet shards and no Delta table. Its folders have the same names, so that readers of Hive partitions find
those columns.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from poisoncam_ray.corpus.columns import find_image_column
from poisoncam_ray.corpus.listing import list_sources, refuse_escaping_links
from poisoncam_ray.corpus.parquet import ParquetCorpus
from poisoncam_ray.corpus.protocol import Source
from poisoncam_ray.corpus.shardfile import reason_of, refuse_climbing
from poisoncam_ray.corpus.tables import DELTA_LOG
from poisoncam_ray.errors import UserError
from poisoncam_ray.store import connect, is_local

# Features of a table that change nothing about which rows a Parquet file holds, or are looked at here.
_FEATURES = {
    "columnMapping",
    "deletionVectors",
    "timestampNtz",
    "typeWidening",
    "typeWidening-preview",
    "v2Checkpoint",
    "vacuumProtocolCheck",
}
_REWRITE = "rewrite the table without them (Spark: REORG TABLE … APPLY (PURGE)), or export it to Parquet"


@dataclass(frozen=True)
class DeltaCorpus(ParquetCorpus):
    """The Parquet files of one version of the Delta table `uri`.

    Attributes:
        table_version: number of the version.
    """

    table_version: int = 0

    def sources(self) -> list[Source]:
        """The version's files, sorted by path."""
        with _table(self.uri, self.table_version) as table:
            return _files(self.uri, table, self.follow_links)


def can_read_delta() -> bool:
    """Whether the optional extra is installed."""
    return importlib.util.find_spec("deltalake") is not None


def open_delta(
    uri: str,
    image_column: str | None,
    rows_per_slice: int,
    version: int | None,
    follow_links: bool = False,
) -> DeltaCorpus:
    """Open a Delta table.

    Args:
        uri: the table's folder.
        image_column: the column that holds the images; None for the only one that can.
        rows_per_slice: rows of a slice, at most.
        version: number of the table's version; None for the current one. The corpus stays with the version
            that it was opened with.
        follow_links: whether links that leave the folder are followed.

    Raises:
        UserError: the extra `delta` is not installed, the log cannot be read, there is no such version, the
            table has deletion vectors or mapped columns, a file lies elsewhere, or no image column is found.
    """
    with _table(uri, version) as table:
        found: int = table.version()
        paths = [source.path for source in _files(uri, table, follow_links)]
    if not paths:
        raise UserError(
            f"Version {found} of the Delta table {uri} has no files: give another corpus.version."
        )
    column = find_image_column(uri, paths, image_column)
    return DeltaCorpus(uri, column, rows_per_slice, follow_links=follow_links, table_version=found)


@contextlib.contextmanager
def _table(uri: str, version: int | None) -> Iterator[Any]:
    """The deltalake table of one version.

    The log of a table on another store is copied here first. The store is then read with the credentials and
    the patience of all other reading.
    """
    if not can_read_delta():
        raise UserError(
            f"{uri} is a Delta table: install the extra that reads it (pip install 'poisoncam-ray[delta]')."
        )
    # An optional dependency.
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    fs, root = connect(uri)
    with contextlib.ExitStack() as stack:
        place = root
        if not is_local(fs):
            place = stack.enter_context(tempfile.TemporaryDirectory())
            for key in fs.find(f"{root}/{DELTA_LOG}"):
                refuse_climbing(key)
            fs.get(f"{root}/{DELTA_LOG}/", f"{place}/{DELTA_LOG}/", recursive=True)
        try:
            table = DeltaTable(place, version=version)
            _refuse_features(uri, table)
            if _has_deletion_vectors(table):
                raise UserError(f"The Delta table {uri} has deletion vectors: {_REWRITE}.")
        except DeltaError as error:
            of = "" if version is None else f"version {version} of "
            said = reason_of(Exception(str(error).partition("\n")[0]))
            raise UserError(
                f"The log of {of}the Delta table {uri} cannot be read ({said}): give another corpus.version, "
                "or export the table to Parquet."
            ) from error
        yield table


def _refuse_features(uri: str, table: Any) -> None:
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        raise UserError(
            f"The Delta table {uri} maps its columns to other names in the files: export it to Parquet."
        )
    if unknown := set(table.protocol().reader_features or ()) - _FEATURES:
        raise UserError(
            f"The Delta table {uri} needs {', '.join(sorted(unknown))}, which is not supported: export it to "
            "Parquet."
        )


def _has_deletion_vectors(table: Any) -> bool:
    from deltalake.exceptions import DeltaError

    if "deletionVectors" not in (table.protocol().reader_features or ()):
        return False
    try:
        return pa.table(table.deletion_vectors()).num_rows > 0
    except DeltaError:  # there are some, but their files were not copied or are gone
        return True


def _files(uri: str, table: Any, follow_links: bool) -> list[Source]:
    """The table's files, with size and tag as the store gives them."""
    listed = {source.path: source for source in list_sources(uri, of_table=True, follow_links=follow_links)}
    found = []
    for stored in pa.table(table.get_add_actions())["path"].to_pylist():
        path = unquote(stored)
        if "://" in path or path.startswith("/"):
            raise UserError(
                f"The file {path} lies outside the Delta table {uri}: export the table to Parquet."
            )
        refuse_climbing(path)
        if path not in listed:
            raise UserError(
                f"The file {path} of the Delta table {uri} is gone: give a later corpus.version, whose "
                "files were not vacuumed."
            )
        found.append(listed[path])
    if not follow_links:
        refuse_escaping_links(uri, (source.path for source in found))
    return sorted(found, key=lambda source: source.path)
