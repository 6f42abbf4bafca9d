"""Is the window needed? A trigger moves other images into its cluster, and without it its own image leaves.

N images   C channels   H = W image side   D feature dimensions   K clusters   g_K the group of each cluster
"""

import torch
from torch import Tensor

from poisoncam_ray.method.boxes import inside
from poisoncam_ray.method.cam import Embedder
from poisoncam_ray.method.kmeans import assign

LEAST_SHARE = 0.5
"""Of a family's windows so many must be needed. Hiding the suspected windows took 0.91 to 0.97 of the
poisoned images out of their group of clusters where the trigger was one patch, 0.61 to 0.77 where it was
larger than the window, differed from image to image or was several patches, and 0.18 to 0.26 of benign ones
(photographs of the tuning classes, and the demo): a piece of sky pulls images to the skies, but a sky without
it stays one."""


@torch.inference_mode()
def needed(
    encoder: Embedder,
    x_NCHW: Tensor,
    box_N4: Tensor,
    own_N: Tensor,
    c_KD: Tensor,
    g_K: Tensor,
    fill_NC: Tensor,
    batch: int,
) -> Tensor:
    """needed_N, bool: whether the image leaves the group of its own cluster when its window is hidden under
    its `fill_NC` colour.

    `box_N4` may differ in size. Other arguments as in `cam.candidate_windows`, `g_K` as in
    `groups.group_clusters`.
    """
    parts = []
    for i_M in torch.arange(len(x_NCHW), device=x_NCHW.device).split(batch):
        hidden_M1HW = inside(box_N4[i_M], x_NCHW.shape[-1])[:, None].to(x_NCHW)
        masked_MCHW = torch.lerp(x_NCHW[i_M], fill_NC[i_M][:, :, None, None], hidden_M1HW)
        landed_M = assign(encoder.embed(masked_MCHW), c_KD)[0]
        parts.append(g_K[landed_M] != g_K[own_N[i_M]])
    return torch.cat(parts)


def keep_needed(family_N: Tensor, needed_N: Tensor) -> Tensor:
    """family_N (numbered from 1 without gaps, 0: none) without the families of whose windows fewer than
    LEAST_SHARE are needed, numbered anew."""
    kept_N = torch.zeros_like(family_N)
    number = 0
    for family in range(1, int(family_N.max()) + 1):
        own_N = family_N == family
        if float(needed_N[own_N].double().mean()) >= LEAST_SHARE:
            number += 1
            kept_N[own_N] = number
    return kept_N
