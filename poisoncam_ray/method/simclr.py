"""SimCLR (arXiv 2002.05709, algorithm 1): two views of an image must find each other among all other views,
with one network and no followers.

B images of this worker, V = 2B views of them, A views of all workers together, E projection dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poisoncam_ray.method.augment import SYMMETRIC
from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.method.gather import Gather
from poisoncam_ray.method.heads import mlp


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
