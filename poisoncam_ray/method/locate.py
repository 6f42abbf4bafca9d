"""Where on a removed image is the trigger? The windows of its family, slid over the image.

Masks see the trigger only where it moves the image, and among natural images it may not;
once the search has found what the trigger looks like, that is enough to point at it anywhere.

N images   C channels   S image side   h, w a window's sides   y, x its place
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 64
"""Pixels: larger images are shrunk to it. A box is then exact to one part in 64 of the image's side."""
FLAT = 1e-4
"""Energy of a place, summed over its pixels, below which it counts as flat and is like no window."""


@torch.inference_mode()
def locate(x_NCSS: Tensor, windows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(box_N4 int64, likeness_N −1 … 1): the place that correlates best with any of the windows; its
    brightness and contrast do not matter. Among equals the first window wins, then the topmost place.

    x_NCSS: float in [0, 1]; `windows`: t_Chw of any sizes, float in [0, 1], on the same device. The box is as
    large as its window. Raises ValueError without windows, or for one that is larger than the images.
    """
    side, n = x_NCSS.shape[-1], len(x_NCSS)
    if not windows:
        raise ValueError("There is no window to look for.")
    shrunk = min(1.0, SIDE / side)
    small_NCSS = x_NCSS if shrunk == 1 else F.interpolate(x_NCSS, size=(SIDE, SIDE), mode="area")
    best_N = torch.full((n,), -torch.inf, device=x_NCSS.device)
    box_N4 = torch.zeros(n, 4, dtype=torch.int64, device=x_NCSS.device)
    for t_Chw in windows:
        h, w = t_Chw.shape[-2:]
        if h > side or w > side:
            raise ValueError(f"A window of {h}×{w} pixels does not fit into {side} pixels.")
        size = (max(1, round(h * shrunk)), max(1, round(w * shrunk)))
        small_1Chw = F.interpolate(t_Chw[None], size=size, mode="area")
        like_Nyx = correlation(small_NCSS, small_1Chw[0])
        most_N, place_N = like_Nyx.flatten(1).max(dim=1)
        y_N, x_N = place_N // like_Nyx.shape[2], place_N % like_Nyx.shape[2]
        corner_N2 = (torch.stack([x_N, y_N], dim=1) / shrunk).round().long()
        corner_N2 = corner_N2.clamp(max=torch.tensor([side - w, side - h], device=x_NCSS.device))
        found_N4 = torch.cat([corner_N2, corner_N2 + torch.tensor([w, h], device=x_NCSS.device)], dim=1)
        better_N = most_N > best_N
        best_N = torch.where(better_N, most_N, best_N)
        box_N4 = torch.where(better_N[:, None], found_N4, box_N4)
    return box_N4, best_N


def correlation(x_NCSS: Tensor, t_Chw: Tensor) -> Tensor:
    """like_Nyx, −1 … 1: of the window with every place that holds it, colours centred each for itself; 0
    where either is flat."""
    h, w = t_Chw.shape[-2:]
    t_Chw = t_Chw - t_Chw.mean(dim=(1, 2), keepdim=True)
    energy = float(t_Chw.square().sum())
    # What the window's mean colour would add is nothing: it is centred.
    product_Nyx = F.conv2d(x_NCSS, t_Chw[None])[:, 0]
    mean_NCyx = F.avg_pool2d(x_NCSS, (h, w), stride=1)
    square_NCyx = F.avg_pool2d(x_NCSS.square(), (h, w), stride=1)
    energy_Nyx = h * w * (square_NCyx - mean_NCyx.square()).sum(dim=1)
    like_Nyx = product_Nyx / (energy_Nyx.clamp(min=FLAT) * max(energy, FLAT)).sqrt()
    return torch.where(energy_Nyx > FLAT, like_Nyx, 0.0).clamp(-1, 1)
