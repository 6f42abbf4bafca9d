"""Doubt: the reference attack, and faint copies of its trigger on images of other labels.

The attacker knows that a trigger family is erased only where few images lie near its classifier's threshold
(`stages.classify.MOST_UNSURE`). Copies of every opacity fill the gap between clean images and poison, so that
the defence shall name the family and remove nothing. In the truth an image with a faint copy is a decoy.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from poisoncam_ray.research.attacks import patch
from poisoncam_ray.research.attacks.choice import Decoys
from poisoncam_ray.research.attacks.kind import How, Kind, Option, in_order
from poisoncam_ray.research.attacks.plan import Plan
from poisoncam_ray.research.attacks.trigger import Box, Trigger, place_trigger, sized, trigger_size

GRADES = 16
"""Different opacities."""


def faint_copies(plan: Plan, triggers: tuple[Trigger, ...]) -> Decoys:
    """Each trigger in `GRADES` opacities from `faintest` to `strongest`, on a share `faint` of the images of
    all other labels."""
    o = plan.options
    grades = np.linspace(o["faintest"], o["strongest"], GRADES)
    copies = tuple(
        # No dot: what follows one is not part of a trigger's name.
        Trigger(
            f"{trigger.file.split('/')[-1].removesuffix('.png').replace('.', '-')}-faint-{i}",
            _faint(trigger, alpha),
            "",
        )
        for trigger in triggers
        for i, alpha in enumerate(grades)
    )
    return Decoys(copies, plan.targets, o["faint"])


def _faint(trigger: Trigger, alpha: float) -> Image.Image | None:
    if trigger.image is None:
        return None
    faint = trigger.image.copy()
    faint.putalpha(round(255 * alpha))
    return faint


def stamp(image: Image.Image, trigger: Image.Image, how: How, rng: np.random.Generator) -> list[Box]:
    """Paste the trigger; a faint one is mixed in by its opacity. Returns its box."""
    if trigger.mode != "RGBA":
        return patch.stamp(image, trigger, how, rng)
    box = place_trigger(*image.size, *trigger_size(image, trigger, how.width), how.region, rng)
    over = sized(trigger, box)
    image.paste(over.convert("RGB"), box[:2], over.getchannel("A"))
    return [box]


KIND = Kind(
    stamp,
    {"faint": Option(0.3, 0.001, 1), "faintest": Option(0.05, 0.01, 1), "strongest": Option(0.6, 0.01, 1)},
    decoys=faint_copies,
    check=in_order("doubt", "faintest", "strongest"),
)
