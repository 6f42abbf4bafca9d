"""Torch in a worker process: which device, how many threads, what becomes of freed memory."""

from __future__ import annotations

import ctypes
import os

import torch

from poisoncam_ray.config import Resources

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""
KEPT = 2**30
"""Bytes of free memory from which on a process hands some back to the system."""


def device() -> torch.device:
    """Asked of torch, never of Ray, which also schedules GPUs that are not there."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def set_up(resources: Resources, processes: int | None = None) -> None:
    """Make this process a worker, one of `processes` on its machine (of all actors, when not known)."""
    set_threads(resources, processes)
    keep_freed_memory()


def set_threads(resources: Resources, processes: int | None) -> None:
    """Ray gives workers one OpenMP thread; share the machine's cores among the processes that work on it. Not
    by how many nodes live: more threads add floats in another order."""
    share = len(os.sched_getaffinity(0)) // (processes or resources.actors)
    torch.set_num_threads(resources.threads_per_actor or max(1, share))


def keep_freed_memory() -> None:
    """Let malloc hand what torch frees to torch's next buffer.

    As it comes, it gives large buffers back to Linux at once, which then clears every page of the next one:
    a third of the CPU time of a search (jobs/benchmark.py: 1.5 times the rate). Without effect where there is
    no glibc.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, KEPT)
