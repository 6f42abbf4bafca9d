"""The whole study on a cluster: one task per run to prepare it, one task and one Parquet part per pass.

The output folder holds study.json (grid and runs), runs/<name>/ (images, centroids), parts/ (the rows of one
pass each) and, at the end, the files of `results.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from poisoncam_ray.config import Resources
from poisoncam_ray.errors import UserError
from poisoncam_ray.fingerprint import differences
from poisoncam_ray.folder import Folder, part_index, part_name
from poisoncam_ray.progress import Progress
from poisoncam_ray.research.study.grid import Grid
from poisoncam_ray.research.study.plan import Pass, passes
from poisoncam_ray.research.study.runs import StudyRun

STUDY = "study.json"
VERSION = 3
"""To be raised when the same grid and runs give other rows."""
DIFFERENCES_SHOWN = 20


def begin(runs: Sequence[StudyRun], grid: Grid, out: Folder) -> None:
    """Check the runs, and write down what the folder is for.

    Args:
        runs: the runs to measure.
        grid: the grid.
        out: the study's folder: empty, or one to resume.

    Raises:
        UserError: a run is not finished, or the folder holds another study or something else.
    """
    for one in runs:
        one.check()
    now = {
        "version": VERSION,
        "grid": grid.model_dump(mode="json"),
        "runs": {one.name: one.identity() for one in runs},
    }
    if not out.exists(STUDY):
        if names := out.names():
            raise UserError(
                f"The output folder {out.uri} holds {names[0]!r}, which no study wrote: give an empty one."
            )
        out.write_json(STUDY, now)
    elif found := differences(out.read_json(STUDY), now):
        shown = "; ".join(found[:DIFFERENCES_SHOWN])
        raise UserError(
            f"The study in {out.uri} is another one ({shown}): give a new --output, or what it was made with."
        )


def unprepared(runs: Sequence[StudyRun], out: Folder) -> list[StudyRun]:
    """The runs whose images are not chosen yet."""
    # images.py loads torch, which a mistake in the command must not wait for.
    from poisoncam_ray.research.study.images import IMAGES

    return [one for one in runs if not (out / "runs" / one.name).exists(IMAGES)]


def unmeasured(runs: Sequence[StudyRun], grid: Grid, out: Folder) -> dict[int, Pass]:
    """The passes without a part, by their number."""
    done = {part_index(name) for name in (out / "parts").parts()}
    everything = enumerate(passes(grid, [one.name for one in runs]))
    return {i: todo for i, todo in everything if i not in done}


def rows(out: Folder) -> pa.Table:
    """All rows that were measured, in the order of the passes."""
    parts = out / "parts"
    return pa.concat_tables([parts.read_table(name) for name in parts.parts()])


def run_tasks(
    runs: Sequence[StudyRun], grid: Grid, out: Folder, resources: Resources, progress: Progress
) -> None:
    """Prepare and measure what is missing. Ray must be connected.

    Args:
        runs: the runs to measure.
        grid: the grid.
        out: the study's folder.
        resources: `actors` tasks run at once, each with `cpus_per_actor` and `gpus_per_actor`.
        progress: where the tasks are counted.
    """
    by_name = {one.name: one for one in runs}
    prepare = unprepared(runs, out)
    with progress.stage("Prepare"):
        calls = [partial(_prepare, one, grid, out, resources) for one in prepare]
        _run_all(calls, resources, progress, "runs")
    todo = unmeasured(runs, grid, out)
    with progress.stage("Measure"):
        calls = [partial(_measure, i, one, by_name[one.run], grid, out, resources) for i, one in todo.items()]
        _run_all(calls, resources, progress, "passes")


def _run_all(
    calls: Sequence[Callable[[], None]], resources: Resources, progress: Progress, what: str
) -> None:
    # Ray takes seconds to load, and a finished study does not need it.
    import ray

    from poisoncam_ray.stages.ray_cluster import RESTARTS, actors_at_most, in_flight

    needs: dict[str, Any] = {
        "num_cpus": resources.cpus_per_actor,
        "num_gpus": resources.gpus_per_actor,
        "max_retries": RESTARTS,
    }
    task = ray.remote(_call).options(**needs)
    submit: Iterable[Callable[[], Any]] = (partial(task.remote, call) for call in calls)
    progress.update(0, len(calls), what)
    for done, _ in enumerate(in_flight(iter(submit), actors_at_most(resources)), start=1):
        progress.update(done, len(calls), what)


def _call(call: Callable[[], None]) -> None:
    call()


def _prepare(one: StudyRun, grid: Grid, out: Folder, resources: Resources) -> None:
    # Torch is loaded on the worker, here and below.
    from poisoncam_ray.research.study.images import prepare
    from poisoncam_ray.stages.compute import set_up

    set_up(resources)
    prepare(one, grid, out / "runs" / one.name)


def _measure(i: int, todo: Pass, one: StudyRun, grid: Grid, out: Folder, resources: Resources) -> None:
    from poisoncam_ray.research.study.measure import measure
    from poisoncam_ray.stages.compute import set_up

    set_up(resources)
    table = measure(todo, one, grid, out / "runs" / one.name)
    (out / "parts").write_table(part_name(i), table)
