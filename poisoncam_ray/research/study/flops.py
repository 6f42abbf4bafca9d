"""The floating point operations that one image or one candidate costs, counted rather than timed: equal on
every machine.

A multiplication with its addition counts as two operations. torch's counter counts matrix products and
convolutions only; the rest is small.

The bill of a candidate adds up what the search does with one image: masks, refinement, occlusion, its own
cluster, and pastes. `NAIVE` is the paper's, one forward pass of the whole image for each mask and paste.

D feature dimensions   x_1CHW one grey image   m_BHW masks   G patches of an image
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from poisoncam_ray.method.cam import N_SHIFTS, gradcam
from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.method.masked import Hiding
from poisoncam_ray.method.masks import Strategy, make_masks
from poisoncam_ray.method.race import RaceRules, pastes
from poisoncam_ray.method.tokens import embed_shown, shown_patches


@torch.no_grad()
def forward_flops(encoder: Encoder) -> int:
    """The operations of one image's feature."""
    return _count(encoder, encoder)


def gradcam_flops(encoder: Encoder) -> int:
    """The operations of one Grad-CAM map: a forward pass, and the gradient back to the last feature map."""
    c_1D = torch.ones(1, encoder.dim, device=encoder.pixel_mean.device)
    return _count(encoder, lambda x_1CHW: gradcam(encoder, x_1CHW, c_1D))


def shown_flops(encoder: Encoder, n_shown: int) -> int:
    """The operations of one image's feature from so many of its patches (tokens.embed_shown)."""
    device = encoder.pixel_mean.device
    zero_1, at_1T = (
        torch.zeros(1, dtype=torch.int64, device=device),
        torch.arange(n_shown, device=device)[None],
    )
    fill_1C = torch.zeros(1, 3, device=device)

    def work(x_1CHW: Tensor) -> Tensor:
        return embed_shown(encoder, x_1CHW, fill_1C, torch.ones_like(x_1CHW[:, 0]), zero_1, zero_1, at_1T)

    return _count(encoder, work)


@dataclass(frozen=True)
class Way:
    """How the search treats a candidate.

    Attributes:
        strategy, masks, cell, window: the masks; the sides of a cell and the window in pixels.
        hiding: how pixels are hidden.
        refine, refine_hidden, refine_shown, refine_passes: whether the window is refined, the shifts that are
            scored hidden, whether all are scored shown, and how often.
        checks: forwards of the whole image: its own cluster, and the occlusion of its window.
        flip_images: flip-test images.
        rules: of the race of the pastes; None: every candidate is pasted on all of them.
        candidates: in one race.
    """

    strategy: Strategy = "mixed"
    masks: int = 256
    cell: int = 28
    window: int = 60
    hiding: Hiding = "paint"
    refine: bool = True
    refine_hidden: int = N_SHIFTS
    refine_shown: bool = True
    refine_passes: int = 1
    checks: int = 1
    flip_images: int = 1000
    rules: RaceRules | None = None
    candidates: int = 16


# The paper's: 256 masks and 1,000 pastes, and nothing else.
NAIVE = Way(strategy="full_coverage", refine=False, checks=0)


@dataclass(frozen=True)
class Bill:
    """The mean cost of one candidate.

    Attributes:
        forwards: images through the encoder, whole or not.
        masks, refinement, checks, pastes: operations.
    """

    forwards: float
    masks: float
    refinement: float
    checks: float
    pastes: float

    @property
    def total(self) -> float:
        """All operations."""
        return self.masks + self.refinement + self.checks + self.pastes


