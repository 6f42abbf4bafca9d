"""Which number format networks compute in: bfloat16 where it is faster on this machine, else float32.

Weights, moments, sums and distances stay float32 in either case; `torch.autocast` casts what goes into matrix
products and convolutions.
"""

from __future__ import annotations

import time

import torch

from poisoncam_ray.config import Precision, Wanted

LEAST_GAIN = 1.3
"""A CPU uses bfloat16 where matrix products are so many times faster: casts and the rest are not."""
SIDE, SECONDS = 512, 0.4
"""Of the measured matrix products: their side, and the most time that is spent on them."""


def choose(wanted: Wanted, gpu: bool) -> Precision:
    """The precision of forward and backward passes.

    Call it once, record the answer, and let every process obey it: another precision gives other results.

    Args:
        wanted: the setting; "auto" decides by the hardware, the others are returned as they are.
        gpu: whether the work runs on GPUs. A process that sees none itself, as the driver of a cluster may,
            expects them to have bfloat16.

    Returns:
        "bfloat16" on GPUs from compute capability 8 on, and on CPUs with AMX where matrix products are
        measured to be faster in it; else "float32".
    """
    if wanted != "auto":
        return wanted
    if gpu:
        old = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 8
        return "float32" if old else "bfloat16"
    return "bfloat16" if has_amx() and measured_gain() >= LEAST_GAIN else "float32"


def dtype_of(precision: Wanted) -> torch.dtype:
    """The torch type of a precision; float32 where none is decided yet."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def has_amx() -> bool:
    """Whether this CPU multiplies bfloat16 in tiles. Without these, bfloat16 is slower than float32."""
    return torch.cpu._is_amx_tile_supported()


def measured_gain() -> float:
    """How many times faster a matrix product is in bfloat16 than in float32, with this process's threads.

    The best times of both, measured in turns: other processes only make a product slower. An environment
    variable (ONEDNN_MAX_CPU_ISA) or a virtual machine can take AMX away, which no flag of the CPU tells.
    """
    a_SS = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    ends, rounds = time.perf_counter() + SECONDS, 0
    while rounds < 2 or time.perf_counter() < ends:
        for dtype in best:
            b_SS = a_SS.to(dtype)
            began = time.perf_counter()
            torch.mm(b_SS, b_SS)
            best[dtype] = min(best[dtype], time.perf_counter() - began)
        rounds += 1
    return best[torch.float32] / best[torch.bfloat16]
