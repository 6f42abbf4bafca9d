"""The floating point operations that one image costs, counted rather than timed: equal on every machine.

A multiplication with its addition counts as two operations. torch's counter counts matrix products and
convolutions only; the rest is small.

D feature dimensions   x_1CHW one grey image
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from poisoncam_ray.method.cam import gradcam
from poisoncam_ray.method.encoder import Encoder


@torch.no_grad()
def forward_flops(encoder: Encoder) -> int:
    """The operations of one image's feature."""
    return _count(encoder, encoder)


def gradcam_flops(encoder: Encoder) -> int:
    """The operations of one Grad-CAM map: a forward pass, and the gradient back to the last feature map."""
    c_1D = torch.ones(1, encoder.dim, device=encoder.pixel_mean.device)
    return _count(encoder, lambda x_1CHW: gradcam(encoder, x_1CHW, c_1D))


def _count(encoder: Encoder, work: Callable[[Tensor], Tensor]) -> int:
    size = encoder.image_size
    x_1CHW = torch.full((1, 3, size, size), 0.5, device=encoder.pixel_mean.device)
    # Attention is counted only if it is computed by matrix products, not by one fused kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work(x_1CHW)
    return counter.get_total_flops()
