"""MoCo-v3 (arXiv 2104.02057, algorithm 1): two views of an image must find each other among all others.

B images of this worker, G images of all workers together, E projection dimensions; q queries, k keys.
"""

import copy
import itertools
import math
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from poisoncam_ray.method.encoder import Encoder

Gather = Callable[[Tensor], Tensor]


class MoCoV3(nn.Module):
    """A query network that learns (encoder, projector, predictor) and a key network that follows it as a
    moving average (encoder, projector).

    `hidden_dim`, `out_dim`: width of the heads (reference: 4096, 256); `temperature`: τ (0.2).
    `self.encoder` is what pretraining is for: the defence uses it and drops the rest.
    """

    def __init__(
        self, encoder: Encoder, hidden_dim: int = 4096, out_dim: int = 256, temperature: float = 0.2
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = mlp(encoder.dim, hidden_dim, hidden_dim, out_dim)
        self.predictor = mlp(out_dim, hidden_dim, out_dim)
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.temperature = temperature

    def forward(
        self, v1_BCHW: Tensor, v2_BCHW: Tensor, gather: Gather | None = None, rank: int = 0
    ) -> Tensor:
        """The symmetric loss of two views, a scalar. Call update_key first, as the paper does."""
        q1_BE = self.predictor(self.projector(self.encoder(v1_BCHW)))
        q2_BE = self.predictor(self.projector(self.encoder(v2_BCHW)))
        with torch.no_grad():
            k1_BE = self.key_projector(self.key_encoder(v1_BCHW))
            k2_BE = self.key_projector(self.key_encoder(v2_BCHW))
        loss_12 = contrastive_loss(q1_BE, k2_BE, self.temperature, gather, rank)
        loss_21 = contrastive_loss(q2_BE, k1_BE, self.temperature, gather, rank)
        return loss_12 + loss_21

    @torch.no_grad()
    def update_key(self, momentum: float) -> None:
        """key ← momentum · key + (1 − momentum) · query, over parameters; batch statistics stay its own."""
        query = [*self.encoder.parameters(), *self.projector.parameters()]
        key = [*self.key_encoder.parameters(), *self.key_projector.parameters()]
        for k, q in zip(key, query, strict=True):
            k.lerp_(q, 1 - momentum)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers, each normalised over the batch; ReLU in between, none and no affine after the last."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths), start=2):
        last = i == len(widths)
        layers += [nn.Linear(n_in, n_out, bias=False), nn.BatchNorm1d(n_out, affine=not last)]
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def contrastive_loss(
    q_BE: Tensor, k_BE: Tensor, temperature: float, gather: Gather | None = None, rank: int = 0
) -> Tensor:
    """InfoNCE: each query must pick its own image's key out of every worker's keys. A scalar.

    `gather` returns all workers' keys k_GE in the order of their ranks, each with the same B; the mean of
    the workers' losses is then the loss of one worker on the joined batch.
    """
    q_BE, k_BE = F.normalize(q_BE, dim=1), F.normalize(k_BE, dim=1)
    k_GE = gather(k_BE) if gather else k_BE
    own_B = torch.arange(len(q_BE), device=q_BE.device) + rank * len(q_BE)
    # 2τ keeps the gradient's size whatever the temperature, as in MoCo-v3.
    return 2 * temperature * F.cross_entropy(q_BE @ k_GE.T / temperature, own_B)


@torch.no_grad()
def gather_keys(k_BE: Tensor) -> Tensor:
    """All ranks' keys k_GE through torch.distributed; keys carry no gradient, so none has to travel back."""
    parts = [torch.empty_like(k_BE) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, k_BE.contiguous())
    return torch.cat(parts)


def momentum_at(step: int, total: int, base: float) -> float:
    """The key network's momentum at `step` of `total`: from `base` up to 1 along half a cosine."""
    return 1 - (1 - base) * 0.5 * (1 + math.cos(math.pi * step / total))


def learning_rate_at(step: int, total: int, warmup: int, base: float) -> float:
    """Linear from 0 to `base` over `warmup` steps, then half a cosine down to 0 at `total`."""
    if step < warmup:
        return base * step / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
