"""How alike two windows look, whatever their brightness, contrast and a small shift.

N, M  windows   C channels   h, w a window's sides   s = LOOK_SIDE   E look dimensions
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

LOOK_SIDE = 12
SHIFTS = 3
"""Pixels of LOOK_SIDE: windows of one trigger lie up to a quarter of their side apart."""


def look(t_Chw: Tensor) -> Tensor:
    """t_Css: a window of any size, float in [0, 1], as small as looks are compared."""
    return F.interpolate(t_Chw[None].float(), size=(LOOK_SIDE, LOOK_SIDE), mode="area")[0]


def likeness(t_NCss: Tensor, t_MCss: Tensor) -> Tensor:
    """likeness_NM, −1 … 1: the best correlation of any two small pictures over shifts of at most SHIFTS
    pixels; brightness and contrast do not matter, and a flat picture is like none."""
    best_NM = torch.full((len(t_NCss), len(t_MCss)), -1.0)
    shifts = range(-SHIFTS, SHIFTS + 1)
    for dy, dx in product(shifts, shifts):
        best_NM = torch.maximum(best_NM, _part(t_NCss, dy, dx) @ _part(t_MCss, -dy, -dx).T)
    return best_NM


def _part(t_NCss: Tensor, dy: int, dx: int) -> Tensor:
    """What overlaps after a shift, as unit vectors look_NE without their mean colour."""
    side = t_NCss.shape[-1]
    rows, columns = slice(max(0, dy), side + min(0, dy)), slice(max(0, dx), side + min(0, dx))
    part_NChw = t_NCss[:, :, rows, columns]
    # What rounding leaves of a flat picture must not become a look.
    return F.normalize((part_NChw - part_NChw.mean(dim=(2, 3), keepdim=True)).flatten(1), dim=1, eps=1e-3)
