"""Normalised cross-correlation: how alike two small pictures are, whatever their brightness and contrast.

N, M  pictures   P pairs   C channels   h, w a picture's sides   s a thumbnail's side   E compared dimensions
S image side   y, x a place in an image
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

FLAT = 1e-4
"""Energy, summed over the pixels of a place, below which the place is flat. A flat place correlates with
nothing; without the bound, rounding errors would decide."""


def thumbnail(t_Chw: Tensor, side: int) -> Tensor:
    """Shrink a window by area averaging.

    Args:
        t_Chw: a window of any size, float in [0, 1].
        side: the side of the thumbnail in pixels.

    Returns:
        t_Css: the thumbnail, float in [0, 1].
    """
    return F.interpolate(t_Chw[None].float(), size=(side, side), mode="area")[0]


def shifted_ncc(t_NCss: Tensor, t_MCss: Tensor, max_shift: int) -> Tensor:
    """The best normalised cross-correlation of every pair of thumbnails over small shifts.

    Args:
        t_NCss: thumbnails, float.
        t_MCss: the thumbnails to compare them with, of the same side.
        max_shift: the largest shift in each direction, in thumbnail pixels.

    Returns:
        ncc_NM: −1 … 1. A flat thumbnail has 0 with every other.
    """
    best_NM = torch.full((len(t_NCss), len(t_MCss)), -1.0)
    shifts = range(-max_shift, max_shift + 1)
    for dy, dx in product(shifts, shifts):
        best_NM = torch.maximum(best_NM, _overlap(t_NCss, dy, dx) @ _overlap(t_MCss, -dy, -dx).T)
    return best_NM


def _overlap(t_NCss: Tensor, dy: int, dx: int) -> Tensor:
    """The part that overlaps after a shift, as unit vectors t_NE without their mean colour."""
    side = t_NCss.shape[-1]
    rows, columns = slice(max(0, dy), side + min(0, dy)), slice(max(0, dx), side + min(0, dx))
    part_NChw = t_NCss[:, :, rows, columns]
    # The bound keeps what rounding leaves of a flat thumbnail from becoming a pattern.
    return F.normalize((part_NChw - part_NChw.mean(dim=(2, 3), keepdim=True)).flatten(1), dim=1, eps=1e-3)


def gradient_ncc(thumbnail_MCss: Tensor, max_shift: int) -> float:
    """The median correlation of the gradients of two thumbnails, among all pairs.

    Skies and lawns are alike in their slow variations, which dominate a photograph. Gradients weigh all
    frequencies alike, so only the same picture correlates.

    Args:
        thumbnail_MCss: thumbnails, float.
        max_shift: as in `shifted_ncc`.

    Returns:
        −1 … 1; −1 for fewer than two thumbnails.
    """
    here = thumbnail_MCss[..., :-1, :-1]
    slope_MCss = torch.cat([thumbnail_MCss[..., :-1, 1:] - here, thumbnail_MCss[..., 1:, :-1] - here], dim=1)
    first, second = torch.triu_indices(len(slope_MCss), len(slope_MCss), offset=1)
    ncc_P = shifted_ncc(slope_MCss, slope_MCss, max_shift)[first, second]
    return float(ncc_P.median()) if len(ncc_P) else -1.0


def sliding_ncc(x_NCSS: Tensor, t_Chw: Tensor) -> Tensor:
    """The normalised cross-correlation of one window with every place of every image that holds it.

    Args:
        x_NCSS: images, float in [0, 1].
        t_Chw: the window, float in [0, 1], not larger than the images.

    Returns:
        ncc_Nyx: −1 … 1, each channel centred by itself; 0 where the place or the window is flat.
    """
    h, w = t_Chw.shape[-2:]
    t_Chw = t_Chw - t_Chw.mean(dim=(1, 2), keepdim=True)
    energy = float(t_Chw.square().sum())
    # The window is centred, so the mean colour of the place adds nothing to the product.
    product_Nyx = F.conv2d(x_NCSS, t_Chw[None])[:, 0]
    mean_NCyx = F.avg_pool2d(x_NCSS, (h, w), stride=1)
    square_NCyx = F.avg_pool2d(x_NCSS.square(), (h, w), stride=1)
    energy_Nyx = h * w * (square_NCyx - mean_NCyx.square()).sum(dim=1)
    ncc_Nyx = product_Nyx / (energy_Nyx.clamp(min=FLAT) * max(energy, FLAT)).sqrt()
    return torch.where(energy_Nyx > FLAT, ncc_Nyx, 0.0).clamp(-1, 1)
