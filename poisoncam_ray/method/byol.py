"""BYOL (arXiv 2006.07733): one view of an image must predict what a slower copy of the network says of the
other view. No negatives.

B images of this worker, E projection dimensions; p predictions, t targets.
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
