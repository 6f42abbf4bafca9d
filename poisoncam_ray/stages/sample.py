"""The rows that Pretrain may use, where `pretrain.sample` asks for a part of the corpus: drawn by a hash of
their ids (`method.crops.in_sample`), so that shards sorted by category do no harm.

Torch is not imported here: counting tasks run in many processes, and it would cost each of them seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import ray

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.folder import Folder, part_index
from poisoncam_ray.method.crops import in_sample
from poisoncam_ray.stage import Run
from poisoncam_ray.stages.ray_cluster import RESTARTS, in_flight

PARTS = 64
"""Parts of the index that one task counts."""
TASKS_WAITING = 64


def share_of(config: Config, rows: int) -> float:
    """The share of so many images that `pretrain.sample` asks for, in (0, 1]."""
    wanted = config.pretrain.sample
    if wanted is None:
        return 1.0
    return wanted if wanted <= 1 else min(1.0, wanted / max(1, rows))


def drawn_rows(run: Run) -> tuple[float, list[int]]:
    """Count the rows that Pretrain may use, in Ray tasks over the index if it is a part of them.

    Args:
        run: the run.

    Returns:
        The share to draw, and the rows drawn of each slice.
    """
    rows = run.slice_rows()
    share = share_of(run.config, sum(rows))
    if share == 1:
        return share, rows
    index = run.folder / artifact.INDEX
    names = index.parts()
    resources = run.config.resources
    task = ray.remote(count_drawn).options(num_cpus=resources.cpus_per_reader, max_retries=RESTARTS)
    calls = (
        partial(task.remote, index, names[first : first + PARTS], run.config.seed, share)
        for first in range(0, len(names), PARTS)
    )
    counted: dict[int, int] = {}
    run.progress.update(0, note="drawing the sample")
    for found in in_flight(calls, resources.readers or TASKS_WAITING):
        counted |= found
    return share, [counted.get(i, 0) for i in range(len(rows))]


def count_drawn(index: Folder, names: Sequence[str], seed: int, share: float) -> dict[int, int]:
    """How many rows are drawn of each of these parts of the index, by the number of the slice."""
    counted = {}
    for name in names:
        ids = index.read_table(name, ["image_id"])["image_id"].to_pylist()
        counted[part_index(name)] = sum(in_sample(seed, share, image_id) for image_id in ids)
    return counted
