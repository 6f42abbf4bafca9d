"""Torch in a worker process: its device, its threads, and what happens to freed memory."""

from __future__ import annotations

import ctypes
import os

import torch

from poisoncam_ray.config import Resources

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of mallopt, from glibc's malloc.h."""
FREED_MEMORY_KEPT = 2**30
"""In bytes: a process that holds more freed memory returns some to the system."""
ONE_HEAP = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"}
"""Environment of a worker that computes in another thread than its first, as Ray Train's workers do.

malloc gives such a thread regions of 64 MiB, and returns each to Linux as soon as it is empty, whatever
`keep_freed_memory` says. One heap for all threads is kept. Its pages are of 2 MiB where Linux has them.
malloc reads this when a process starts.
"""


def device() -> torch.device:
    """The device of this process, as torch sees it: Ray's own count may include GPUs that do not exist."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def set_up(resources: Resources, processes: int | None = None) -> None:
    """Set the threads and the allocator of a worker process.

    Args:
        resources: the configured resources.
        processes: the number of worker processes on this machine; None: the configured number of actors.
    """
    set_threads(resources, processes)
    keep_freed_memory()


def set_threads(resources: Resources, processes: int | None) -> None:
    """Share the machine's cores among its worker processes. Ray's default is one OpenMP thread a worker.
    Where nothing says how many processes there are, an actor has as many threads as CPUs.

    The number does not follow the number of live nodes: sums of floats differ with the number of threads.
    """
    shared_by = processes or resources.actors
    share = len(os.sched_getaffinity(0)) // shared_by if shared_by else int(resources.cpus_per_actor)
    torch.set_num_threads(resources.threads_per_actor or max(1, share))


def keep_freed_memory() -> None:
    """Let malloc reuse the memory that torch frees.

    By default malloc returns large buffers to Linux at once, and Linux clears every page of the next one.
    Does nothing where there is no glibc.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, FREED_MEMORY_KEPT)
