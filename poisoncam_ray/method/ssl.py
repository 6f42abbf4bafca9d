"""The self-supervised objectives that pretraining can minimise: MoCo-v3, SimCLR, BYOL and SimSiam.

    MoCo-v3   arXiv 2104.02057, algorithm 1: contrast of two views; the keys come from a moving average
    SimCLR    arXiv 2002.05709, algorithm 1: contrast of two views with a single network
    BYOL      arXiv 2006.07733, figure 2: one view predicts the moving average's projection of the other
    SimSiam   arXiv 2011.10566, algorithm 1: one view predicts the projection of the other, held fixed

All are made by `OBJECTIVES[name](encoder, hidden_dim, out_dim, temperature)` and used in the same way: two
views drawn by the class's `recipe`, then in every step `update_target(momentum)`, `forward(v1, v2, gather,
rank)`, and a step of the optimiser. After pretraining the defence keeps `encoder` and drops the rest.
Networks may compute in bfloat16 (torch.autocast). The losses are float32 in any case: two cosines that differ
by less than 0.004 are equal in bfloat16, and a temperature divides them.

B images of this worker   V = 2B views of them   G rows of all workers   A views of all workers
E projection dimensions   q queries   k keys   p predictions   t targets   z projections
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

from poisoncam_ray.method.augment import ASYMMETRIC, SYMMETRIC, SYMMETRIC_MILD
from poisoncam_ray.method.encoder import Encoder

Gather = Callable[[Tensor], Tensor]
"""From the rows of this worker to the rows of all workers in the order of their ranks, see gather_rows."""


class MoCoV3(nn.Module):
    """A query network that learns, and a key network that follows it as a moving average.

    The query network is an encoder, a projector and a predictor; the key network an encoder and a projector.

    Args:
        encoder: the encoder to train.
        hidden_dim: hidden width of the heads (reference implementation: 4096).
        out_dim: output width of the heads, E (reference implementation: 256).
        temperature: τ, above 0.
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
        """The symmetric contrastive loss of two views, a scalar.

        Args:
            v1_BCHW: first views, float in [0, 1].
            v2_BCHW: second views of the same images.
            gather: collects the keys of all workers; None with one worker.
            rank: of this worker.
        """
        q1_BE, q2_BE = self.query(v1_BCHW), self.query(v2_BCHW)
        k1_BE, k2_BE = self.key(v1_BCHW), self.key(v2_BCHW)
        loss_12 = contrastive_loss(q1_BE, k2_BE, self.temperature, gather, rank)
        loss_21 = contrastive_loss(q2_BE, k1_BE, self.temperature, gather, rank)
        return loss_12 + loss_21

    def query(self, v_BCHW: Tensor) -> Tensor:
        """The queries q_BE of views."""
        return self.predictor(self.projector(self.encoder(v_BCHW)))

    @torch.no_grad()
    def key(self, v_BCHW: Tensor) -> Tensor:
        """The keys k_BE of views, without a gradient."""
        return self.key_projector(self.key_encoder(v_BCHW))

    def update_target(self, momentum: float) -> None:
        """Move the key network towards the query network. Call it before forward, as in the paper."""
        follow(self.key_encoder, self.encoder, momentum)
        follow(self.key_projector, self.projector, momentum)


def contrastive_loss(
    q_BE: Tensor, k_BE: Tensor, temperature: float, gather: Gather | None = None, rank: int = 0
) -> Tensor:
    """InfoNCE: classify each query's own key among the keys of all workers.

    Args:
        q_BE: queries, of any length.
        k_BE: keys of the same images.
        temperature: τ, above 0.
        gather: collects the keys of all workers; every worker has the same B. None with one worker.
        rank: of this worker.

    Returns:
        A scalar. The mean over the workers is the loss of one worker on the joined batch.
    """
    with exact(q_BE):
        q_BE, k_BE = unit(q_BE), unit(k_BE)
        k_GE = gather(k_BE) if gather else k_BE
        own_B = torch.arange(len(q_BE), device=q_BE.device) + rank * len(q_BE)
        # The factor 2τ keeps the size of the gradient whatever the temperature, as in MoCo-v3.
        return 2 * temperature * F.cross_entropy(q_BE @ k_GE.T / temperature, own_B)


