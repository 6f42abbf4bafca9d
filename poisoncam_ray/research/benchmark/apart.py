"""A process of its own: without Ray, with its own environment, allocator and threads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from unittest.mock import patch

import torch

from poisoncam_ray.stages.compute import keep_freed_memory


@contextmanager
def apart(
    threads: int, environment: Mapping[str, str] | None = None, keep: bool = True
) -> Iterator[ProcessPoolExecutor]:
    """Start a process that calls what is submitted, one call after the other.

    Args:
        threads: torch threads of the process.
        environment: variables that it has in addition to those of this process.
        keep: whether it keeps freed memory, as the workers of the defence do.
    """
    # A fork would inherit Ray's threads and this process's settings of malloc and oneDNN.
    with ProcessPoolExecutor(1, get_context("spawn"), _prepare, (threads, keep)) as process:
        with patch.dict(os.environ, environment or {}):
            # The process starts with the first call.
            process.submit(_nothing).result()
        yield process


def _prepare(threads: int, keep: bool) -> None:
    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()


def _nothing() -> None:
    pass
