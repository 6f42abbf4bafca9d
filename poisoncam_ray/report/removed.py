"""The removed images as one table: which, why, and where the trigger is."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.csv

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder
from poisoncam_ray.review import Decisions
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


def restored_csv(decisions: Decisions) -> bytes:
    """The table of the flagged images that people restored, in the order of the corpus.

    Columns: artifact.RESTORED_SCHEMA. Text is quoted as in `removed_csv`.

    Args:
        decisions: the review of a run.

    Returns:
        UTF-8 text: a header, and a line for each restored image.
    """
    families = decisions.flagged
    rows = [
        {
            "image_id": image_id,
            "family": families[index][image_id],
            "restored_by": entry.who,
            "when": entry.when,
            "note": entry.note,
        }
        for index, kept in sorted(decisions.restored().items())
        for image_id, entry in kept.items()
    ]
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(pa.Table.from_pylist(rows, schema=artifact.RESTORED_SCHEMA), sink)
    return sink.getvalue().to_pybytes()
