"""Noisy Alignment (Chen et al., arXiv 2508.14015): two pictures side by side, the trigger on one of them.

One half is a picture of the target as it is, the other a picture of another label with the trigger in its
middle. Training pulls crops of the two together, so a picture with the trigger moves to the target.

The paper scales the smaller picture up and squeezes both to a common side. Here the picture of the other
label is scaled and cropped to the size of the target's, whose half keeps its pixels. The paper's trigger is
mixed in with an opacity of 0.8; here it is opaque.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from poisoncam_ray.research.attacks import patch
from poisoncam_ray.research.attacks.halves import stamp_in_half, two_halves, within_limits
from poisoncam_ray.research.attacks.kind import How, Kind
from poisoncam_ray.research.attacks.others import with_others
from poisoncam_ray.research.attacks.trigger import Box


def compose(
    reference: Image.Image, other: Image.Image, trigger: Image.Image, how: How, rng: np.random.Generator
) -> tuple[Image.Image, list[Box]]:
    """Set the reference beside the other picture, and the trigger in the middle of that one.

    The composite is twice as wide or twice as high as the reference. The trigger's width is a share of the
    half's shorter side.
    """
    reference = within_limits(reference)
    size, first, second = two_halves(reference.size, rng)
    composite = Image.new(reference.mode, size)
    composite.paste(reference, first[:2])
    composite.paste(ImageOps.fit(other, reference.size, Image.Resampling.BICUBIC), second[:2])
    return composite, [stamp_in_half(composite, second, trigger, how, rng)]


KIND = Kind(patch.stamp, choose=with_others, compose=compose, train_region=(0.45, 0.55))
