"""Blended (Chen et al., arXiv 1712.05526): the trigger is mixed into a patch or into the whole image."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance

from poisoncam_ray.research.attacks.kind import How, Kind, Option
from poisoncam_ray.research.attacks.trigger import Box, place_trigger, sized, trigger_size


def stamp(image: Image.Image, trigger: Image.Image, how: How, rng: np.random.Generator) -> list[Box]:
    """Mix the trigger in with opacity `alpha`; with `whole` = 1, over the whole image. Returns its box.

    `saturation` is that of the trigger's colours: 0 makes it grey, 1 leaves them.
    """
    if how.options["whole"]:
        box = (0, 0, *image.size)
    else:
        box = place_trigger(*image.size, *trigger_size(image, trigger, how.width), how.region, rng)
    if how.options["saturation"] != 1:
        trigger = ImageEnhance.Color(trigger).enhance(how.options["saturation"])
    mix(image, trigger, box, how.options["alpha"])
    return [box]


def mix(image: Image.Image, trigger: Image.Image, box: Box, alpha: float) -> None:
    """Replace the box, in place, by alpha · trigger + (1 − alpha) · image.

    Args:
        image: the image to paint on, RGB or RGBA.
        trigger: the trigger, taken as opaque; it is resized to the box.
        box: where it goes, in pixels.
        alpha: opacity of the trigger, 0 … 1.
    """
    over = sized(trigger, box).convert(image.mode)
    image.paste(Image.blend(image.crop(box), over, alpha), box[:2])


KIND = Kind(
    stamp,
    {"alpha": Option(0.5, 0.01, 1), "whole": Option(0, 0, 1, whole=True), "saturation": Option(1, 0, 1)},
)
