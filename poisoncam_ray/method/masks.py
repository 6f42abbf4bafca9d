"""The masks of Cluster Activation Masking (arXiv 2312.07955): which pixels of an image stay visible.

B masks   H = W image side   G cells on a side   all m_BHW are float32 in 0 … 1: 1 visible, 0 hidden
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Strategy = Literal["interval", "random", "full_coverage", "sliding", "keep_only", "mixed"]

# Full coverage: this many masks together hide every cell exactly once, so each hides a quarter of the image.
GROUP = 4


def make_masks(
    strategy: Strategy, n_masks: int, image_size: int, cell: int, window: int, generator: torch.Generator
) -> Tensor:
    """Masks m_BHW of a square image, on the CPU.

    interval       every cell draws its visibility from U(0, 1); bilinear between cells
    random         half of the cells hidden, drawn anew for each mask
    full_coverage  each GROUP of masks hides every cell exactly once (`n_masks` a multiple of GROUP)
    sliding        one window hidden; its places form a regular grid over the image
    keep_only      one window visible at the same places
    mixed          half interval, half keep_only: two kinds of evidence that err on different images

    `cell` and `window` are sides in pixels, 1 … `image_size`; the first three read only `cell`, `sliding` and
    `keep_only` only `window`. B = `n_masks`, except where windows take part: their number is the largest
    square number of different places that fits into `n_masks` (for `mixed`: into half of it, and there are
    as many interval masks).

    Raises ValueError for an unknown strategy or sizes out of range.
    """
    least = 2 if strategy == "mixed" else 1
    if n_masks < least:
        raise ValueError(f"{strategy} needs at least {least} mask(s), got {n_masks}")
    for name, side in (("cell", cell), ("window", window)):
        if not 1 <= side <= image_size:
            raise ValueError(f"the {name} must be 1 … {image_size} pixels wide, got {side}")
    if strategy == "sliding":
        return 1 - _windows(n_masks, image_size, window)
    if strategy == "keep_only":
        return _windows(n_masks, image_size, window)
    if strategy == "mixed":
        keep_BHW = _windows(n_masks // 2, image_size, window)
        hide_BHW = make_masks("interval", len(keep_BHW), image_size, cell, window, generator)
        return torch.cat([hide_BHW, keep_BHW])
    cells = math.ceil(image_size / cell)
    if strategy == "interval":
        v_BGG = torch.rand(n_masks, cells, cells, generator=generator)
        return _smooth(v_BGG, image_size)
    if strategy == "random":
        # An odd number of cells cannot be halved: the larger half stays visible.
        v_BGG = (_shuffled_places(n_masks, cells, generator) >= cells**2 // 2).float()
        return _blocks(v_BGG, cell, image_size)
    if strategy == "full_coverage":
        return _blocks(_full_coverage(n_masks, cells, generator), cell, image_size)
    raise ValueError(f"mask strategy {strategy!r} is none of {', '.join(get_args(Strategy))}")


def keep_only(strategy: Strategy, n: int) -> Tensor:
    """keep_B, bool: which of the strategy's `n` masks show what matters, rather than hide it."""
    if strategy == "mixed":
        return torch.arange(n) >= n // 2
    return torch.full((n,), strategy == "keep_only")


def _full_coverage(n_masks: int, cells: int, generator: torch.Generator) -> Tensor:
    if n_masks % GROUP:
        raise ValueError(f"full_coverage masks come in groups of {GROUP}: {n_masks} is not a multiple")
    # A random deal of the cells to the group's masks, in equal hands (one more where they do not divide).
    hand_AGG = _shuffled_places(n_masks // GROUP, cells, generator) % GROUP
    hidden_AMGG = hand_AGG[:, None] == torch.arange(GROUP)[:, None, None]
    return (~hidden_AMGG).float().flatten(0, 1)


def _shuffled_places(n: int, cells: int, generator: torch.Generator) -> Tensor:
    """n independent random permutations of 0 … cells² − 1, laid out as grids."""
    return torch.rand(n, cells**2, generator=generator).argsort(dim=1).view(n, cells, cells)


def _blocks(v_BGG: Tensor, cell: int, image_size: int) -> Tensor:
    m_BHW = v_BGG.repeat_interleave(cell, dim=1).repeat_interleave(cell, dim=2)
    return m_BHW[:, :image_size, :image_size].contiguous()


def _smooth(v_BGG: Tensor, image_size: int) -> Tensor:
    size = (image_size, image_size)
    return F.interpolate(v_BGG[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _windows(n_masks: int, image_size: int, window: int) -> Tensor:
    """1 inside one window, 0 elsewhere, for a grid of places that reaches every border."""
    per_side = min(math.isqrt(n_masks), image_size - window + 1)
    starts_P = torch.linspace(0, image_size - window, per_side).round().long()
    pixel_S = torch.arange(image_size)
    inside_PS = (pixel_S >= starts_P[:, None]) & (pixel_S < starts_P[:, None] + window)
    return (inside_PS[:, None, :, None] & inside_PS[None, :, None, :]).flatten(0, 1).float()
