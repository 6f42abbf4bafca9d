"""The rival without a model on a corpus of any format: its files, and its figures where there is a truth.

A folder of results holds settings.json; for each side of windows side-*.parquet, one row an image, and
side-*.json, which commits it; and row.json, the figures. After a kill the same call does what is missing.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from poisoncam_ray.artifact import SIDES
from poisoncam_ray.corpus import Corpus, open_corpus
from poisoncam_ray.decode import DecodeError
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, absolute
from poisoncam_ray.research.attacks.choice import chance
from poisoncam_ray.research.attacks.encoded import pixels
from poisoncam_ray.research.claim import claim
from poisoncam_ray.research.evaluate.joined import Truth, read_truth
from poisoncam_ray.research.rivals.measure import figures, on_trigger, poisoned_of
from poisoncam_ray.research.rivals.recurring import (
    FALSE_SHARE,
    SIDES_PX,
    Recurring,
    combine,
    recurring,
    scores,
    threshold,
)
from poisoncam_ray.research.rivals.windows import Grid

VERSION = 1
"""Of the scores."""
ROW, SETTINGS = "row.json", "settings.json"
LEAST_SIDE, MOST_SIDE = 8, 64


@dataclass(frozen=True)
class Look:
    """How a corpus is looked at.

    Attributes:
        sides: sides of the windows, in pixels of a picture with a shorter side of 64 px.
        sample: so many images' windows are compared with; all images are looked up.
        false_share: share of the flagged images that chance may have flagged, of each side.
        seed: of the sample and of the lists.
    """

    sides: tuple[int, ...] = SIDES_PX
    sample: int = 3000
    false_share: float = FALSE_SHARE
    seed: int = 0

    def __post_init__(self) -> None:
        for side in self.sides:
            if not LEAST_SIDE <= side <= MOST_SIDE:
                raise UserError(f"The side is {side} px: use {LEAST_SIDE} to {MOST_SIDE}.")
        if len(set(self.sides)) < len(self.sides) or not self.sides:
            raise UserError("Give every side of windows once, and at least one.")
        if self.sample < 2:
            raise UserError(f"The sample is {self.sample}: nothing can recur in fewer than 2 images.")
        if not 0 < self.false_share < 1:
            raise UserError(f"The share is {self.false_share}: use a number between 0 and 1.")


@dataclass(frozen=True)
class Scored:
    """What the rival says about each image that decodes.

    Attributes:
        image_ids: their ids, in the corpus's order.
        score_N: how much more often its most frequent window recurs than chance has it.
        flagged_N: whether the score of a side reaches that side's threshold.
        box_N4: the most frequent window, in stored pixels.
        side_N: its side.
        n_unreadable: images that do not decode.
        thresholds: by side; None where no image can be flagged.
        cost: seconds, cpu_seconds, and flops: multiplications and additions of all look-ups.
    """

    image_ids: list[str]
    score_N: np.ndarray
    flagged_N: np.ndarray
    box_N4: np.ndarray
    side_N: np.ndarray
    n_unreadable: int
    thresholds: dict[int, int | None]
    cost: dict[str, float]


class CorpusPictures:
    """Reads the pictures of a corpus, numbered in its order; those that do not decode are left out."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus, self.slices = corpus, corpus.slices()
        self.image_ids = [s.image_id(i) for s in self.slices for i in range(s.stop - s.start)]

    def __call__(self) -> Iterator[tuple[int, Image.Image]]:
        number = -1
        for slice_ in self.slices:
            for row in self.corpus.read(slice_):
                number += 1
                try:
                    image = pixels(row.data) if row.data else None
                except DecodeError:
                    continue
                if image is not None:
                    yield number, image


def look_at(corpus_uri: str, out: Folder, look: Look) -> Scored:
    """Score every image of a corpus. No truth is read.

    Args:
        corpus_uri: the corpus.
        out: where the scores are kept: empty, or of the same corpus and settings.
        look: how it is looked at.

    Raises:
        UserError: the corpus cannot be read, or `out` holds the scores of another one.
    """
    pictures = CorpusPictures(open_corpus(corpus_uri))
    _claim(corpus_uri, pictures, out, look)
    places = heapq.nsmallest(
        look.sample,
        range(len(pictures.image_ids)),
        key=lambda n: chance(pictures.image_ids[n], look.seed, "recurring"),
    )
    sample = {number: place for place, number in enumerate(sorted(places))}
    found = {}
    for side in look.sides:
        if not out.exists(f"side-{side}.json"):
            began, cpu = time.monotonic(), time.process_time()
            made = recurring(pictures, len(pictures.image_ids), sample, Grid(side), look.seed)
            took = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
            _write(out, side, pictures.image_ids, made, took | {"flops": made.flops})
        found[side] = _read(out, side)
    costs = [out.read_json(f"side-{side}.json") for side in look.sides]
    cost = {name: sum(one[name] for one in costs) for name in costs[0]}
    return _scored(pictures.image_ids, found, look, cost)