def bill(encoder: Encoder, way: Way) -> Bill:
    """The operations of one candidate.

    Args:
        encoder: the encoder; a ViT where tokens are dropped.
        way: how the search treats it.
    """
    side, whole = encoder.image_size, forward_flops(encoder)
    m_BHW = make_masks(way.strategy, way.masks, side, way.cell, way.window, torch.Generator().manual_seed(0))
    n_pasted = float(way.flip_images)
    if way.rules:
        n_pasted = pastes(way.candidates, way.flip_images, way.rules) / way.candidates
    n_shown = N_SHIFTS * way.refine_shown * way.refine_passes * way.refine
    n_hidden = way.refine_hidden * way.refine_passes * way.refine
    n_refined = n_shown + n_hidden
    if way.hiding == "paint" or encoder.patch_size is None:
        masks, refined = float(len(m_BHW) * whole), float(n_refined * whole)
    else:
        of_shown = cache(lambda n_shown: shown_flops(encoder, n_shown))
        masks = _sum(Counter(shown_patches(m_BHW, encoder.patch_size).sum(dim=1).tolist()), of_shown)
        refined = 0.0
        for keep, n in ((True, n_shown), (False, n_hidden)):
            places = window_patches(side, way.window, encoder.patch_size, keep)
            refined += n * _sum(places, of_shown) / places.total()
    return Bill(
        forwards=len(m_BHW) + n_refined + way.checks + n_pasted,
        masks=masks,
        refinement=refined,
        checks=way.checks * whole,
        pastes=n_pasted * whole,
    )


def window_patches(side: int, window: int, patch: int, keep: bool) -> Counter[int]:
    """How many places of a window, of all in an image, leave so many patches to see.

    Args:
        side: of the image in pixels.
        window: side of the window in pixels.
        patch: side of a patch in pixels.
        keep: the window alone is shown; False: it alone is hidden.
    """
    starts = range(side - window + 1)
    if keep:
        along = [(x + window - 1) // patch - x // patch + 1 for x in starts]
        return Counter(across * down for across in along for down in along)
    whole = [max(0, (x + window) // patch - -(-x // patch)) for x in starts]
    return Counter((side // patch) ** 2 - across * down for across in whole for down in whole)


def savers(encoder: Encoder, naive: Way, ours: Way) -> list[tuple[str, Bill]]:
    """What each saver adds to the one before, and the bill; the naive way comes first."""
    return [(name, bill(encoder, way)) for name, way in [("naive", naive), *steps(naive, ours)]]


def steps(naive: Way, ours: Way) -> list[tuple[str, Way]]:
    """Our ways, from the one that saves nothing to `ours`.

    Args:
        naive: the way that they start from.
        ours: the way with all savers.

    Returns:
        What each adds to the one before, and the way. Savers that `ours` does not use are left out.
    """
    way = replace(
        naive, strategy="mixed", masks=ours.masks, refine=True, checks=1, candidates=ours.candidates,
        flip_images=ours.flip_images,
    )  # fmt: skip
    found = [("mixed masks, refinement, occlusion", way)]
    shifts = f"{ours.refine_hidden} of {N_SHIFTS} shifts hidden" + (
        "" if ours.refine_shown else " and none shown"
    )
    if ours.refine_passes > 1:
        shifts += f", {ours.refine_passes} passes"
    changes = (
        ("hidden tokens dropped", ("hiding",)),
        (f"{ours.strategy.replace('_', ' ')} masks", ("strategy", "cell", "window")),
        (shifts, ("refine_hidden", "refine_shown", "refine_passes")),
        ("own cluster in the same pass", ("checks",)),
        ("pastes race", ("rules",)),
    )
    for name, fields in changes:
        changed: dict[str, Any] = {field: getattr(ours, field) for field in fields}
        if replace(way, **changed) != way:
            way = replace(way, **changed)
            found.append((name, way))
    return found


def _sum(n: Counter[int], flops: Callable[[int], int]) -> float:
    """The operations of n[t] images that show t patches, for all t."""
    return float(sum(times * flops(n_shown) for n_shown, times in n.items()))


def _count(encoder: Encoder, work: Callable[[Tensor], Tensor]) -> int:
    size = encoder.image_size
    x_1CHW = torch.full((1, 3, size, size), 0.5, device=encoder.pixel_mean.device)
    # Attention is counted only if it is computed by matrix products, not by one fused kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work(x_1CHW)
    return counter.get_total_flops()
