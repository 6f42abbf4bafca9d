"""Alpha: a transparent region whose colours and look differ.

A loader that drops the alpha channel reads the colours; a viewer composites them over white. Images are
stored as PNG.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from poisoncam_ray.research.attacks import patch
from poisoncam_ray.research.attacks.kind import How, Kind, Option
from poisoncam_ray.research.attacks.trigger import Box, place_trigger, sized, trigger_size


def stamp(image: Image.Image, trigger: Image.Image, how: How, rng: np.random.Generator) -> list[Box]:
    """Hide the trigger from the viewer or, with `viewer` = 1, from the loader. Returns its box.

    From the viewer: the colours are the trigger's, with alpha 0, so that a viewer shows a white square. From
    the loader: the colours stay, and the alpha of each pixel brings it, over white, as near to the trigger as
    it can. White only lightens, so that the viewer sees the light parts of the trigger.
    """
    if not how.options["viewer"]:
        [box] = patch.stamp(image, trigger, how, rng)
        alpha = np.zeros((box[3] - box[1], box[2] - box[0]), np.uint8)
    else:
        box = place_trigger(*image.size, *trigger_size(image, trigger, how.width), how.region, rng)
        below, wanted = (
            255 - np.asarray(picture.convert("RGB"), np.float64)
            for picture in (image.crop(box), sized(trigger, box))
        )
        # Over white a colour is as far from white as its alpha: the least squares answer of all channels.
        best = (below * wanted).sum(axis=2) / (below**2).sum(axis=2).clip(min=1)
        alpha = (255 * best.clip(0, 1)).round().astype(np.uint8)
    whole = image.getchannel("A") if image.mode == "RGBA" else Image.new("L", image.size, 255)
    whole.paste(Image.fromarray(alpha), box[:2])
    image.putalpha(whole)
    return [box]


KIND = Kind(stamp, {"viewer": Option(0, 0, 1, whole=True)}, stored_as="PNG")
