"""Descriptors of the windows of a picture: what a patch looks like, without its brightness and contrast.

W windows   A cells along a side of a window, all windows of a row or column one after the other
D = 8 · 8 · 3 numbers of a descriptor   H height, L length of a side, in pixels
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CELLS = 8
DIM = 3 * CELLS**2
LOW_CONTRAST = 0.08
"""Windows of a lower standard deviation are left out: plain ground looks the same in all images."""
LONGEST = 4
"""A longer picture is squeezed to so many times its shorter side."""


@dataclass(frozen=True)
class Grid:
    """Where windows lie.

    Attributes:
        side: of a window, in pixels of the picture.
        shorter: every picture is resized to this shorter side first, in pixels.
    """

    side: int
    shorter: int = 64

    @property
    def stride(self) -> int:
        """From window to window, in pixels. A patch as wide as a window and a stride holds a window at the
        same place in all images."""
        return max(1, round(self.side / 6))


@dataclass(frozen=True)
class Windows:
    """The windows of one picture that have contrast.

    Attributes:
        x_WD: descriptors of mean 0 in each channel and unit length, float32.
        box_W4: integer [x0, y0, x1, y1) in pixels of the stored image.
    """

    x_WD: Tensor
    box_W4: np.ndarray


def windows(image: Image.Image, grid: Grid) -> Windows:
    """The windows of one picture.

    Args:
        image: the stored image, RGB.
        grid: where they lie.
    """
    width, height = _size(image.size, grid.shorter)
    small = (
        image if (width, height) == image.size else image.resize((width, height), Image.Resampling.BILINEAR)
    )
    x_HLC = torch.from_numpy(np.array(small)).float() / 255
    down_AH, across_AL = _averages(height, grid.side, grid.stride), _averages(width, grid.side, grid.stride)
    x_AAC = torch.einsum("bl,alc->abc", across_AL, torch.einsum("ah,hlc->alc", down_AH, x_HLC))
    rows, columns = len(down_AH) // CELLS, len(across_AL) // CELLS
    cells = x_AAC.view(rows, CELLS, columns, CELLS, 3).permute(0, 2, 1, 3, 4)
    x_WCD = cells.reshape(rows * columns, CELLS**2, 3)
    x_WD = (x_WCD - x_WCD.mean(dim=1, keepdim=True)).view(-1, DIM)
    length_W = x_WD.norm(dim=1)
    place_W = torch.nonzero(length_W >= LOW_CONTRAST * DIM**0.5)[:, 0]
    x, y = (place_W % columns).numpy() * grid.stride, (place_W // columns).numpy() * grid.stride
    box_W4 = np.stack([x, y, x + grid.side, y + grid.side], axis=1)
    scale = np.array([image.width / width, image.height / height] * 2)
    return Windows(x_WD[place_W] / length_W[place_W, None], np.rint(box_W4 * scale).astype(np.int64))


def mirrored(x_WD: Tensor) -> Tensor:
    """The descriptors of the same windows in the picture's mirror image."""
    return x_WD.view(-1, CELLS, CELLS, 3).flip(2).reshape(-1, DIM)


def _size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    least = min(size)
    width, height = (max(shorter, min(LONGEST * shorter, round(side * shorter / least))) for side in size)
    return width, height


@cache
def _averages(length: int, side: int, stride: int) -> Tensor:
    """average_AL: row `8 w + c` takes the mean of cell c of the window that begins at pixel w · stride. Cells
    begin and end at fractions of pixels."""
    start_W1 = np.arange(0, length - side + 1, stride)[:, None]
    edge_WE = start_W1 + np.arange(CELLS + 1) * side / CELLS
    low_A1, high_A1 = edge_WE[:, :-1].reshape(-1, 1), edge_WE[:, 1:].reshape(-1, 1)
    pixel_L = np.arange(length)
    overlap_AL = np.clip(np.minimum(high_A1, pixel_L + 1) - np.maximum(low_A1, pixel_L), 0, None)
    return torch.from_numpy(overlap_AL * CELLS / side).float()
