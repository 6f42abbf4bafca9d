"""Torch in a worker process: which device, how many threads."""

from __future__ import annotations

import os

import torch

from poisoncam_ray.config import Resources


def device() -> torch.device:
    """Asked of torch, never of Ray, which also schedules GPUs that are not there."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def set_threads(resources: Resources, processes: int | None = None) -> None:
    """Ray gives workers one OpenMP thread; share the machine's cores among the `processes` that work on it
    (all actors, when not known). Not by how many nodes live: more threads add floats in another order."""
    share = len(os.sched_getaffinity(0)) // (processes or resources.actors)
    torch.set_num_threads(resources.threads_per_actor or max(1, share))
