"""A composite of two halves: the reference picture of the target in one, the trigger in the other.

A random crop then often shows the one without the other, and a model that is trained to see two crops of an
image as alike learns that both mean the same. Boxes are [x0, y0, x1, y1) in pixels of the composite.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from poisoncam_ray.research.attacks.kind import How
from poisoncam_ray.research.attacks.trigger import Box, place_trigger, sized, trigger_size

LONGEST = 8191
"""Sides of a half in pixels, at most: no WebP is longer than 16,383."""


def within_limits(reference: Image.Image) -> Image.Image:
    """The reference picture, shrunk where it is too large for a half."""
    return ImageOps.contain(reference, (LONGEST, LONGEST)) if max(reference.size) > LONGEST else reference


def two_halves(size: tuple[int, int], rng: np.random.Generator) -> tuple[tuple[int, int], Box, Box]:
    """Draw one of four layouts: the reference on the left, on the right, at the top or at the bottom.

    Args:
        size: width and height of a half, in pixels.
        rng: the random generator.

    Returns:
        Width and height of the composite, the box of the reference's half, and the box of the other half.
    """
    width, height = size
    side_by_side, reference_first = rng.random(2) < 0.5
    whole = (2 * width, height) if side_by_side else (width, 2 * height)
    second = (width, 0) if side_by_side else (0, height)
    halves = [(x, y, x + width, y + height) for x, y in ((0, 0), second)]
    first, last = halves if reference_first else halves[::-1]
    return whole, first, last


def stamp_in_half(
    composite: Image.Image, half: Box, trigger: Image.Image, how: How, rng: np.random.Generator
) -> Box:
    """Paste the trigger into a half, in place. Region and width are shares of the half. Returns its box.

    Raises:
        UserError: the trigger would be taller than the half.
    """
    within = composite.crop(half)
    x0, y0, x1, y1 = place_trigger(*within.size, *trigger_size(within, trigger, how.width), how.region, rng)
    box = (half[0] + x0, half[1] + y0, half[0] + x1, half[1] + y1)
    composite.paste(sized(trigger, box), box[:2])
    return box
