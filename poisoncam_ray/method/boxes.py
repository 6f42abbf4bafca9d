"""Boxes: integer [x0, y0, x1, y1) in pixels, x to the right, y down, x1 and y1 outside.

N boxes, box_N4 int64
"""

import math

import torch
from torch import Tensor


def area(box_N4: Tensor) -> Tensor:
    """area_N in pixels; a box with no extent has none."""
    return (box_N4[:, 2:] - box_N4[:, :2]).clamp(min=0).prod(dim=1)


def intersection(a_N4: Tensor, b_N4: Tensor) -> Tensor:
    """area_N of the pixels that lie in both boxes, pair by pair."""
    return area(
        torch.cat([torch.maximum(a_N4[:, :2], b_N4[:, :2]), torch.minimum(a_N4[:, 2:], b_N4[:, 2:])], 1)
    )


def iou(a_N4: Tensor, b_N4: Tensor) -> Tensor:
    """Intersection over union, pair by pair, in 0 … 1; 0 for two empty boxes."""
    both_N = intersection(a_N4, b_N4)
    return both_N / (area(a_N4) + area(b_N4) - both_N).clamp(min=1)


def coverage(a_N4: Tensor, b_N4: Tensor) -> Tensor:
    """The share of each b that its a covers, in 0 … 1; 0 for an empty b."""
    return intersection(a_N4, b_N4) / area(b_N4).clamp(min=1)


def map_box(box_N4: Tensor, width_N: Tensor, height_N: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
    """Boxes in stored pixels to the encoder's square: (box_N4 in 0 … image_size, visible_N in 0 … 1).

    The image goes through the decoder's geometry: its centre square, as wide as the shorter side, resized.
    Corners are rounded to whole pixels; `visible_N` is the share of the box that the square leaves.
    """
    size_N2 = torch.stack([width_N, height_N], dim=1).double()
    side_N1 = size_N2.amin(dim=1, keepdim=True)
    corner_N4 = ((size_N2 - side_N1) / 2).repeat(1, 2)
    mapped_N4 = (box_N4 - corner_N4) * (image_size / side_N1)
    kept_N4 = mapped_N4.clamp(0, image_size)
    whole_N, kept_N = area(mapped_N4), area(kept_N4)
    visible_N = torch.where(whole_N > 0, kept_N / whole_N.clamp(min=1e-9), 0).float()
    return kept_N4.round().long(), visible_N


def unmap_box(box_N4: Tensor, width_N: Tensor, height_N: Tensor, image_size: int) -> Tensor:
    """Boxes in the encoder's square in stored pixels, box_N4: what `map_box` does, the other way round,
    rounded to whole pixels inside the image."""
    size_N2 = torch.stack([width_N, height_N], dim=1).double()
    side_N1 = size_N2.amin(dim=1, keepdim=True)
    corner_N4 = ((size_N2 - side_N1) / 2).repeat(1, 2)
    stored_N4 = (box_N4 * (side_N1 / image_size) + corner_N4).round()
    return torch.minimum(stored_N4.clamp(min=0), size_N2.repeat(1, 2)).long()


def about_centres(box_N4: Tensor, window: int, side: int) -> Tensor:
    """Squares of `window` pixels about the centres of the boxes, pushed back into images `side` pixels
    square. ValueError when they do not fit."""
    if not 1 <= window <= side:
        raise ValueError(f"a window of {window} pixels does not fit into {side} pixels")
    corner_N2 = ((box_N4[:, :2] + box_N4[:, 2:] - window) // 2).clamp(0, side - window)
    return torch.cat([corner_N2, corner_N2 + window], dim=1)


def inside(box_N4: Tensor, side: int) -> Tensor:
    """m_NHW, bool: the pixels inside each box, of images `side` pixels square."""
    at_S = torch.arange(side, device=box_N4.device)
    across_NW = (at_S >= box_N4[:, 0, None]) & (at_S < box_N4[:, 2, None])
    down_NH = (at_S >= box_N4[:, 1, None]) & (at_S < box_N4[:, 3, None])
    return down_NH[:, :, None] & across_NW[:, None, :]


def random_boxes(
    n: int,
    size_w: int,
    size_h: int,
    image_w: int,
    image_h: int,
    region: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """n boxes of one size, uniform over the whole-pixel places inside the region: box_N4.

    `region` (lo, hi) are fractions of both sides: (0.25, 0.75) is the middle half, (0, 1) the whole image.

    Raises ValueError when the box does not fit into the region.
    """
    lo, hi = region
    corners = []
    for size, side in ((size_w, image_w), (size_h, image_h)):
        first, last = math.ceil(lo * side), math.floor(hi * side) - size
        if not (0 <= lo < hi <= 1 and size >= 1 and first <= last):
            raise ValueError(f"a box of {size} pixels does not fit into {lo:g} … {hi:g} of {side} pixels")
        corners.append(torch.randint(first, last + 1, (n,), generator=generator))
    x_N, y_N = corners
    return torch.stack([x_N, y_N, x_N + size_w, y_N + size_h], dim=1)
