"""The search in a worker that keeps freed memory, against one that returns it to the system.

N candidates, then flip-test images   C channels   H = W image side
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor

from poisoncam_ray.config import Config
from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.research.benchmark.compare import Comparison, alternate, rates
from poisoncam_ray.research.benchmark.search import Candidates, batched, candidates, untrained
from poisoncam_ray.stages.compute import keep_freed_memory

THREADS = 1
"""Threads of each process: as many as each of two actors has on two cores."""


def compare_allocator(x_NCHW: Tensor, config: Config, n: int, rounds: int) -> Comparison:
    """Compare two processes on the candidates of `search.compare_search`.

    Args:
        x_NCHW: the candidates, then the flip-test images; uint8, on the CPU.
        config: the configuration.
        n: number of candidates.
        rounds: how often each way is timed.
    """
    with _process(x_NCHW, config, n, True) as keeps, _process(x_NCHW, config, n, False) as returns:
        ways = (lambda: keeps.submit(_search).result(), lambda: returns.submit(_search).result())
        seconds, (ours, other) = alternate(ways, rounds)
    same = all(np.array_equal(a, b) for a, b in zip(ours, other, strict=True))
    return Comparison(
        work=f"the same by a worker with {THREADS} thread",
        unit="forwards/s",
        ways=("freed memory kept", "freed memory returned"),
        rates=rates(n * (config.search.masks + config.search.flip_images), seconds),
        answers="equal" if same else "different",
        facts={},
    )


def _process(x_NCHW: Tensor, config: Config, n: int, keep: bool) -> ProcessPoolExecutor:
    # A fork would inherit this process's settings of malloc.
    return ProcessPoolExecutor(1, get_context("spawn"), _prepare, (x_NCHW.numpy(), config, n, keep))


_prepared: list[tuple[Encoder, Candidates]] = []
"""In a child process: its encoder and its candidates."""


def _prepare(x_NCHW: np.ndarray, config: Config, n: int, keep: bool) -> None:
    torch.set_num_threads(THREADS)
    if keep:
        keep_freed_memory()
    encoder = untrained(config)
    _prepared.append((encoder, candidates(encoder, torch.from_numpy(x_NCHW), config, n)))


def _search() -> list[np.ndarray]:
    return [answer.numpy() for answer in batched(*_prepared[0])]
