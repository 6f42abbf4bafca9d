"""The poison score (arXiv 2312.07955): what a candidate does to the assignments of images it is pasted on.

N candidates   F flip-test images   C channels   w window side   H = W image side   D feature dimensions
K clusters   M pasted images at once
"""

import torch
from torch import Tensor

from poisoncam_ray.method.cam import Embedder
from poisoncam_ray.method.kmeans import assign
from poisoncam_ray.method.paste import paste, random_places


@torch.inference_mode()
def poison_scores(
    encoder: Embedder,
    t_NCww: Tensor,
    x_FCHW: Tensor,
    y_F: Tensor,
    own_N: Tensor,
    c_KD: Tensor,
    seeds_N: Tensor,
    batch: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both readings of the poison score as counts of flip-test images, and what they are read from:
    (changed_N, gain_N, landed_NF), int64.

    changed  assignments that moved anywhere, 0 … F (the paper's)
    gain     assignments that moved into the candidate's own cluster `own_N` minus those that left it, −F … F
    landed   the cluster of each pasted image

    Every candidate is pasted once on each image at a random place that `seeds_N` alone decides, so neither
    `batch` (images through the encoder at once, candidates together) nor the candidate's neighbours matter.
    `y_F` are the clusters of the unpasted images; images are float in [0, 1].
    """
    n, f = len(t_NCww), len(x_FCHW)
    size = (*t_NCww.shape[2:], *x_FCHW.shape[2:])
    box_M4 = random_places(seeds_N.cpu(), torch.arange(f), *size).flatten(0, 1).to(x_FCHW.device)
    pasted_parts = []
    for i_M in torch.arange(n * f, device=x_FCHW.device).split(batch):
        pasted_MCHW = paste(x_FCHW[i_M % f], t_NCww[i_M // f], box_M4[i_M])
        pasted_parts.append(assign(encoder.embed(pasted_MCHW), c_KD)[0])
    pasted_NF = torch.cat(pasted_parts).view(n, f)
    into_NF, from_NF = pasted_NF == own_N[:, None], y_F == own_N[:, None]
    gain_N = into_NF.sum(dim=1) - from_NF.sum(dim=1)
    return (pasted_NF != y_F).sum(dim=1), gain_N, pasted_NF
