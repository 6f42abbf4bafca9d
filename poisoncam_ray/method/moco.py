"""MoCo-v3 (arXiv 2104.02057, algorithm 1): two views of an image must find each other among all others.

B images of this worker, G images of all workers together, E projection dimensions; q queries, k keys.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poisoncam_ray.method.augment import ASYMMETRIC
from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.method.gather import Gather
from poisoncam_ray.method.heads import mlp
from poisoncam_ray.method.momentum import follow


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
