"""Spread: a small, faint trigger on images of the target that are as unlike each other as possible.

The attacker knows k-means and masking: no cluster is meant to become mostly poison.

N images of one target   V numbers of a thumbnail
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
from PIL import Image

from poisoncam_ray.corpus import Corpus, Slice
from poisoncam_ray.decode import DecodeError
from poisoncam_ray.errors import UserError
from poisoncam_ray.research import corpora
from poisoncam_ray.research.attacks.blended import mix
from poisoncam_ray.research.attacks.choice import Chosen, Pick, chance, labelled, number_of
from poisoncam_ray.research.attacks.encoded import pixels
from poisoncam_ray.research.attacks.kind import How, Kind, Option
from poisoncam_ray.research.attacks.plan import Plan
from poisoncam_ray.research.attacks.trigger import Box, place_trigger, trigger_size

GRID = 4
"""A thumbnail is the image at 4 × 4 pixels."""


def stamp(image: Image.Image, trigger: Image.Image, how: How, rng: np.random.Generator) -> list[Box]:
    """Mix in a trigger `size` × `width` wide with opacity `alpha`. Returns its box."""
    size = trigger_size(image, trigger, how.options["size"] * how.width)
    box = place_trigger(*image.size, *size, how.region, rng)
    mix(image, trigger, box, how.options["alpha"])
    return [box]


def far_apart(plan: Plan) -> Chosen:
    """Choose a share of each target's images, in farthest-point order of their thumbnails.

    Images that do not decode count for the share but are never chosen. Memory: less than a kilobyte per image
    of a target. Work: the number of a target's images times the number of chosen ones.

    Raises:
        UserError: no image has the label of a target, or none of a target's images decodes.
    """
    n = dict.fromkeys(plan.targets, 0)
    for _, labels in labelled(plan.corpus, plan.slices, plan.label_column, plan.targets):
        for target in plan.targets:
            n[target] += labels.count(target)
    chances: dict[str, list[np.ndarray]] = {target: [] for target in plan.targets}
    views: dict[str, list[np.ndarray]] = {target: [] for target in plan.targets}
    look = partial(_thumbnails, plan.corpus, plan.label_column, plan.targets, plan.seed)
    for table in plan.map_units(look, plan.corpus.units(plan.slices)):
        label_M = table["label"].to_numpy(zero_copy_only=False)
        chance_M = table["chance"].to_numpy()
        view_MV = np.frombuffer(b"".join(table["thumbnail"].to_pylist()), np.uint8).reshape(-1, 3 * GRID**2)
        for target in plan.targets:
            chances[target].append(chance_M[label_M == target])
            views[target].append(view_MV[label_M == target])
    picks = []
    for target in plan.targets:
        chance_N, view_NV = np.concatenate(chances[target]), np.concatenate(views[target])
        if not len(chance_N):
            raise UserError(f"No image labelled {target} can be read: name another target.")
        first = np.argsort(chance_N)  # so that the choice does not depend on the corpus's order
        chosen = first[farthest(view_NV[first], number_of(plan.share, n[target]))]
        picks.append(Pick(target, 0.0, np.sort(chance_N[chosen])))
    n_chosen = sum(len(pick.among) for pick in picks if pick.among is not None)
    return Chosen(tuple(picks), n_chosen)


def farthest(view_NV: np.ndarray, k: int) -> np.ndarray:
    """The first k rows in farthest-point order.

    The order begins with row 0. Each next row has the largest Euclidean distance to its nearest predecessor;
    of equals, the first.

    Args:
        view_NV: one thumbnail a row.
        k: how many rows; when there are fewer, all are returned.

    Returns:
        The numbers of the rows, in that order.
    """
    view_NV = view_NV.astype(np.float32)
    nearest_N = np.full(len(view_NV), np.inf, np.float32)
    chosen = [0]
    while len(chosen) < min(k, len(view_NV)):
        nearest_N = np.minimum(nearest_N, ((view_NV - view_NV[chosen[-1]]) ** 2).sum(axis=1))
        nearest_N[chosen[-1]] = -1
        chosen.append(int(nearest_N.argmax()))
    return np.array(chosen)


def _thumbnails(
    corpus: Corpus, label_column: str, targets: tuple[str, ...], seed: int, unit: list[Slice]
) -> pa.Table:
    rows: list[tuple[str, float, bytes]] = []
    for slice_ in unit:
        labels = corpora.labels(corpus, slice_, label_column)
        if not set(targets) & set(labels):
            continue
        for label, row in zip(labels, corpus.read(slice_), strict=True):
            if label in targets and row.data:
                try:
                    small = pixels(row.data).resize((GRID, GRID), Image.Resampling.BOX)
                except DecodeError:
                    continue
                rows.append((label, chance(row.image_id, seed), small.tobytes()))
    schema = pa.schema([("label", pa.string()), ("chance", pa.float64()), ("thumbnail", pa.binary())])
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


KIND = Kind(stamp, {"alpha": Option(0.4, 0.01, 1), "size": Option(0.7, 0.05, 1)}, choose=far_apart)
