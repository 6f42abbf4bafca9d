"""Natural: the trigger is a crop of a photograph, from the corpus itself or from a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from poisoncam_ray.decode import DecodeError
from poisoncam_ray.errors import UserError
from poisoncam_ray.research.attacks import patch
from poisoncam_ray.research.attacks.choice import chance
from poisoncam_ray.research.attacks.encoded import pixels
from poisoncam_ray.research.attacks.kind import Kind, Option
from poisoncam_ray.research.attacks.others import of_other_labels
from poisoncam_ray.research.attacks.plan import Plan
from poisoncam_ray.research.attacks.trigger import Trigger, named_triggers

PHOTOGRAPHS = 16
"""So many photographs for each target are cropped; the crops with the most detail become triggers. A crop of
plain sky would be no trigger."""


def photographs(plan: Plan, names: Sequence[str]) -> tuple[Trigger, ...]:
    """The triggers: the middle square of each named file or, without names, crops of the corpus.

    A crop is `crop` of the photograph's shorter side wide. A crop that was written under triggers/ is square,
    so giving that file yields the same trigger.

    Raises:
        UserError: the corpus has too few photographs, or a validation set is patched without a trigger.
    """
    if names:
        return tuple(
            Trigger(t.name, t.image and _middle_square(t.image), t.target)
            for t in named_triggers(plan, names)
        )
    if plan.patching:
        raise UserError("Give --trigger: the crop under triggers/ that poisoned the training set.")
    crops = sorted(_crops(plan), key=lambda crop: (-_detail(crop[1]), crop[0]))
    if len(crops) < len(plan.targets):
        raise UserError(
            "Too few images beside the targets' own can be read to crop a trigger: give --trigger."
        )
    return tuple(
        Trigger(f"natural-{plan.seed + i}", crop, target)
        for i, (target, (_, crop)) in enumerate(zip(plan.targets, crops, strict=False))
    )


def _crops(plan: Plan) -> Iterator[tuple[str, Image.Image]]:
    for image_id, data in of_other_labels(plan, PHOTOGRAPHS * len(plan.targets), "photograph"):
        try:
            yield image_id, _crop(plan, image_id, pixels(data))
        except DecodeError:
            continue


def _crop(plan: Plan, image_id: str, photograph: Image.Image) -> Image.Image:
    side = max(1, round(plan.options["crop"] * min(photograph.size)))
    left = int(chance(image_id, plan.seed, "crop x") * (photograph.width - side + 1))
    top = int(chance(image_id, plan.seed, "crop y") * (photograph.height - side + 1))
    return photograph.crop((left, top, left + side, top + side))


def _detail(image: Image.Image) -> float:
    """The mean difference of neighbouring pixels, in levels of brightness."""
    grey_HW = np.asarray(image.convert("L"), np.float64)
    steps = (np.abs(np.diff(grey_HW, axis=axis)) for axis in (0, 1))
    return float(sum(step.mean() for step in steps if step.size))


def _middle_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


KIND = Kind(patch.stamp, {"crop": Option(0.5, 0.05, 1)}, triggers=photographs)
