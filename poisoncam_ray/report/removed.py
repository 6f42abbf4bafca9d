"""The removed images as one table: which, why, and where the trigger is."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.csv

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder


def removed_csv(run: Folder) -> bytes:
    """removed.csv: a line for every removed image, in the order of the corpus (artifact.REMOVED_SCHEMA).

    Args:
        run: a run folder whose Clean stage is committed.
    """
    clean = run / artifact.CLEAN
    names = [name for name in clean.names() if name.endswith(".parquet")]
    tables = [clean.read_table(name) for name in names] or [artifact.REMOVED_SCHEMA.empty_table()]
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(pa.concat_tables(tables), sink)
    return sink.getvalue().to_pybytes()
