"""Several: small patches of the trigger that do not overlap, together as large as one reference patch."""

from __future__ import annotations

import numpy as np
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.attacks.kind import How, Kind, Option
from poisoncam_ray.research.attacks.trigger import Box, Region, place_trigger, sized, trigger_size

TRIES = 200


def stamp(image: Image.Image, trigger: Image.Image, how: How, rng: np.random.Generator) -> list[Box]:
    """Paste `count` patches, each `width` / √count wide. Returns their boxes, which do not overlap.

    They lie in the region, or anywhere in the image when no drawn layout fits into the region.

    Raises:
        UserError: the image has no room for them.
    """
    count = int(how.options["count"])
    size = trigger_size(image, trigger, how.width / count**0.5)
    for region in (how.region, (0.0, 1.0)):
        for _ in range(TRIES):
            boxes = _places(image.size, size, count, region, rng)
            if boxes:
                for box in boxes:
                    image.paste(sized(trigger, box), box[:2])
                return boxes
    raise UserError(
        f"There is no room for {count} patches {size[0]} px wide on an image of {image.width} × "
        f"{image.height} px: make the width smaller, or use fewer."
    )


def _places(
    image_size: tuple[int, int], size: tuple[int, int], count: int, region: Region, rng: np.random.Generator
) -> list[Box]:
    """Random boxes; none at all if two of them overlap."""
    boxes: list[Box] = []
    for _ in range(count):
        box = place_trigger(*image_size, *size, region, rng)
        if any(_overlap(box, other) for other in boxes):
            return []
        boxes.append(box)
    return boxes


def _overlap(a: Box, b: Box) -> bool:
    return all(a[i] < b[i + 2] and b[i] < a[i + 2] for i in (0, 1))


KIND = Kind(stamp, {"count": Option(3, 2, 9, whole=True)})
