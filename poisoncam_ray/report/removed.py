"""The removed images as one table: which, why, and where the trigger is."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.csv

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder
from poisoncam_ray.store import in_parallel


def removed_table(run: Folder) -> pa.Table:
    """The removed images, in the order of the corpus (artifact.REMOVED_SCHEMA).

    Args:
        run: a run folder whose Clean stage is committed.
    """
    clean = run / artifact.CLEAN
    names = [name for name in clean.names() if name.endswith(".parquet")]
    return pa.concat_tables(in_parallel(clean.read_table, names) or [artifact.REMOVED_SCHEMA.empty_table()])


def removed_csv(run: Folder) -> bytes:
    """The table of the removed images, in the order of the corpus.

    Columns: artifact.REMOVED_SCHEMA. Text is quoted as RFC 4180 asks, so an image id may hold commas, quotes
    and line breaks. Text is not altered: an id such as `=cmd` stays as it is, because a prefix against
    formulas would make it the id of no image. Readers that execute formulas must import the text columns as
    text.

    Args:
        run: a run folder whose Clean stage is committed.

    Returns:
        UTF-8 text: a header, and a line for each removed image.
    """
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(removed_table(run), sink)
    return sink.getvalue().to_pybytes()
