"""The removed images as one table: which, why, and where the trigger is."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.csv

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder


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
    clean = run / artifact.CLEAN
    names = [name for name in clean.names() if name.endswith(".parquet")]
    tables = [clean.read_table(name) for name in names] or [artifact.REMOVED_SCHEMA.empty_table()]
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(pa.concat_tables(tables), sink)
    return sink.getvalue().to_pybytes()
