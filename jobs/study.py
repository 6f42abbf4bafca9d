"""Measure a grid of mask strategies, scores, B, cells, windows and K on finished runs against their truth."""

from typing import Annotated

import typer

from poisoncam_ray.errors import UserError
from poisoncam_ray.program import run_program
from poisoncam_ray.signals import end_on_signals


def study(
    output: Annotated[
        str, typer.Option(help="folder for study.md, the tables and plots: empty, or one to resume")
    ],
    run: Annotated[list[str] | None, typer.Option(help="a defence's --output; repeat, with --truth")] = None,
    truth: Annotated[list[str] | None, typer.Option(help="truth.parquet of that run; repeat")] = None,
    table: Annotated[str | None, typer.Option(help="instead: the --output of photographs.py")] = None,
    only: Annotated[
        str, typer.Option(help="of --table, the runs whose path contains this: patch/share-1")
    ] = "",
    grid: Annotated[str, typer.Option(help="small, full, or a YAML file")] = "small",
    images: Annotated[int | None, typer.Option(help="poisoned images of a run, at most")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of images, masks and intervals")] = None,
    workers: Annotated[int, typer.Option(help="tasks at once on the cluster", min=1)] = 2,
    cpus: Annotated[float, typer.Option(help="CPUs of a task")] = 1.0,
    gpus: Annotated[float, typer.Option(help="GPUs of a task")] = 0.0,
) -> None:
    """Measure a grid of search settings on finished runs against their truth.

    Each run must have its features; no encoder is trained. After a kill the same command resumes.
    """
    # What is heavy is imported late, here and below: a mistake in the command shows at once.
    from poisoncam_ray.research.study.grid import load_grid

    chosen = load_grid(grid, images, seed)
    if (table is None) == (not run):
        raise UserError("Give either --table, or --run with --truth for every run.")
    if only and table is None:
        raise UserError("--only picks runs of a --table: give that, too.")
    from poisoncam_ray.config import Resources
    from poisoncam_ray.folder import Folder, absolute
    from poisoncam_ray.progress import Progress
    from poisoncam_ray.research.study.job import begin, rows, run_tasks, unmeasured
    from poisoncam_ray.research.study.results import write_results
    from poisoncam_ray.research.study.runs import found, given

    runs = found(table, only) if table else given(run or (), truth or ())
    out, progress = Folder(absolute(output)), Progress()
    begin(runs, chosen, out)
    if unmeasured(runs, chosen, out):
        from poisoncam_ray.stages.ray_cluster import start_ray

        start_ray()
        # Ray has put a handler of its own in the place of ours.
        end_on_signals()
        resources = Resources(actors=workers, cpus_per_actor=cpus, gpus_per_actor=gpus)
        run_tasks(runs, chosen, out, resources, progress)
    write_results(rows(out), chosen, out, Folder(table) if table else None)
    progress.console.print(f"study  {output}/study.md", markup=False)


if __name__ == "__main__":
    run_program(study)