class SimCLR(nn.Module):
    """An encoder and a projector of two layers, without a second network.

    In the paper batch normalisation is synchronised over all workers. Here it is on GPUs; on CPUs the batch
    statistics are each worker's own.

    Args:
        encoder: the encoder to train.
        hidden_dim: hidden width of the projector (paper: 2048, the width of ResNet-50's feature; §2.3).
        out_dim: output width of the projector, E (paper: 128).
        temperature: τ, above 0 (paper: 0.1; §5.1).
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
        """NT-Xent of two views, a scalar.

        Args:
            v1_BCHW: first views, float in [0, 1].
            v2_BCHW: second views of the same images.
            gather: collects the projections of all workers, with gradients; None with one worker.
            rank: of this worker.
        """
        # One batch of both views, as in the paper: the two views then share their batch statistics.
        z_VE = self.projector(self.encoder(torch.cat([v1_BCHW, v2_BCHW])))
        return nt_xent(z_VE, self.temperature, gather, rank)

    def update_target(self, momentum: float) -> None:
        """Do nothing: there is no second network."""


def nt_xent(z_VE: Tensor, temperature: float, gather: Gather | None = None, rank: int = 0) -> Tensor:
    """Classify each view's partner among the views of all workers, itself excluded.

    Args:
        z_VE: projections of the first views of B images, then of their second views in the same order.
        temperature: τ, above 0.
        gather: collects the projections of all workers and returns gradients to all of them, since every
            view is a negative on every worker. Every worker has the same B. None with one worker.
        rank: of this worker.

    Returns:
        A scalar. The mean over the workers is the loss of one worker on the joined batch, and so is its
        gradient.
    """
    with exact(z_VE):
        z_VE = unit(z_VE)
        z_AE = gather(z_VE) if gather else z_VE
        V = len(z_VE)
        view_V = torch.arange(V, device=z_VE.device)
        itself_V, other_V = rank * V + view_V, rank * V + view_V.roll(V // 2)
        logits_VA = z_VE @ z_AE.T / temperature
        logits_VA = logits_VA.scatter(1, itself_V[:, None], float("-inf"))
        return F.cross_entropy(logits_VA, other_V)


class BYOL(nn.Module):
    """An online network that learns, and a target network that follows it as a moving average. No negatives.

    The online network is an encoder, a projector and a predictor; the target network an encoder and a
    projector. The predictor keeps the features from collapsing to a constant.

    Args:
        encoder: the encoder to train.
        hidden_dim: hidden width of the heads (paper: 4096; §3.3).
        out_dim: output width of the heads, E (paper: 256; §3.3).
        temperature: not used; all objectives take the same arguments.
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
        """The symmetric regression loss of two views, a scalar in [0, 8].

        Args:
            v1_BCHW: first views, float in [0, 1].
            v2_BCHW: second views of the same images.
            gather: not used: no image is compared with another, so the mean of the workers' losses is the
                loss of the joined batch.
            rank: not used.
        """
        p1_BE = self.predictor(self.projector(self.encoder(v1_BCHW)))
        p2_BE = self.predictor(self.projector(self.encoder(v2_BCHW)))
        with torch.no_grad():
            t1_BE = self.target_projector(self.target_encoder(v1_BCHW))
            t2_BE = self.target_projector(self.target_encoder(v2_BCHW))
        return regression_loss(p1_BE, t2_BE) + regression_loss(p2_BE, t1_BE)

    def update_target(self, momentum: float) -> None:
        """Move the target network towards the online network (paper: momentum from 0.996 up to 1, §3.3)."""
        follow(self.target_encoder, self.encoder, momentum)
        follow(self.target_projector, self.projector, momentum)


def regression_loss(p_BE: Tensor, t_BE: Tensor) -> Tensor:
    """‖p − t‖² of unit vectors, 2 − 2·cos, as the mean over images (equation 2): a scalar in [0, 4]."""
    with exact(p_BE):
        return (unit(p_BE) - unit(t_BE)).square().sum(1).mean()


