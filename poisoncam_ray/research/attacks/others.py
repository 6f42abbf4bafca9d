"""Pictures of other labels than the targets', which composites and natural triggers are made of."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from poisoncam_ray.decode import DecodeError
from poisoncam_ray.errors import UserError
from poisoncam_ray.research import corpora
from poisoncam_ray.research.attacks.choice import Chosen, Others, by_share, chance
from poisoncam_ray.research.attacks.encoded import pixels
from poisoncam_ray.research.attacks.plan import Plan


def of_other_labels(plan: Plan, n: int, purpose: str) -> Iterator[tuple[str, bytes]]:
    """Draw images of other labels than the targets', in the corpus's order.

    Args:
        plan: what was asked for.
        n: number of images, at most. Images without bytes count.
        purpose: those with the lowest `chance` for this purpose are drawn.

    Yields:
        The id and the encoded bytes of an image. They may not decode.
    """
    ids = {image_id for _, image_id in heapq.nsmallest(n, _of_others(plan, purpose))}
    for slice_ in plan.slices:
        if not any(slice_.image_id(i) in ids for i in range(slice_.stop - slice_.start)):
            continue
        for row in plan.corpus.read(slice_):
            if row.image_id in ids and row.data:
                yield row.image_id, row.data


def with_others(plan: Plan) -> Chosen:
    """Choose by share, with a picture of another label for each poisoned image. Holds these in memory.

    No picture is used twice unless the corpus has too few. Which one goes with which image is drawn.

    Raises:
        UserError: no image has the label of a target, or no image of another label decodes.
    """
    chosen = by_share(plan)
    drawn: list[tuple[float, bytes]] = []
    for image_id, data in of_other_labels(plan, chosen.n_chosen, "other"):
        try:
            pixels(data)
        except DecodeError:
            continue
        drawn.append((chance(image_id, plan.seed, "other"), data))
    if not drawn:
        raise UserError(
            "No image beside the targets' own can be read to make composites of: "
            "use a corpus with more labels."
        )
    chances = np.sort(np.concatenate([pick.among for pick in chosen.picks if pick.among is not None]))
    return replace(chosen, others=Others(chances, tuple(data for _, data in sorted(drawn))))


def _of_others(plan: Plan, purpose: str) -> Iterator[tuple[float, str]]:
    for slice_ in plan.slices:
        for i, label in enumerate(corpora.labels(plan.corpus, slice_, plan.label_column)):
            if label not in plan.targets:
                image_id = slice_.image_id(i)
                yield chance(image_id, plan.seed, purpose), image_id
