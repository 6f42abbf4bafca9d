"""Folders that are tables of another format. Their files also hold rows that were deleted from the table, so
such a folder is never read file by file.
"""

from __future__ import annotations

import re

from poisoncam_ray.errors import UserError
from poisoncam_ray.store import connect, exists

DELTA_LOG = "_delta_log"
# A path of the folder, by which the format shows.
_MARKS = {
    "Delta": re.compile(rf"(?:^|/){DELTA_LOG}/"),
    "Hudi": re.compile(r"(?:^|/)\.hoodie/"),
    "Iceberg": re.compile(
        r"(?:^|/)metadata/(?:v\d+|\d+-[0-9a-f-]{36})(?:\.gz)?\.metadata\.json(?:\.gz)?$", re.ASCII
    ),
    "Lance": re.compile(r"(?:^|/)data/[^/]+\.lance$"),
}
_ADVICE = {
    "Delta": "give that folder with corpus.format=delta, for which the extra is needed (pip install "
    "'poisoncam-ray[delta]'), or export the table to Parquet",
    "Hudi": "export the table to Parquet (Spark: spark.read.format('hudi').load(…).write.parquet(…))",
    "Iceberg": "export the table to Parquet (Spark: spark.table(…).write.parquet(…))",
    "Lance": "export the table to Parquet (lance.dataset(…).to_batches() into pyarrow.parquet.ParquetWriter)",
}


def refuse_table(uri: str, path: str) -> None:
    """Refuse a folder that belongs to a table.

    Args:
        uri: the corpus.
        path: of a file or folder in it, relative; a folder ends in "/".

    Raises:
        UserError: the path is one of a Delta, Iceberg, Lance or Hudi table.
    """
    for name, mark in _MARKS.items():
        if found := mark.search(path):
            place = f"{uri.rstrip('/')}/{path[: found.start()]}".rstrip("/")
            article = "an" if name == "Iceberg" else "a"
            raise UserError(
                f"{place} is {article} {name} table, whose files may hold deleted rows: {_ADVICE[name]}."
            )


def is_delta(uri: str) -> bool:
    """Whether the folder is a Delta table. A folder that may not be read is refused by its listing."""
    try:
        return exists(uri, DELTA_LOG)
    except PermissionError:
        return False


def refuse_partition(uri: str) -> None:
    """Raise UserError for a partition's folder (name=value) of a Delta table: only the
    table's log says what was deleted from it."""
    fs, root = connect(uri)
    table = root
    while "=" in table.rpartition("/")[2]:
        table = table.rpartition("/")[0]
    if table != root and is_delta(fs.unstrip_protocol(table)):
        raise UserError(f"{uri} is one partition of the Delta table {table}: give the whole table.")
