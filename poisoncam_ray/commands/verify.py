"""The command `verify`: check a run folder as it lies."""

from __future__ import annotations

from typing import Annotated

import typer

from poisoncam_ray.commands.options import AsJson, Output, Quiet, RunUri
from poisoncam_ray.program import examples

DEFECTS = 1
DEFECTS_SHOWN = 1000


@examples(
    "poisoncam verify defended/",
    "poisoncam verify s3://bucket/defended --quick   # counts and manifests only",
    "poisoncam verify defended/ --json",
)
def verify(
    run: RunUri,
    quick: Annotated[
        bool, typer.Option("--quick", help="compare counts and manifests: read no image")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check a run folder as it lies: every row in one place, every image unchanged, every list right.

    Names each defect on a line and ends with code 1 if there is any.
    """
    from dataclasses import asdict

    from poisoncam_ray.folder import Folder
    from poisoncam_ray.verify import verify as check

    said = Output(as_json, quiet)
    with said.progress.stage("Verify"):
        found = check(Folder(run), quick, said.progress.update)
    lines = [str(defect) for defect in found[:DEFECTS_SHOWN]]
    if len(found) > DEFECTS_SHOWN:
        lines.append(f"and {len(found) - DEFECTS_SHOWN:,} more: --json lists all")
    looked = "counts and manifests" if quick else "counts, manifests and every image"
    told = f"{len(found):,} defects." if len(found) != 1 else "1 defect."
    lines.append(f"{looked}: {told if found else 'no defect.'}".capitalize())
    said.result({"run": run, "quick": quick, "defects": [asdict(defect) for defect in found]}, lines)
    if found:
        raise typer.Exit(DEFECTS)
