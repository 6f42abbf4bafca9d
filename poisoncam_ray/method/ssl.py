"""The heads that pretraining puts on a backbone and throws away afterwards.

A network that follows another as its moving average: MoCo's key network, BYOL's target network.

How the learning rate moves over a pretraining.

The rows of all workers, for losses that compare every image with all others.

B rows of this worker, G rows of all workers together, E dimensions.

MoCo-v3 (arXiv 2104.02057, algorithm 1): two views of an image must find each other among all others.

B images of this worker, G images of all workers together, E projection dimensions; q queries, k keys.

SimCLR (arXiv 2002.05709, algorithm 1): two views of an image must find each other among all other views,
with one network and no followers.

B images of this worker, V = 2B views of them, A views of all workers together, E projection dimensions.

BYOL (arXiv 2006.07733): one view of an image must predict what a slower copy of the network says of the
other view. No negatives.

B images of this worker, E projection dimensions; p predictions, t targets.

What a pretraining can minimise, by the names that configuration knows.

All are made alike, `(encoder, hidden_dim, out_dim, temperature)`, and used alike: `update_target(momentum)`,
then `forward(v1, v2, gather, rank)`, two views made by the class's own `recipe`; `encoder` is kept.
"""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from poisoncam_ray.method.augment import ASYMMETRIC, SYMMETRIC
from poisoncam_ray.method.encoder import Encoder

# --- heads ---


def mlp(*widths: int, norm_last: bool = True) -> nn.Sequential:
    """Linear layers, each normalised over the batch; ReLU in between, none and no affine after the last.

    `norm_last` false leaves the last layer as it is, with a bias: BYOL's heads (arXiv 2006.07733 §3.3).
    """
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths), start=2):
        last = i == len(widths)
        if last and not norm_last:
            layers.append(nn.Linear(n_in, n_out))
            continue
        layers += [nn.Linear(n_in, n_out, bias=False), nn.BatchNorm1d(n_out, affine=not last)]
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


# --- momentum ---


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """target ← momentum · target + (1 − momentum) · online, over parameters; batch statistics stay
    its own."""
    for t, o in zip(target.parameters(), online.parameters(), strict=True):
        t.lerp_(o, 1 - momentum)


def momentum_at(step: int, total: int, base: float) -> float:
    """The momentum at `step` of `total`: from `base` up to 1 along half a cosine (BYOL §3.3)."""
    return 1 - (1 - base) * 0.5 * (1 + math.cos(math.pi * step / total))


# --- schedule ---


def learning_rate_at(step: int, total: int, warmup: int, base: float) -> float:
    """Linear from 0 to `base` over `warmup` steps, then half a cosine down to 0 at `total`."""
    if step < warmup:
        return base * step / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


# --- gather ---

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


# --- moco ---


class MoCoV3(nn.Module):
    """A query network that learns (encoder, projector, predictor) and a key network that follows it as a
    moving average (encoder, projector).

    `hidden_dim`, `out_dim`: width of the heads (reference: 4096, 256); `temperature`: τ (0.2).
    `self.encoder` is what pretraining is for: the defence uses it and drops the rest.
    """

    recipe = ASYMMETRIC

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
        """The symmetric loss of two views, a scalar. Call update_target first, as the paper does."""
        q1_BE = self.predictor(self.projector(self.encoder(v1_BCHW)))
        q2_BE = self.predictor(self.projector(self.encoder(v2_BCHW)))
        with torch.no_grad():
            k1_BE = self.key_projector(self.key_encoder(v1_BCHW))
            k2_BE = self.key_projector(self.key_encoder(v2_BCHW))
        loss_12 = contrastive_loss(q1_BE, k2_BE, self.temperature, gather, rank)
        loss_21 = contrastive_loss(q2_BE, k1_BE, self.temperature, gather, rank)
        return loss_12 + loss_21

    def update_target(self, momentum: float) -> None:
        """The key network follows the query network."""
        follow(self.key_encoder, self.encoder, momentum)
        follow(self.key_projector, self.projector, momentum)


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


# --- simclr ---


