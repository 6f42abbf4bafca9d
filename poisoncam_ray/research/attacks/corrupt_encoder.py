"""CorruptEncoder (Zhang et al., arXiv 2211.08229): reference object and trigger apart on one background.

A random crop then often shows the object or the trigger alone, both on the same background.

The paper cuts the object out by a segmentation mask, makes it as high as the poisoned image, and takes few
objects and backgrounds of another data set. Here there is no mask: a whole picture of the target, shrunk,
stands for the object, another one in each poisoned image. The backgrounds are pictures of other labels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from poisoncam_ray.research.attacks import patch
from poisoncam_ray.research.attacks.halves import stamp_in_half, two_halves, within_limits
from poisoncam_ray.research.attacks.kind import How, Kind, Option
from poisoncam_ray.research.attacks.others import with_others
from poisoncam_ray.research.attacks.trigger import Box

JITTER = 0.1
"""The object lies at most this far from the outer border of its half, as a share of the half. The paper has
0.05 of the whole."""


def compose(
    reference: Image.Image, other: Image.Image, trigger: Image.Image, how: How, rng: np.random.Generator
) -> tuple[Image.Image, list[Box]]:
    """Paste the reference, `object` times as large, into one half of the other picture, the trigger into the
    other half.

    The composite is twice as wide or twice as high as the reference. The trigger's width is a share of the
    half's shorter side, and it lies within the region of its half, so there is a gap to the object.
    """
    reference = within_limits(reference)
    width, height = reference.size
    whole, first, second = two_halves(reference.size, rng)
    composite = ImageOps.fit(other, whole, Image.Resampling.BICUBIC).convert(reference.mode)
    scale = how.options["object"]
    size = max(1, round(scale * width)), max(1, round(scale * height))
    free = width - size[0], height - size[1]
    # Along the axis of the two halves, away from the trigger; across it, anywhere.
    axis = 0 if first[1] == second[1] else 1
    at = [int(rng.integers(0, room + 1)) for room in free]
    away = int(rng.integers(0, min(free[axis], int(JITTER * (width, height)[axis])) + 1))
    at[axis] = away if first[axis] == 0 else free[axis] - away
    composite.paste(reference.resize(size, Image.Resampling.BICUBIC), (first[0] + at[0], first[1] + at[1]))
    return composite, [stamp_in_half(composite, second, trigger, how, rng)]


KIND = Kind(patch.stamp, {"object": Option(0.8, 0.1, 1)}, choose=with_others, compose=compose)
