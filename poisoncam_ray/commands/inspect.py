"""The command `inspect`: why an image was removed, or kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poisoncam_ray.commands.options import AsJson, Output, Quiet, RunUri
from poisoncam_ray.errors import UserError
from poisoncam_ray.program import examples

if TYPE_CHECKING:
    from poisoncam_ray.report.image_page import ImageStory

EXAMPLES_SHOWN = 5
SUFFIXES = (".html", ".png")


@examples(
    "poisoncam inspect defended/",
    "poisoncam inspect defended/ part-00000.parquet#17 -o why.html",
    "poisoncam inspect s3://bucket/defended dog/0042.jpg -o why.png --json",
)
def inspect(
    run: RunUri,
    image: Annotated[
        str | None, typer.Argument(metavar="[IMAGE]", help="an image id, the end of one, or a row's number")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="write the pictures there: a .html or .png file")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Tell why an image was removed, or kept: its score, what the score rests on, its trigger and the
    nearest kept image. Without an image, tell about the run, with a few images as examples."""
    if output is not None and not output.lower().endswith(SUFFIXES):
        raise UserError(f"The file {output} is neither .html nor .png: give one of these.")
    if output is not None and image is None:
        raise UserError("--output needs an IMAGE. The page of the whole run is its report/index.html.")
    if output is not None and not Path(output).absolute().parent.is_dir():
        raise UserError(f"There is no folder for {output}: make it first.")
    said = Output(as_json, quiet)
    if image is None:
        _summary(run, said)
        return
    # Torch takes seconds to load.
    from poisoncam_ray.inspection import inspect_image

    story = inspect_image(run, image)
    if output is not None:
        _write(story, output)
        said.note(f"written to {output}")
    said.result(story.as_json() | {"output": output}, story.lines())


def _write(story: ImageStory, output: str) -> None:
    from poisoncam_ray.report.image_page import as_html, as_png

    if output.lower().endswith(".png"):
        Path(output).write_bytes(as_png(story))
    else:
        Path(output).write_text(as_html(story), encoding="utf-8")


def _summary(run_uri: str, said: Output) -> None:
    from poisoncam_ray.inspection import some_images
    from poisoncam_ray.results import open_run

    run = open_run(run_uri)
    counts, words = run.counts, run.words
    some = some_images(run.folder, EXAMPLES_SHOWN)
    lines = [
        *words,
        f"{counts.rows:,} rows = {counts.terms}",
    ]
    for what, rows in some.items():
        heading = "kept, closest to the threshold" if what == "borderline" else what
        lines += [f"{heading}:"] if rows else []
        for row in rows:
            lines.append(
                f"  {row['image_id']}  " + (row["reason"] if "reason" in row else f"p {row['p_poison']:.3f}")
            )
    lines.append(f"report  {run.report}")
    data = {
        "run": run_uri,
        "verdict": run.verdict.verdict,
        "words": words,
        "rows": counts.rows,
        "kept": counts.kept,
        "removed": counts.removed,
        "dead": counts.dead,
        "examples": some,
        "report": run.report,
    }
    said.result(data, lines)