class SimSiam(nn.Module):
    """An encoder, a projector and a predictor, without a second network and without negatives.

    The projection that is predicted gets no gradient; that keeps the features from collapsing to a constant.
    The paper trains with SGD and leaves the predictor's learning rate as it is. Here all weights are trained
    alike.

    Args:
        encoder: the encoder to train.
        hidden_dim: hidden width of the projector, which has three layers (paper: 2048; §3).
        out_dim: output width of the heads, E (paper: 2048). The predictor's hidden width is a quarter of it.
        temperature: not used; all objectives take the same arguments.
    """

    recipe = SYMMETRIC_MILD

    def __init__(
        self, encoder: Encoder, hidden_dim: int = 2048, out_dim: int = 2048, temperature: float = 1.0
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = mlp(encoder.dim, hidden_dim, hidden_dim, out_dim)
        self.predictor = mlp(out_dim, max(1, out_dim // 4), out_dim, norm_last=False)

    def forward(
        self, v1_BCHW: Tensor, v2_BCHW: Tensor, gather: Gather | None = None, rank: int = 0
    ) -> Tensor:
        """The symmetric negative cosine of two views, a scalar in [-1, 1].

        Args:
            v1_BCHW: first views, float in [0, 1].
            v2_BCHW: second views of the same images.
            gather: not used, as in BYOL.
            rank: not used.
        """
        z1_BE, z2_BE = (self.projector(self.encoder(v_BCHW)) for v_BCHW in (v1_BCHW, v2_BCHW))
        p1_BE, p2_BE = self.predictor(z1_BE), self.predictor(z2_BE)
        return (negative_cosine(p1_BE, z2_BE) + negative_cosine(p2_BE, z1_BE)) / 2

    def update_target(self, momentum: float) -> None:
        """Do nothing: there is no second network."""


def negative_cosine(p_BE: Tensor, z_BE: Tensor) -> Tensor:
    """−cos of predictions and projections, the mean over images, in [-1, 1]. z_BE gets no gradient."""
    with exact(p_BE):
        return -(unit(p_BE) * unit(z_BE.detach())).sum(1).mean()


def exact(x_BE: Tensor) -> torch.autocast:
    """A context without autocast on the device of x_BE."""
    return torch.autocast(x_BE.device.type, enabled=False)


def unit(x_BE: Tensor) -> Tensor:
    """Rows of length 1, in float32 or better."""
    return F.normalize(x_BE.to(torch.promote_types(x_BE.dtype, torch.float32)), dim=1)


Objective = MoCoV3 | SimCLR | BYOL | SimSiam

OBJECTIVES: dict[str, type[MoCoV3] | type[SimCLR] | type[BYOL] | type[SimSiam]] = {
    "moco_v3": MoCoV3,
    "simclr": SimCLR,
    "byol": BYOL,
    "simsiam": SimSiam,
}
"""By the names that the configuration uses."""


def mlp(*widths: int, norm_last: bool = True) -> nn.Sequential:
    """A head: linear layers, each followed by batch normalisation, with ReLU in between.

    Args:
        widths: of the input, the hidden layers and the output.
        norm_last: True normalises the last layer too, without an affine map. False leaves the last layer
            plain, with a bias, as in BYOL (arXiv 2006.07733 §3.3).
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


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Set target to momentum · target + (1 − momentum) · online.

    Only parameters move; the target keeps its own batch statistics.
    """
    # One call for all of them, instead of hundreds.
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - momentum)


def momentum_at(step: int, total: int, base: float) -> float:
    """The momentum at a step: half a cosine from `base` at step 0 up to 1 at step `total` (BYOL §3.3)."""
    return 1 - (1 - base) * 0.5 * (1 + math.cos(math.pi * step / total))


def learning_rate_at(step: int, total: int, warmup: int, base: float) -> float:
    """The learning rate at a step: linear from 0 to `base` over `warmup` steps, then half a cosine down to 0
    at step `total`."""
    if step < warmup:
        return base * step / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def gather_rows(x_BE: Tensor) -> Tensor:
    """Collect the rows of all workers through torch.distributed.

    Where x_BE carries a gradient, every worker must run backward: the gradients that the losses of the other
    workers have with respect to the rows of this one are summed into its own. The mean of the workers' losses
    then has the gradient of one worker's loss on the joined batch. DistributedDataParallel takes that mean,
    so no factor is needed.

    Args:
        x_BE: rows of this worker; every worker has the same B.

    Returns:
        x_GE, in the order of the ranks.
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
        # A copy, because autograd may hand the same memory to other consumers.
        grad_GE = grad_GE.clone(memory_format=torch.contiguous_format)
        # An all-reduce, because gloo (on CPUs) has no reduce-scatter.
        dist.all_reduce(grad_GE)
        return grad_GE.chunk(len(_ranks()))[dist.get_rank()]


def _ranks() -> range:
    return range(dist.get_world_size())
