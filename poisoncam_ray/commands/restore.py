"""The command `restore`: put flagged images back into the clean corpus."""

from __future__ import annotations

import csv
import io
from typing import Annotated

import typer

from poisoncam_ray.commands.options import AsJson, Output, Quiet, RunUri
from poisoncam_ray.commands.review import By, Family, Ids, MoreIds, Note, decide, named_images
from poisoncam_ray.errors import UserError
from poisoncam_ray.program import examples

COLUMN = "image_id"


@examples(
    "poisoncam restore defended/ --ids photos/cat/17.jpg photos/cat/40.jpg",
    "poisoncam restore defended/ --family 2 --by ann",
    "poisoncam restore defended/ --file wrong.csv",
    "poisoncam restore defended/ --family 2 --undo",
)
def restore(
    run: RunUri,
    more: MoreIds = None,
    ids: Ids = None,
    family: Family = None,
    file: Annotated[
        str | None,
        typer.Option(
            help=f"text file of ids, one a line, or CSV with the column {COLUMN} (as report/removed.csv)"
        ),
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="remove them again")] = False,
    by: By = None,
    note: Note = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Put flagged images back into the clean corpus: they were removed wrongly.

    The decision is logged in the run folder. `defend` with the same command keeps it; --undo takes it back.
    """
    given = [*(ids or ()), *(more or ())]
    if file is not None and given:
        raise UserError("Give --file or ids, not both.")
    named = named_images(given if file is None else read_ids(file), family)
    from poisoncam_ray.review import RESTORE, UNDO

    decide(run, UNDO if undo else RESTORE, named, by, note, Output(as_json, quiet))


def read_ids(place: str) -> list[str]:
    """The ids in a file.

    Args:
        place: text with one id a line, or CSV whose first line names the column image_id; local or remote.

    Raises:
        UserError: the file cannot be read, or holds no id.
    """
    from poisoncam_ray.store import read_bytes

    folder, _, name = place.rpartition("/")
    try:
        text = read_bytes(folder or ("/" if place.startswith("/") else "."), name).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The file {place} cannot be read: {error}.") from None
    rows = csv.DictReader(io.StringIO(text))
    table = COLUMN in (rows.fieldnames or ())
    found = [row[COLUMN] for row in rows] if table else text.splitlines()
    if not (found := [image_id for image_id in found if image_id]):
        raise UserError(f"The file {place} holds no ids: write one a line.")
    return found
