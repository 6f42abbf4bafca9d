"""Varying: each image's trigger differs a little in size, angle, opacity, hue and sharpness.

Patches that recur in many images to the pixel do not exist in such a corpus. `dynamic` varies size, angle and
tint far more, and is always opaque.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from poisoncam_ray.research.attacks.kind import How, Kind, Option
from poisoncam_ray.research.attacks.trigger import Box, place_trigger


def stamp(image: Image.Image, trigger: Image.Image, how: How, rng: np.random.Generator) -> list[Box]:
    """Mix in the trigger, drawn anew. Returns the box of its pixels.

    It is `width` × (1 ± `scale`) wide, turned by up to `rotation` degrees either way, with an opacity from
    `opacity` to 1, its hue turned by up to `hue` of a circle either way, and blurred by up to `blur` of its
    width. A trigger that does not fit is made smaller.
    """
    o = how.options
    scale = rng.uniform(1 - o["scale"], 1 + o["scale"])
    angle, turn = rng.uniform(-o["rotation"], o["rotation"]), rng.uniform(-o["hue"], o["hue"])
    opacity, blur = rng.uniform(o["opacity"], 1), rng.uniform(0, o["blur"])

    width = max(1, round(scale * how.width * min(image.size)))
    size = width, max(1, round(width * trigger.height / trigger.width))
    shown = _turned_hue(trigger, turn).resize(size, Image.Resampling.BILINEAR)
    shown = shown.filter(ImageFilter.GaussianBlur(blur * width))
    whole = Image.new("L", size, 255).rotate(angle, Image.Resampling.NEAREST, expand=True)
    shown = shown.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    fit = min(1, image.width / shown.width, image.height / shown.height)
    fitted = max(1, int(fit * shown.width)), max(1, int(fit * shown.height))
    mask = whole.resize(fitted, Image.Resampling.NEAREST)
    extent = mask.getbbox() or (0, 0, *fitted)
    shown, mask = shown.resize(fitted, Image.Resampling.BILINEAR).crop(extent), mask.crop(extent)
    box = place_trigger(*image.size, *shown.size, how.region, rng)
    below = image.crop(box)
    mixed = Image.blend(below, shown.convert(image.mode), opacity)
    image.paste(mixed, box[:2], mask)
    return [box]


def _turned_hue(image: Image.Image, turn: float) -> Image.Image:
    """The image with every hue turned by this share of the circle."""
    hue, saturation, value = image.convert("RGB").convert("HSV").split()
    turned = hue.point([(level + round(256 * turn)) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


KIND = Kind(
    stamp,
    {
        "scale": Option(0.3, 0, 0.9),
        "rotation": Option(30, 0, 180),
        "opacity": Option(0.5, 0.05, 1),
        "hue": Option(0.1, 0, 0.5),
        "blur": Option(0.05, 0, 0.5),
    },
)
