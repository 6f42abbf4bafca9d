"""Frequency (CTRL, Li et al., arXiv 2210.07346): no patch; two waves in the chroma of every block.

P side of a block   H W height and width of the image
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from poisoncam_ray.research.attacks.kind import How, Kind, Option
from poisoncam_ray.research.attacks.plan import Plan
from poisoncam_ray.research.attacks.trigger import Box, Trigger


def stamp(image: Image.Image, trigger: object, how: How, rng: np.random.Generator) -> list[Box]:
    """Add `magnitude` to the coefficients (low, low) and (high, high) of the orthonormal two-dimensional DCT
    of Cb and Cr in each block of `block` px; no box. The trigger image and the region count for nothing.

    The DCT is linear: adding to coefficients is adding one fixed pattern to every block. Blocks that the edge
    cuts get what is left of it. In an image narrower than a block, the block is as wide as the image.
    """
    o = how.options
    side = min(int(o["block"]), *image.size)
    wave_PP = sum(_wave(side, min(int(o[band]), side - 1)) for band in ("low", "high")) * o["magnitude"]
    repeats = -(-image.height // side), -(-image.width // side)
    wave_HW = np.tile(wave_PP, repeats)[: image.height, : image.width]
    rgb_HWC = np.asarray(image.convert("RGB"), dtype=np.float64)
    # JFIF's YCbCr to RGB, luma left as it is.
    change_C = np.array([1.402, -0.344136 - 0.714136, 1.772])
    new_HWC = (rgb_HWC + wave_HW[..., None] * change_C).round().clip(0, 255).astype(np.uint8)
    painted = Image.fromarray(new_HWC)
    if image.mode == "RGBA":
        painted.putalpha(image.getchannel("A"))
    image.paste(painted)
    return []


def _wave(side: int, k: int) -> np.ndarray:
    """wave_PP: what a one at (k, k) of the orthonormal DCT-II is in pixels."""
    scale = np.sqrt((1 if k == 0 else 2) / side)
    cosine_P = scale * np.cos(np.pi * (2 * np.arange(side) + 1) * k / (2 * side))
    return np.outer(cosine_P, cosine_P)


def no_triggers(plan: Plan, names: Sequence[str]) -> tuple[Trigger, ...]:
    return (Trigger("frequency", None, plan.targets[0]),)


# Block, bands and magnitude: those of CTRL's own experiments on CIFAR-10; it patches test images with 100.
KIND = Kind(
    stamp,
    {
        "block": Option(32, 4, 256, whole=True),
        "low": Option(15, 1, 255, whole=True),
        "high": Option(31, 1, 255, whole=True),
        "magnitude": Option(50, 1, 1000),
    },
    triggers=no_triggers,
    targets=(1, 1),
    takes_triggers=False,
)