def measure_corpus(
    corpus_uri: str, truth_uri: str | None, out: Folder, look: Look, about: dict[str, Any]
) -> dict[str, Any]:
    """Score every image and write row.json.

    Args:
        corpus_uri: the corpus.
        truth_uri: truth.parquet of the attack; None for a corpus without poison.
        out: as in `look_at`.
        look: as in `look_at`.
        about: what the row shall hold beside the figures. "carriers": the truth's images carry a mark that is
            no poison: they count as clean.

    Returns:
        The row.

    Raises:
        UserError: as `look_at`; or the truth is another corpus's.
    """
    truth = read_truth(truth_uri) if truth_uri else None
    scored = look_at(corpus_uri, out, look)
    if truth and truth.n_images != len(scored.image_ids) + scored.n_unreadable:
        raise UserError(
            f"{truth_uri} has {truth.n_images} images, {corpus_uri} another number: give its own."
        )
    row = about | row_of(scored, truth, carriers=bool(about.get("carriers")))
    out.write_json(ROW, row)
    return row


def row_of(scored: Scored, truth: Truth | None, carriers: bool = False) -> dict[str, Any]:
    """The figures of one corpus: those of `measure.figures` and `measure.on_trigger`, and the costs."""
    flagged_N = scored.flagged_N
    poisoned_N = decoy_N = np.zeros(len(flagged_N), bool)
    if truth:
        poisoned_N, decoy_N = poisoned_of(truth, scored.image_ids)
    row: dict[str, Any] = {"n_images": len(flagged_N), "n_unreadable": scored.n_unreadable}
    if carriers:
        row |= {"n_carriers": int(poisoned_N.sum()), "carriers_flagged": _share(flagged_N[poisoned_N])}
        row |= {"others_flagged": _share(flagged_N[~poisoned_N])}
        poisoned_N = np.zeros(len(flagged_N), bool)
    row |= figures(scored.score_N[~decoy_N], flagged_N[~decoy_N], poisoned_N[~decoy_N])
    row |= {"n_decoys": int(decoy_N.sum()), "decoys_flagged": _share(flagged_N[decoy_N])}
    if truth:
        row |= on_trigger(truth, dict(zip(scored.image_ids, scored.box_N4, strict=True)))
    row |= {"thresholds": {str(side): bar for side, bar in scored.thresholds.items()}}
    return row | scored.cost


def _share(flagged_N: np.ndarray) -> float | None:
    return float(flagged_N.mean()) if len(flagged_N) else None


def _claim(corpus_uri: str, pictures: CorpusPictures, out: Folder, look: Look) -> None:
    now = {"input": absolute(corpus_uri), "n_images": len(pictures.image_ids), "version": VERSION}
    # More sides may be asked for later, and another share needs no other scores.
    now |= {name: value for name, value in asdict(look).items() if name in ("sample", "seed")}
    claim(out, SETTINGS, now, "the scores of something else")


def _write(out: Folder, side: int, image_ids: list[str], made: Recurring, cost: dict[str, float]) -> None:
    columns = {
        "image_id": pa.array(image_ids, pa.string()),
        "count": pa.array(made.count_N, pa.int32()),
        "chance": pa.array(made.chance_N, pa.int32()),
    }
    columns |= {name: pa.array(made.box_N4[:, i], pa.int32()) for i, name in enumerate(SIDES)}
    out.write_table(f"side-{side}.parquet", pa.table(columns))
    out.write_json(f"side-{side}.json", cost)


def _read(out: Folder, side: int) -> Recurring:
    table = out.read_table(f"side-{side}.parquet")
    count_N, chance_N = (table[name].to_numpy().astype(np.int64) for name in ("count", "chance"))
    box_N4 = np.stack([table[name].to_numpy() for name in SIDES], axis=1).astype(np.int64)
    return Recurring(count_N, chance_N, box_N4, out.read_json(f"side-{side}.json")["flops"])


def _scored(image_ids: list[str], found: dict[int, Recurring], look: Look, cost: dict[str, float]) -> Scored:
    score_N, flagged_N, side_N = combine(found, look.false_share)
    box_N4 = np.stack([found[side].box_N4[n] for n, side in enumerate(side_N.tolist())])
    seen = np.flatnonzero(found[look.sides[0]].count_N >= 0)
    return Scored(
        [image_ids[n] for n in seen],
        score_N[seen],
        flagged_N[seen],
        box_N4[seen],
        side_N[seen],
        len(image_ids) - len(seen),
        {side: threshold(scores(one), look.false_share) for side, one in found.items()},
        cost,
    )
