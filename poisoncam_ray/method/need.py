"""Is the window needed? A trigger moves other images into its cluster, and without it its own image leaves.

A piece of sky pulls images to the skies, but a sky without it stays one. Hiding the best windows of poison's
groups took 0.91 to 0.97 of their images out of the group where the trigger was one patch, 0.61 to 0.77 where
it was larger than the window, differed from image to image or was several patches; of benign groups that pull
images 0.18 to 0.26 (photographs of the tuning classes, and the demo).

N images   C channels   H = W image side   D feature dimensions   K clusters   g_K the group of each cluster
"""

import torch
from torch import Tensor

from poisoncam_ray.method.boxes import inside
from poisoncam_ray.method.cam import Embedder
from poisoncam_ray.method.kmeans import assign


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