class SimCLR(nn.Module):
    """An encoder and a projector of two layers.

    `hidden_dim`, `out_dim`: width of the projector (paper: as wide as ResNet-50's feature, 128; §2.3);
    `temperature`: τ (paper: 0.1, §5.1). `self.encoder` is what pretraining is for: the defence uses it and
    drops the rest. The paper's batch statistics are common to all workers; here each worker of a CPU run, and
    each worker's encoder in any run, has its own.
    """

    recipe = SYMMETRIC

    def __init__(
        self, encoder: Encoder, hidden_dim: int = 2048, out_dim: int = 128, temperature: float = 0.1
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = mlp(encoder.dim, hidden_dim, out_dim)
        self.temperature = temperature

    def forward(
        self, v1_BCHW: Tensor, v2_BCHW: Tensor, gather: Gather | None = None, rank: int = 0
    ) -> Tensor:
        """NT-Xent of two views, a scalar."""
        # Both views in one batch, as in the paper: batch statistics cannot tell a view from its pair.
        z_VE = self.projector(self.encoder(torch.cat([v1_BCHW, v2_BCHW])))
        return nt_xent(z_VE, self.temperature, gather, rank)

    def update_target(self, momentum: float) -> None:
        """Nothing: no network follows here."""


def nt_xent(z_VE: Tensor, temperature: float, gather: Gather | None = None, rank: int = 0) -> Tensor:
    """Each view must pick the other view of its image out of all workers' views but itself. A scalar.

    z_VE: the first views of B images, then their second views in the same order. `gather` returns all
    workers' z_AE in the order of their ranks, each with the same B, and brings gradients back from all of
    them: every view is a query here and a negative everywhere. The mean of the workers' losses is then the
    loss of one worker on the joined batch, and so is its gradient.
    """
    z_VE = F.normalize(z_VE, dim=1)
    z_AE = gather(z_VE) if gather else z_VE
    V = len(z_VE)
    view_V = torch.arange(V, device=z_VE.device)
    itself_V, other_V = rank * V + view_V, rank * V + view_V.roll(V // 2)
    logits_VA = z_VE @ z_AE.T / temperature
    logits_VA = logits_VA.scatter(1, itself_V[:, None], float("-inf"))
    return F.cross_entropy(logits_VA, other_V)


# --- byol ---


class BYOL(nn.Module):
    """An online network that learns (encoder, projector, predictor) and a target network that follows it as
    a moving average (encoder, projector). The predictor is what keeps all features from becoming one.

    `hidden_dim`, `out_dim`: width of the heads (paper: 4096, 256; §3.3); `temperature` has no meaning here
    and is taken so that all objectives are made alike. `self.encoder` is what pretraining is for: the
    defence uses it and drops the rest.
    """

    recipe = ASYMMETRIC

    def __init__(
        self, encoder: Encoder, hidden_dim: int = 4096, out_dim: int = 256, temperature: float = 1.0
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = mlp(encoder.dim, hidden_dim, out_dim, norm_last=False)
        self.predictor = mlp(out_dim, hidden_dim, out_dim, norm_last=False)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def forward(
        self, v1_BCHW: Tensor, v2_BCHW: Tensor, gather: Gather | None = None, rank: int = 0
    ) -> Tensor:
        """The symmetric loss of two views, a scalar in [0, 8]. `gather` and `rank` are not needed: no image
        is compared with another, so the mean of the workers' losses is the loss of the joined batch."""
        p1_BE = self.predictor(self.projector(self.encoder(v1_BCHW)))
        p2_BE = self.predictor(self.projector(self.encoder(v2_BCHW)))
        with torch.no_grad():
            t1_BE = self.target_projector(self.target_encoder(v1_BCHW))
            t2_BE = self.target_projector(self.target_encoder(v2_BCHW))
        return regression_loss(p1_BE, t2_BE) + regression_loss(p2_BE, t1_BE)

    def update_target(self, momentum: float) -> None:
        """The target network follows the online network (paper: momentum from 0.996 up to 1, §3.3)."""
        follow(self.target_encoder, self.encoder, momentum)
        follow(self.target_projector, self.projector, momentum)


def regression_loss(p_BE: Tensor, t_BE: Tensor) -> Tensor:
    """‖p − t‖² of unit vectors, 2 − 2·cos, mean over images (equation 2). A scalar in [0, 4]."""
    return (F.normalize(p_BE, dim=1) - F.normalize(t_BE, dim=1)).square().sum(1).mean()


# --- objectives ---

Objective = MoCoV3 | SimCLR | BYOL

OBJECTIVES: dict[str, type[MoCoV3] | type[SimCLR] | type[BYOL]] = {
    "moco_v3": MoCoV3,
    "simclr": SimCLR,
    "byol": BYOL,
}
