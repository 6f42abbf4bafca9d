"""Peak memory of the processes of a local Ray cluster that this process started, from Linux's /proc."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Event, Thread

import ray

EVERY_S = 0.25
MIB = 2**20
PROC = Path("/proc")


@dataclass
class Peaks:
    """MiB of private memory: what a process has allocated, without libraries and shared memory.

    Attributes:
        driver: this process.
        worker: the largest worker.
        ray: the largest of Ray's own processes (GCS, raylet, agents).
        store: what is in use in the object store.
    """

    driver: float = 0.0
    worker: float = 0.0
    ray: float = 0.0
    store: float = 0.0

    def raise_to(self, other: Peaks) -> None:
        """Take the larger value of each field."""
        for field in fields(self):
            setattr(self, field.name, max(getattr(self, field.name), getattr(other, field.name)))


class Sampler(Thread):
    """Samples several times a second from `start` to `stop`. `peaks` may be replaced at any time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks = Peaks()
        self._ended = Event()

    def run(self) -> None:
        while not self._ended.wait(EVERY_S):
            self.peaks.raise_to(sample())

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self.join()


def sample() -> Peaks:
    """The present memory. This process is the driver, and its descendants are Ray's processes."""
    now = Peaks(driver=private_mib(os.getpid()), store=store_mib())
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if (PROC / str(pid) / "cmdline").read_bytes().startswith(b"ray::"):
                now.worker = max(now.worker, private_mib(pid))
            else:
                now.ray = max(now.ray, private_mib(pid))
    return now


def private_mib(pid: int) -> float:
    """Resident anonymous memory of a process; 0 when it is ending.

    Raises:
        OSError: the process has ended.
    """
    for line in (PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    children: dict[int, list[int]] = defaultdict(list)
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # The name is in brackets and may hold anything; after it come state and parent.
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                children[int(parent)].append(int(folder.name))
    found, waiting = list[int](), list(children[pid])
    while waiting:
        found.append(waiting.pop())
        waiting += children[found[-1]]
    return found


def store_mib() -> float:
    """The size of all objects in Ray's shared memory, in MiB; 0 when no cluster runs."""
    if not ray.is_initialized():
        return 0.0
    name = "object_store_memory"
    return (ray.cluster_resources().get(name, 0) - ray.available_resources().get(name, 0)) / MIB
