"""All rivals on finished runs, beside the defence: recall, false positives, AUC, seconds, operations."""

from typing import Annotated

import typer

from poisoncam_ray.errors import UserError
from poisoncam_ray.program import run_program


def rivals(
    output: Annotated[str, typer.Option(help="folder for rivals.md and rivals.jsonl")],
    run: Annotated[list[str], typer.Option(help="a defence's --output; repeat, with --truth")],
    truth: Annotated[list[str], typer.Option(help="truth.parquet of that run; repeat")],
    peer: Annotated[
        list[str] | None,
        typer.Option(help="PatchSearch's run on the same encoder (photographs.py --peer); repeat, one a run"),
    ] = None,
    side: Annotated[
        list[int] | None, typer.Option(help="side of the recurring patches, as in recurring.py; repeat")
    ] = None,
    sample: Annotated[int, typer.Option(help="images whose windows are compared with")] = 3000,
    seed: Annotated[int, typer.Option(help="seed of that sample")] = 0,
    features_only: Annotated[
        bool, typer.Option("--features-only", help="leave the recurring patches out, which take minutes")
    ] = False,
) -> None:
    """Outliers, spectral signatures and activation clustering on a run's features, and recurring patches.

    Nothing is trained or searched, and no run is changed. After a kill the same command resumes; further runs
    may be added.
    """
    if len(truth) != len(run) or (peer and len(peer) != len(run)):
        raise UserError(f"There are {len(run)} runs: give --truth for every run, and --peer for all or none.")
    from poisoncam_ray.folder import Folder, absolute
    from poisoncam_ray.research.rivals.on_corpus import SIDES_PX, Look
    from poisoncam_ray.research.rivals.on_run import rivals_of_run, run_name
    from poisoncam_ray.research.rivals.page import write_runs

    out = Folder(absolute(output))
    look = None if features_only else Look(tuple(side or SIDES_PX), sample, seed=seed)
    peers = peer or [None] * len(run)
    for uri, known, theirs in zip(run, truth, peers, strict=True):
        here = out / "runs" / run_name(absolute(uri))
        asked = {
            "truth": absolute(known),
            "peer": theirs and absolute(theirs),
            "look": look and {**vars(look), "sides": list(look.sides)},
        }
        if not here.exists("rows.json") or here.read_json("rows.json")["asked"] != asked:
            rows = rivals_of_run(absolute(uri), absolute(known), here, look, asked["peer"])
            here.write_json("rows.json", {"asked": asked, "rows": rows})
        finished = [out / "runs" / name for name in (out / "runs").names()]
        written = [folder.read_json("rows.json")["rows"] for folder in finished if folder.exists("rows.json")]
        write_runs(out, "rivals", [row for rows in written for row in rows])
        typer.echo(f"rivals  {output}/rivals.md")


if __name__ == "__main__":
    run_program(rivals)
