"""The command `review`: accept or reject what a run has flagged, and read what was decided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from poisoncam_ray.commands.options import AsJson, Output, Quiet, RunUri
from poisoncam_ray.errors import StageFailedError, UserError
from poisoncam_ray.program import examples, printable
from poisoncam_ray.signals import end_on_signals

if TYPE_CHECKING:
    from poisoncam_ray.review import Entry, Named

SLICES_HERE = 64
"""So many changed slices are written by this process. For more, Ray is started."""
LOGGED = (
    "The decision is logged. The next decision applies it, or the command that made the run, given again."
)
Ids = Annotated[
    list[str] | None, typer.Option("--ids", help="ids of flagged images; repeat, or list several")
]
MoreIds = Annotated[list[str] | None, typer.Argument(metavar="[ID]…", help="more ids", show_default=False)]
Family = Annotated[int | None, typer.Option(help="all flagged images of this trigger family")]
By = Annotated[str | None, typer.Option("--by", help="who decides (this user on this machine)")]
Note = Annotated[str, typer.Option(help="why")]


@examples(
    "poisoncam review defended/   # what was decided so far",
    'poisoncam review defended/ --accept --family 1 --note "a pasted logo"',
    'poisoncam review defended/ --reject --family 2 --by ann --note "a watermark of ours"',
    "poisoncam review defended/ --reject --ids train/003.parquet#17 train/003.parquet#40",
)
def review(
    run: RunUri,
    more: MoreIds = None,
    accept: Annotated[bool, typer.Option("--accept", help="say that these were removed rightly")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="keep these, which were removed wrongly")] = False,
    family: Family = None,
    ids: Ids = None,
    by: By = None,
    note: Note = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Accept or reject a trigger family or images. Every decision is logged with who and when.

    What is rejected goes back to the clean corpus, as by `restore`. Accepting changes no row. Without a
    decision, the log is shown.
    """
    given = [*(ids or ()), *(more or ())]
    said = Output(as_json, quiet)
    if accept and reject:
        raise UserError("Give --accept or --reject, not both.")
    if not accept and not reject:
        if given or family is not None:
            raise UserError("Give --accept or --reject with what is decided.")
        show_log(run, said)
        return
    named = named_images(given, family)
    from poisoncam_ray.review import ACCEPT, REJECT

    decide(run, REJECT if reject else ACCEPT, named, by, note, said)


def named_images(ids: Sequence[str], family: int | None) -> Named:
    """The images that the options name.

    Raises:
        UserError: they name none, or name them in two ways.
    """
    if bool(ids) == (family is not None):
        raise UserError("Give either --family or ids of images.")
    from poisoncam_ray.review import Named

    return Named(family, frozenset(ids))


def decide(run: str, action: str, named: Named, by: str | None, note: str, said: Output) -> None:
    """Log a decision, and write again what it changes.

    Args:
        run: the run folder.
        action: one of poisoncam_ray.review.
        named: the images.
        by: who decides; None for the user of this process.
        note: why.
        said: where the answer goes.

    Raises:
        UserError: the run is not finished, or the images are not among those that can be decided on.
    """
    from poisoncam_ray import artifact, facts
    from poisoncam_ray import review as log
    from poisoncam_ray.defence import stages_of
    from poisoncam_ray.folder import Folder
    from poisoncam_ray.runner import Runner
    from poisoncam_ray.stages.ray_cluster import start_ray

    folder = Folder(run)
    runner = Runner.of_run(run, stages_of(folder))
    # After a killed revision Clean and Report are not committed, and the log says why.
    revised = {artifact.CLEAN, artifact.REPORT} if log.entries(folder) else set()
    if unfinished := [stage.title for stage in runner.pending() if stage.name not in revised]:
        raise UserError(
            f"The run {run} is not finished ({unfinished[0]} is to be done): let the defence run to its end "
            "first."
        )
    by_slice = log.concerned(folder, action, named)
    entry = log.append(folder, action, named, sum(by_slice.values()), by or log.whoever(), note)
    if len(by_slice) > SLICES_HERE and action != log.ACCEPT:
        start_ray()
        # Ray has put a handler of its own in the place of ours.
        end_on_signals()
    try:
        done = runner.run(said.progress)
    except UserError:
        said.note(LOGGED)
        raise
    except Exception as error:
        said.note(LOGGED)
        raise StageFailedError(f"{said.progress.title or 'Start'} failed") from error
    except SystemExit:
        said.note(f"Stopped. {LOGGED}")
        raise
    manifests = {stage.stage: stage.manifest for stage in done}
    cleaned = facts.of_manifest(facts.Cleaned, manifests[artifact.CLEAN])
    counts = {
        name: getattr(cleaned, name) for name in ("rows", "kept", "removed", "dead", "restored", "copied")
    }
    said.result(
        {"entry": as_tree(entry), **counts, "run": run},
        [sentence(entry), f"{cleaned.rows:,} rows = {cleaned.summary.partition(' = ')[0]}"],
    )


def show_log(run: str, said: Output) -> None:
    """Print the log of a run."""
    from poisoncam_ray.folder import Folder
    from poisoncam_ray.review import entries
    from poisoncam_ray.runner import config_of

    folder = Folder(run)
    config_of(folder)
    found = entries(folder)
    table = Table("when", "who", "decision", "why", box=None, header_style="bold", pad_edge=False)
    for entry in found:
        table.add_row(*(printable(text) for text in (entry.when, entry.who, what(entry), entry.note)))
    said.result(
        {"decisions": [as_tree(entry) for entry in found]}, [table] if found else ["Nothing was decided yet."]
    )


def what(entry: Entry) -> str:
    """The decision in words: 'reject family 2 (31 images)'."""
    images = "1 image" if entry.images == 1 else f"{entry.images:,} images"
    return (
        f"{entry.action} {images}"
        if entry.family is None
        else f"{entry.action} family {entry.family} ({images})"
    )


def sentence(entry: Entry) -> str:
    """What was logged, as a line for the console."""
    return f"{entry.when}  {entry.who}: {what(entry)}"


def as_tree(entry: Entry) -> dict[str, Any]:
    """The entry as JSON values."""
    names = ("number", "action", "who", "when", "note", "images", "family")
    return {name: getattr(entry, name) for name in names}
