"""What a score rests on: how much of it is lost when parts of the image are hidden.

B windows, each hidden in one copy of the image   C channels   H = W = S image side
m_BHW masks, 1 visible … 0 hidden   s_B scores   a_HW heat map
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from poisoncam_ray.method.cam import mean_colour
from poisoncam_ray.method.masks import make_masks

PLACES = 15
"""Places of the hidden window along a side, at most."""
WINDOW = 0.2
"""Side of the hidden window, as a share of the image's side."""


@torch.inference_mode()
def occlusion_map(score: Callable[[Tensor], Tensor], x_CHW: Tensor) -> tuple[Tensor, float]:
    """Hide one window after the other, on a regular grid, and see what the score loses.

    Args:
        score: from images x_BCHW, float in [0, 1], to s_B.
        x_CHW: the image, float in [0, 1], square.

    Returns:
        a_HW: at each pixel the mean loss over the windows that hide it; negative where hiding it raises the
            score.
        The greatest loss by a single window.
    """
    side = x_CHW.shape[-1]
    window = max(1, round(WINDOW * side))
    # A grid of windows draws nothing.
    m_BHW = make_masks("sliding", PLACES**2, side, 1, window, Generator()).to(x_CHW)
    fill_C = mean_colour(x_CHW[None])[0]
    x_BCHW = torch.lerp(fill_C[None, :, None, None], x_CHW[None], m_BHW[:, None])
    lost_B = score(x_CHW[None]) - score(x_BCHW)
    hidden_BHW = 1 - m_BHW
    a_HW = (lost_B[:, None, None] * hidden_BHW).sum(dim=0) / hidden_BHW.sum(dim=0).clamp(min=1)
    return a_HW, float(lost_B.max())
