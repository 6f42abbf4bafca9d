"""The masks of Cluster Activation Masking (arXiv 2312.07955): which pixels of an image stay visible.

B masks   H = W = S image side   G cells along a side   A groups of M masks   P window places along a side
All masks m_BHW are float32 in 0 … 1: 1 is visible, 0 is hidden.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Strategy = Literal["interval", "random", "full_coverage", "sliding", "keep_only", "mixed", "mixed_binary"]

# What the first half of the masks hides; the second half is keep-only.
MIXED: dict[str, Strategy] = {"mixed": "interval", "mixed_binary": "random"}
# Full coverage: so many masks together hide every cell exactly once, and each hides a quarter of the image.
GROUP = 4
SMOOTH: tuple[Strategy, ...] = ("interval", "mixed")
"""Their cells hide a little everywhere, so that no token can be dropped for them."""


def make_masks(
    strategy: Strategy, n_masks: int, image_size: int, cell: int, window: int, generator: torch.Generator
) -> Tensor:
    """Make the masks of a strategy.

    interval       the visibility of every cell is drawn from U(0, 1); bilinear between cells
    random         half of the cells are hidden, drawn anew for each mask
    full_coverage  each group of four masks hides every cell exactly once (the paper's)
    sliding        one window is hidden; its places form a regular grid over the image
    keep_only      one window is visible, at the same places
    mixed          half interval, half keep_only: they fail on different images
    mixed_binary   half random, half keep_only: each pixel is hidden or not, so a ViT can drop tokens

    Args:
        strategy: one of these.
        n_masks: the most masks; at least 2 for the mixed ones, a multiple of 4 for full_coverage.
        image_size: side of the image in pixels.
        cell: side of a cell in pixels, 1 … image_size; not used by sliding and keep_only.
        window: side of the window in pixels, 1 … image_size; used by sliding, keep_only and the mixed ones.
        generator: CPU generator; sliding and keep_only draw nothing.

    Returns:
        m_BHW on the CPU. B is n_masks for the first three strategies. For sliding and keep_only it is the
        largest square number of different places that is at most n_masks; for the mixed ones that of
        n_masks // 2, and as many interval or random masks before them.

    Raises:
        ValueError: the strategy is unknown, or a number is out of range.
    """
    least = 2 if strategy in MIXED else 1
    if n_masks < least:
        raise ValueError(f"{strategy} needs at least {least} mask(s), got {n_masks}")
    for name, side in (("cell", cell), ("window", window)):
        if not 1 <= side <= image_size:
            raise ValueError(f"the {name} must be 1 … {image_size} pixels wide, got {side}")
    if strategy == "sliding":
        return 1 - _windows(n_masks, image_size, window)
    if strategy == "keep_only":
        return _windows(n_masks, image_size, window)
    if strategy in MIXED:
        keep_BHW = _windows(n_masks // 2, image_size, window)
        hide_BHW = make_masks(MIXED[strategy], len(keep_BHW), image_size, cell, window, generator)
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
    """Tell which masks of a strategy show what matters, rather than hide it.

    Args:
        strategy: of make_masks.
        n: how many masks make_masks returned.

    Returns:
        keep_B, bool.
    """
    if strategy in MIXED:
        return torch.arange(n) >= n // 2
    return torch.full((n,), strategy == "keep_only")


def cell_of_patches(cell: int, patch: int) -> int:
    """The nearest side of a cell that is a whole number of patches, at least one.

    Cells that lie across patches hide few of them whole, and differently many in each mask. Where the cells
    are made of patches, every `random` mask hides the same share of the tokens.

    Args:
        cell: side of a cell in pixels.
        patch: side of a patch in pixels.
    """
    return patch * max(1, round(cell / patch))


def _full_coverage(n_masks: int, cells: int, generator: torch.Generator) -> Tensor:
    """The cells' visibility, v_BGG."""
    if n_masks % GROUP:
        raise ValueError(f"full_coverage masks come in groups of {GROUP}: {n_masks} is not a multiple")
    # Each cell belongs to one mask of its group, at random; the masks get equally many cells, up to one.
    mask_AGG = _shuffled_places(n_masks // GROUP, cells, generator) % GROUP
    hidden_AMGG = mask_AGG[:, None] == torch.arange(GROUP)[:, None, None]
    return (~hidden_AMGG).float().flatten(0, 1)


def _shuffled_places(n: int, cells: int, generator: torch.Generator) -> Tensor:
    """n independent random permutations of 0 … cells² − 1, as grids of cells."""
    return torch.rand(n, cells**2, generator=generator).argsort(dim=1).view(n, cells, cells)


def _blocks(v_BGG: Tensor, cell: int, image_size: int) -> Tensor:
    """Cells as squares of pixels; the last row and column are cut at the image's border."""
    m_BHW = v_BGG.repeat_interleave(cell, dim=1).repeat_interleave(cell, dim=2)
    return m_BHW[:, :image_size, :image_size].contiguous()


def _smooth(v_BGG: Tensor, image_size: int) -> Tensor:
    """Cells interpolated bilinearly to pixels."""
    size = (image_size, image_size)
    return F.interpolate(v_BGG[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _windows(n_masks: int, image_size: int, window: int) -> Tensor:
    """1 inside one window and 0 elsewhere, for a regular grid of places that reaches every border.

    Fewer than four masks give a single place, the top left corner.
    """
    per_side = min(math.isqrt(n_masks), image_size - window + 1)
    starts_P = torch.linspace(0, image_size - window, per_side).round().long()
    pixel_S = torch.arange(image_size)
    inside_PS = (pixel_S >= starts_P[:, None]) & (pixel_S < starts_P[:, None] + window)
    return (inside_PS[:, None, :, None] & inside_PS[None, :, None, :]).flatten(0, 1).float()
