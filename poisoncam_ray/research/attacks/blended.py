"""Blended (Chen et al., arXiv 1712.05526): the trigger shines through, as a patch or over the whole image."""

from __future__ import annotations

import numpy as np
from PIL import Image

from poisoncam_ray.research.attacks.kind import How, Kind, Option
from poisoncam_ray.research.attacks.trigger import Box, place_trigger, sized, trigger_size


def stamp(image: Image.Image, trigger: Image.Image, how: How, rng: np.random.Generator) -> list[Box]:
    """Mix the trigger in by `alpha`, stretched over the whole image where `whole` is 1; its box."""
    if how.options["whole"]:
        box = (0, 0, *image.size)
    else:
        box = place_trigger(*image.size, *trigger_size(image, trigger, how.width), how.region, rng)
    mix(image, trigger, box, how.options["alpha"])
    return [box]


def mix(image: Image.Image, trigger: Image.Image, box: Box, alpha: float) -> None:
    """The box becomes alpha parts trigger, 1 − alpha parts image; the trigger counts as opaque."""
    over = sized(trigger, box).convert(image.mode)
    image.paste(Image.blend(image.crop(box), over, alpha), box[:2])


KIND = Kind(stamp, {"alpha": Option(0.5, 0.01, 1), "whole": Option(0, 0, 1, whole=True)})
