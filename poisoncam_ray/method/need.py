"""Is the window needed? A trigger moves other images into its cluster, and without it its own image leaves.

A piece of sky pulls images to the skies, but a sky without it often stays one. Hiding their candidate
windows took 0.67 to 0.99 of poisoned images out of their clusters where the trigger was one patch, 0.74 and
0.83 where it differed from image to image or was several, and 0.53 to 0.59 of benign images (photographs,
tuning classes). Leaving the whole group of clusters was asked for before: fewer benign windows are needed
then, but neither are those of poison that lies beside natural images of its own category, whose group is
the same without the trigger.

N images   C channels   H = W image side   D feature dimensions   K clusters
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
    fill_NC: Tensor,
    batch: int,
) -> Tensor:
    """needed_N, bool: whether the image leaves its own cluster when its window is hidden under its `fill_NC`
    colour.

    `box_N4` may differ in size. Other arguments as in `cam.candidate_windows`.
    """
    parts = []
    for i_M in torch.arange(len(x_NCHW), device=x_NCHW.device).split(batch):
        hidden_M1HW = inside(box_N4[i_M], x_NCHW.shape[-1])[:, None].to(x_NCHW)
        masked_MCHW = torch.lerp(x_NCHW[i_M], fill_NC[i_M][:, :, None, None], hidden_M1HW)
        landed_M = assign(encoder.embed(masked_MCHW), c_KD)[0]
        parts.append(landed_M != own_N[i_M])
    return torch.cat(parts)
