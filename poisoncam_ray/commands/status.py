"""The command `status`: how far a run is, read from its folder while it is made. Needs no Ray."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poisoncam_ray.commands.options import AsJson, Output, Quiet, RunUri
from poisoncam_ray.errors import UserError
from poisoncam_ray.program import examples

if TYPE_CHECKING:
    from poisoncam_ray.folder import Folder
    from poisoncam_ray.lease import Holder

LOOK_EVERY_S = 10.0
"""As often as the driver says how far it is."""
SILENT_S = 60.0
"""A driver at work is never silent for so long."""

RUNNING, SILENT, STOPPED, FINISHED = "running", "silent", "stopped", "finished"
DONE, BEGUN, DUE = "done", "begun", "due"


@examples(
    "poisoncam status defended/",
    "poisoncam status s3://bucket/defended --watch",
    "poisoncam status s3://bucket/defended --json",
)
def status(
    run: RunUri,
    watch: Annotated[
        bool, typer.Option("--watch", help=f"look again every {LOOK_EVERY_S:.0f} s while a driver is at work")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say how far a run is: its stages, who works on it, and its verdict. Works while it runs, also on S3."""
    from poisoncam_ray.folder import Folder, absolute

    output, folder = Output(as_json, quiet), Folder(absolute(run))
    while True:
        found = look(folder)
        output.result(found, told(found))
        if not watch or found["state"] not in (RUNNING, SILENT):
            return
        time.sleep(LOOK_EVERY_S)


def look(run: Folder) -> dict[str, Any]:
    """The state of a run, as JSON values.

    Args:
        run: the run folder.

    Raises:
        UserError: it is no run folder.
    """
    from poisoncam_ray import artifact, store
    from poisoncam_ray.lease import holder

    held = holder(run)
    if held is None and not run.exists(artifact.RUN):
        raise UserError(f"{run.uri} is not a run folder: give the --output of a defence.")
    titles = artifact.titles_of(run)
    names = list(titles)
    stages = store.in_parallel(lambda name: _stage(run / name, titles[name]), names)
    silent_s = held.silent_s() if held else None
    finished = all(stage["state"] == DONE for stage in stages)
    decided = stages[names.index(artifact.VERDICT)]["state"] == DONE
    verdict = artifact.Verdict.read(run / artifact.VERDICT) if decided else None
    state = _state(held, silent_s, finished)
    return {
        "run": run.uri,
        "state": state,
        "driver": _driver(held, silent_s) if held else None,
        "work": _work(held) if held and state in (RUNNING, SILENT) else None,
        "stages": stages,
        "verdict": verdict.verdict if verdict else None,
        "families": len(verdict.families) if verdict else None,
        "applied_from": verdict.applied_from if verdict else None,
    }


def _state(held: Holder | None, silent_s: float | None, finished: bool) -> str:
    if held is None or held.ended:
        return FINISHED if finished else STOPPED
    return SILENT if silent_s is None or silent_s > SILENT_S else RUNNING


def _work(held: Holder) -> dict[str, Any] | None:
    """How far the driver's work is; None where its file says nothing that can be understood."""
    from poisoncam_ray.progress import describe

    try:
        return held.work if held.work and describe(held.work) is not None else None
    except (KeyError, TypeError, ValueError):
        return None


def _driver(held: Holder, silent_s: float | None) -> dict[str, Any]:
    known = asdict(held)
    known.pop("work")
    return known | {"silent_s": None if silent_s is None else round(silent_s)}


def _stage(folder: Folder, title: str) -> dict[str, Any]:
    from poisoncam_ray.folder import STARTED, Manifest

    manifest = Manifest.read(folder)
    if manifest is None:
        return {"stage": title, "state": BEGUN if folder.exists(STARTED) else DUE}
    summary = str(manifest.facts.get("summary", ""))
    return {"stage": title, "state": DONE, "summary": summary, "seconds": manifest.seconds}


def told(found: dict[str, Any]) -> list[str]:
    """The state of a run for people."""
    from poisoncam_ray.artifact import POISON
    from poisoncam_ray.progress import describe, duration

    driver, work = found["driver"], found["work"]
    who = f"process {driver['pid']} on {driver['host']}" if driver else ""
    lines = []
    if found["state"] == RUNNING:
        lines.append(f"Running: {who}, since {driver['started']}, heard {driver['silent_s']} s ago.")
    elif found["state"] == SILENT:
        since = "for unknown time" if driver["silent_s"] is None else f"for {duration(driver['silent_s'])}"
        lines.append(
            f"Silent: {who}, since {driver['started']}, has not been heard {since}. It may have been killed; "
            "the same command then takes over and goes on."
        )
    elif found["state"] == FINISHED:
        lines.append("Finished.")
    else:
        lines.append("Stopped before the end: no driver is at work. The same command goes on.")
    for stage in found["stages"]:
        if stage["state"] == DONE:
            row = f"{stage['summary']} ({duration(stage['seconds'])})"
        elif work and work.get("stage") == stage["stage"]:
            row = describe(work)
        else:
            row = "begun, not done" if stage["state"] == BEGUN else "–"
        lines.append(f"{stage['stage']:<9} {row}")
    if found["applied_from"] is not None:
        lines.append(f"Known triggers only, of {found['applied_from']}: new triggers are not looked for.")
    elif found["verdict"] is not None:
        n = found["families"]
        kinds = "1 trigger family" if n == 1 else f"{n} trigger families"
        poison = found["verdict"] == POISON
        lines.append(f"Verdict: poison, {kinds}." if poison else "Verdict: no evidence of poison.")
    return lines
