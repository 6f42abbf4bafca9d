"""The reference attack (Saha et al., arXiv 2105.10123): an opaque patch at a random place."""

from __future__ import annotations

import numpy as np
from PIL import Image

from poisoncam_ray.research.attacks.kind import How, Kind
from poisoncam_ray.research.attacks.trigger import Box, place_trigger, sized, trigger_size


def stamp(image: Image.Image, trigger: Image.Image, how: How, rng: np.random.Generator) -> list[Box]:
    """Paste the trigger. Returns its box.

    Raises:
        UserError: the trigger would be taller than the image.
    """
    box = place_trigger(*image.size, *trigger_size(image, trigger, how.width), how.region, rng)
    image.paste(sized(trigger, box), box[:2])
    return [box]


KIND = Kind(stamp)
