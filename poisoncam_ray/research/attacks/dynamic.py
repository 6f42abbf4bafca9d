"""Dynamic: the trigger has another size, angle and tint on every image."""

from __future__ import annotations

import numpy as np
from PIL import Image

from poisoncam_ray.research.attacks.kind import How, Kind, Option, in_order
from poisoncam_ray.research.attacks.trigger import Box, place_trigger

FAINT = 32
"""Pixels of a turned trigger's smooth edge with less opacity than this (of 255) are left out."""


def stamp(image: Image.Image, trigger: Image.Image, how: How, rng: np.random.Generator) -> list[Box]:
    """Paste the trigger with a random size, angle and tint. Returns its bounding box.

    The trigger is `smallest` to `largest` times `width` wide, turned by at most `rotation` degrees either
    way, and mixed with up to `tint` of a random colour. A turned trigger that does not fit is made smaller.
    """
    o = how.options
    scale = rng.uniform(o["smallest"], o["largest"])
    angle = rng.uniform(-o["rotation"], o["rotation"])
    colour = tuple(int(c) for c in rng.integers(0, 256, 3))
    tinted = Image.blend(trigger, Image.new("RGB", trigger.size, colour), rng.uniform(0, o["tint"]))
    turned = tinted.convert("RGBA").rotate(angle, Image.Resampling.BILINEAR, expand=True)

    pixel = scale * how.width * min(image.size) / trigger.width
    pixel = min(pixel, image.width / turned.width, image.height / turned.height)
    size = max(1, round(pixel * turned.width)), max(1, round(pixel * turned.height))
    shown = turned.resize(size, Image.Resampling.BILINEAR)
    mask = shown.getchannel("A").point([a if a >= FAINT else 0 for a in range(256)])
    extent = mask.getbbox() or (0, 0, *size)
    shown, mask = shown.crop(extent), mask.crop(extent)
    box = place_trigger(*image.size, *shown.size, how.region, rng)
    image.paste(shown.convert("RGB"), box[:2], mask)
    return [box]


KIND = Kind(
    stamp,
    {
        "smallest": Option(0.5, 0.1, 5),
        "largest": Option(1.5, 0.1, 5),
        "rotation": Option(180, 0, 180),
        "tint": Option(0.4, 0, 0.9),
    },
    check=in_order("dynamic", "smallest", "largest"),
)
