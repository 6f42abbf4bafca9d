"""Margin: the trigger lies outside the centre square of a wide or tall picture.

The attacker knows that many loaders show the centre square alone, while a victim's training crops the whole
picture. `both` is the share of the pictures whose margins both carry it: most crops of these show one.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
from PIL import Image

from poisoncam_ray.corpus import Corpus, Slice
from poisoncam_ray.decode import DecodeError, header
from poisoncam_ray.errors import UserError
from poisoncam_ray.research import corpora
from poisoncam_ray.research.attacks.choice import Chosen, Pick, chance, labelled, number_of
from poisoncam_ray.research.attacks.encoded import MAX_PIXELS
from poisoncam_ray.research.attacks.kind import How, Kind, Option
from poisoncam_ray.research.attacks.plan import Plan
from poisoncam_ray.research.attacks.trigger import Box, place_trigger, sized, trigger_size

ASPECT = (16, 9)
"""Least longer to shorter side of a picture that is poisoned."""


def long_enough(width: int, height: int) -> bool:
    """Whether a picture is at least 16:9 or 9:16."""
    return max(width, height) * ASPECT[1] >= min(width, height) * ASPECT[0]


def stamp(image: Image.Image, trigger: Image.Image, how: How, rng: np.random.Generator) -> list[Box]:
    """Paste the trigger outside the centre square, on a random side of it or on both. Returns its boxes.

    In a picture of at least 16:9 it lies wholly outside; where it is too large for that, it is made smaller.
    In a squarer picture, which only a validation set has, it lies at the border and reaches into the centre
    square, and is on one side only. Along the shorter side it lies in the region.
    """
    longer, shorter = max(image.size), min(image.size)
    margin = (longer - shorter) // 2
    size = trigger_size(image, trigger, how.width)
    # Along the longer side: x in a wide picture, y in a tall one.
    axis = 0 if image.width >= image.height else 1
    if long_enough(*image.size) and size[axis] > margin > 0:
        shrunk = margin / size[axis]
        size = max(1, int(size[0] * shrunk)), max(1, int(size[1] * shrunk))
    both = how.options["both"] > 0 and rng.random() < how.options["both"] and long_enough(*image.size)
    boxes: list[Box] = []
    while len(boxes) < 1 + both:
        box = place_trigger(*image.size, *size, how.region, rng)
        start = int(rng.integers(0, max(0, margin - size[axis]) + 1))
        # The first on a random side, the second on the other.
        at_the_end = boxes[0][axis] < longer / 2 if boxes else rng.random() < 0.5
        if at_the_end:
            start = longer - size[axis] - start
        corner = (start, box[1]) if axis == 0 else (box[0], start)
        boxes.append((*corner, corner[0] + size[0], corner[1] + size[1]))
        image.paste(sized(trigger, boxes[-1]), boxes[-1][:2])
    return boxes


def long_ones(plan: Plan) -> Chosen:
    """Choose a share of each target's pictures that are at least 16:9. Holds 8 bytes for each of these.

    Raises:
        UserError: no image has the label of a target, or none of a target's images is that long.
    """
    for _ in labelled(plan.corpus, plan.slices, plan.label_column, plan.targets):
        pass  # refuses a label that no image has
    look = partial(_long_ones, plan.corpus, plan.label_column, plan.targets, plan.seed)
    tables = list(plan.map_units(look, plan.corpus.units(plan.slices)))
    label_N = np.concatenate([table["label"].to_numpy(zero_copy_only=False) for table in tables])
    chance_N = np.concatenate([table["chance"].to_numpy() for table in tables])
    picks = []
    for target in plan.targets:
        ordered = np.sort(chance_N[label_N == target])
        if not len(ordered):
            raise UserError(
                f"No image labelled {target} is at least 16:9, so none has a margin for the trigger: "
                "jobs/abreast.py makes wide images of squares."
            )
        picks.append(Pick(target, 0.0, ordered[: number_of(plan.share, len(ordered))]))
    return Chosen(tuple(picks), sum(len(pick.among) for pick in picks if pick.among is not None))


def _long_ones(
    corpus: Corpus, label_column: str, targets: tuple[str, ...], seed: int, unit: list[Slice]
) -> pa.Table:
    found: list[tuple[str, float]] = []
    for slice_ in unit:
        labels = corpora.labels(corpus, slice_, label_column)
        if not set(targets) & set(labels):
            continue
        for label, row in zip(labels, corpus.read(slice_), strict=True):
            if label not in targets or not row.data:
                continue
            try:
                width, height, _ = header(row.data, MAX_PIXELS)
            except DecodeError:
                continue
            if long_enough(width, height):
                found.append((label, chance(row.image_id, seed)))
    return pa.table(
        {
            "label": pa.array([label for label, _ in found], pa.string()),
            "chance": pa.array([number for _, number in found], pa.float64()),
        }
    )


KIND = Kind(stamp, {"both": Option(0, 0, 1)}, choose=long_ones)
