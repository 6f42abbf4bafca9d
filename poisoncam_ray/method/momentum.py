"""A network that follows another as its moving average: MoCo's key network, BYOL's target network."""

import math

import torch
from torch import nn


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """target ← momentum · target + (1 − momentum) · online, over parameters; batch statistics stay
    its own."""
    for t, o in zip(target.parameters(), online.parameters(), strict=True):
        t.lerp_(o, 1 - momentum)


def momentum_at(step: int, total: int, base: float) -> float:
    """The momentum at `step` of `total`: from `base` up to 1 along half a cosine (BYOL §3.3)."""
    return 1 - (1 - base) * 0.5 * (1 + math.cos(math.pi * step / total))
