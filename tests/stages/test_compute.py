"""What a worker does with the memory that torch frees."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from tests.small import ROOT

BUFFERS = """
import resource, torch
from poisoncam_ray.stages.compute import keep_freed_memory

def cleared():
    # Pages that Linux had to clear for ten buffers of 64 MiB, one after the other.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = cleared()
keep_freed_memory()
cleared()
print(first, cleared())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this libc has no mallopt")
def test_a_freed_buffer_is_the_next_ones_memory() -> None:
    told = subprocess.run(
        [sys.executable, "-c", BUFFERS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    first, kept = map(int, told.stdout.split())
    # Without it, and with small pages: 16,384 a buffer.
    assert first > 10 * max(kept, 1)
