"""Torch in a worker process: which device, how many threads."""

from __future__ import annotations

import math
import os

import ray
import torch

from poisoncam_ray.config import Resources


def device() -> torch.device:
    """Asked of torch, never of Ray, which also schedules GPUs that are not there."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def set_threads(resources: Resources, processes: int | None = None) -> None:
    """Ray gives workers one OpenMP thread; share the cores of this process's machine among those that work
    on it. `processes`: how many do, when that is known; otherwise the actors, spread over the nodes."""
    if processes is None:
        nodes = sum(node["Alive"] for node in ray.nodes()) if ray.is_initialized() else 1
        processes = math.ceil(resources.actors / max(1, nodes))
    share = len(os.sched_getaffinity(0)) // processes
    torch.set_num_threads(resources.threads_per_actor or max(1, share))
