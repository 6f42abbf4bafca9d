"""The peer method's candidate window: Grad-CAM of the similarity to the own centroid, kept for comparison.

N images   C image channels   H = W image side   D feature dimensions   K clusters   B images at once
map_BEhw the encoder's last feature map: E channels on an h × w grid
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from poisoncam_ray.method.cam import best_window


class MappedEncoder(Protocol):
    """An encoder that shows the feature map from which it pools its feature, with gradients."""

    def feature_map(self, x_BCHW: Tensor, /) -> tuple[Tensor, Tensor]: ...


def gradcam_windows(
    encoder: MappedEncoder, x_NCHW: Tensor, own_N: Tensor, c_KD: Tensor, window: int, batch: int = 256
) -> Tensor:
    """box_N4: the `window` of greatest sum in each image's Grad-CAM map, in pixels."""
    parts = zip(x_NCHW.split(batch), own_N.split(batch), strict=True)
    return torch.cat(
        [best_window(gradcam(encoder, x_BCHW, c_KD[own_B]), window)[0] for x_BCHW, own_B in parts]
    )


def gradcam(encoder: MappedEncoder, x_BCHW: Tensor, c_BD: Tensor) -> Tensor:
    """a_BHW ≥ 0: the last feature map, weighted by each channel's mean gradient of the cosine similarity
    between the image's feature and its own centroid c_BD, rectified and brought to image size (bilinear)."""
    with torch.enable_grad():
        f_BD, map_BEhw = encoder.feature_map(x_BCHW)
        # Images do not mix in an encoder at rest, so the gradient of the sum is every image's own gradient.
        similarity = F.cosine_similarity(f_BD.float(), c_BD.float(), dim=1).sum()
        (gradient_BEhw,) = torch.autograd.grad(similarity, map_BEhw)
    weight_BE11 = gradient_BEhw.mean(dim=(2, 3), keepdim=True)
    a_B1hw = (weight_BE11 * map_BEhw.detach()).sum(dim=1, keepdim=True).relu().float()
    return F.interpolate(a_B1hw, x_BCHW.shape[2:], mode="bilinear", align_corners=False)[:, 0]
