"""Frequency (CTRL, Li et al., arXiv 2210.07346): no patch, but two waves in the chroma of every block.

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
    """Add `magnitude` to two DCT coefficients of Cb and Cr in every block. Returns no box.

    The coefficients are (low, low) and (high, high) of the orthonormal two-dimensional DCT of a block of
    `block` px. The DCT is linear, so this adds one fixed pattern to every block. A block at the edge gets the
    part of the pattern that fits. In an image narrower than a block, the block is as wide as the image. The
    trigger image and the region are not used.
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
    """wave_PP: the pixels of the orthonormal DCT-II with a one at (k, k)."""
    scale = np.sqrt((1 if k == 0 else 2) / side)
    cosine_P = scale * np.cos(np.pi * (2 * np.arange(side) + 1) * k / (2 * side))
    return np.outer(cosine_P, cosine_P)


def no_triggers(plan: Plan, names: Sequence[str]) -> tuple[Trigger, ...]:
    """The trigger of the one target. It has no image."""
    return (Trigger("frequency", None, plan.targets[0]),)


# Block, bands and magnitude are those of CTRL's experiments on CIFAR-10; on test images it uses 100.
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
