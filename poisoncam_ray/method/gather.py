"""The rows of all workers, for losses that compare every image with all others.

B rows of this worker, G rows of all workers together, E dimensions.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Gather = Callable[[Tensor], Tensor]


def gather_rows(x_BE: Tensor) -> Tensor:
    """All ranks' rows x_GE through torch.distributed, in the order of the ranks; each has the same B.

    Where x_BE carries a gradient, every rank must run backward: what the others' losses say about this
    rank's rows comes back to it. The mean of the ranks' losses then has the gradient of one worker's loss on
    the joined batch, with no factor to correct, since DistributedDataParallel takes that mean.
    """
    return _Gathered.apply(x_BE)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BE: Tensor) -> Tensor:
        parts = [torch.empty_like(x_BE, memory_format=torch.contiguous_format) for _ in _ranks()]
        dist.all_gather(parts, x_BE.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad_GE: Tensor) -> Tensor:
        # A copy: autograd may hand the same memory to others.
        grad_GE = grad_GE.clone(memory_format=torch.contiguous_format)
        # Summed over all and not scattered: gloo, on CPUs, knows no reduce-scatter.
        dist.all_reduce(grad_GE)
        return grad_GE.chunk(len(_ranks()))[dist.get_rank()]


def _ranks() -> range:
    return range(dist.get_world_size())
