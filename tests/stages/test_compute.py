"""What a worker does with the memory that torch frees."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from poisoncam_ray.stages.compute import ONE_HEAP
from tests.small import ROOT

BUFFERS = """
import resource, sys, threading, torch
from poisoncam_ray.stages.compute import keep_freed_memory

mebibytes, held = int(sys.argv[2]), int(sys.argv[3])

def cleared():
    # Pages that Linux had to clear while ten times so many buffers were held at once.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        buffers = [torch.ones(mebibytes * 2**18) for _ in range(held)]
        while buffers:
            buffers.pop(0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def main():
    first = cleared()
    keep_freed_memory()
    cleared()
    print(first, cleared())

if sys.argv[1] == "main":
    main()
else:
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
"""
needs_mallopt = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="this libc has no mallopt"
)


def cleared(where: str, mebibytes: int, held: int, environment: Mapping[str, str]) -> list[int]:
    """Pages that were cleared for the same buffers before and after `keep_freed_memory`."""
    told = subprocess.run(
        [sys.executable, "-c", BUFFERS, where, str(mebibytes), str(held)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(n) for n in told.stdout.split()]


@needs_mallopt
def test_a_freed_buffer_is_the_next_ones_memory() -> None:
    first, kept = cleared("main", 64, 1, {})
    # Without it, and with small pages: 16,384 for each of ten buffers. With it a buffer may still lie
    # elsewhere once or twice, where something small was put at the end of the last.
    assert first > 3 * kept


@needs_mallopt
def test_so_it_is_in_the_thread_in_which_ray_train_trains() -> None:
    """There malloc has regions of 64 MiB, of which it returns those that are empty."""
    _, returned = cleared("thread", 20, 8, {})
    _, kept = cleared("thread", 20, 8, ONE_HEAP)
    # With small pages: 5,120 a buffer.
    assert returned > 3 * kept
