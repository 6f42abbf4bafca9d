"""The command `apply`: look for the triggers of an earlier run in other images."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from poisoncam_ray.commands.defend import FOUND_POISON, answer
from poisoncam_ray.commands.options import AsJson, Output, Overrides, Quiet, RunUri
from poisoncam_ray.errors import UserError
from poisoncam_ray.program import RESUMES, examples
from poisoncam_ray.signals import end_on_signals


@examples(
    "poisoncam apply defended/ --input new-photos/ --output new-defended/",
    "poisoncam apply s3://bucket/defended --input s3://bucket/june --output s3://bucket/june-defended --json",
)
def apply(
    run: RunUri,
    overrides: Overrides = None,
    input: Annotated[str | None, typer.Option("--input", help="the new images, in any format")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="the new run folder: empty, or one to resume")
    ] = None,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="end with code 3 when an image was removed; without it, 0")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Remove the known triggers of an earlier run from other images: new shards, or repaired ones. A new
    trigger is not looked for. The settings are those of the earlier run, except the sections corpus, clean
    and resources."""
    if not input or not output:
        raise UserError("Give --input, the new images, and --output, the folder of the new run.")
    # Ray and torch take seconds to load.
    from poisoncam_ray.defence import applied_stages
    from poisoncam_ray.folder import Folder
    from poisoncam_ray.launch import earlier_run, launch

    began, said = time.monotonic(), Output(as_json, quiet)
    source, config = earlier_run(run, output, overrides or ())
    said.note(f"Known triggers only, of {source.uri}: new triggers are not looked for.")
    try:
        done = launch(input, output, config, applied_stages(source), said.progress, None, end_on_signals)
    except SystemExit:
        said.note(f"Stopped. {RESUMES}")
        raise
    if all(stage.reused for stage in done):
        said.note("Nothing to do: every stage was done before with these settings and this input.")
    found = answer(Folder(output), output, done, time.monotonic() - began)
    removed = found.data["removed"] > 0
    said.result(found.data | {"poison": removed, "applied_from": source.uri}, found.lines)
    if removed and exit_code:
        raise typer.Exit(FOUND_POISON)
