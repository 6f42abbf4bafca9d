"""The scores of all images, reduced slice by slice to what a page can show."""

from __future__ import annotations

import heapq
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from poisoncam_ray import artifact
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.folder import Folder
from poisoncam_ray.review import Decisions, counts
from poisoncam_ray.store import in_parallel

FAMILY_SAMPLE = 6
REMOVED_SAMPLE = 48
BORDERLINE_SAMPLE = 24
BINS = 50
PARTS_AT_ONCE = 64
"""Parts read together: a store answers each request in tens of milliseconds."""
SIZE = ["width", "height"]


@dataclass(frozen=True)
class Drawn:
    """An image drawn into a sample.

    Attributes:
        draw: a checksum of the id. The sample takes the lowest, so it depends neither on the slices nor on
            their order.
        p: the probability of poison.
        family: the trigger family; 0 for a kept image.
        box: where the trigger is, in pixels of the stored image; None for a kept image.
        size: width and height of the stored image.
    """

    draw: int
    image_id: str
    p: float
    family: int
    box: tuple[int, ...] | None
    size: tuple[int, int]


@dataclass
class ScoredImages:
    """The scores of all images.

    Attributes:
        kept_bins: counts of the kept images by probability of poison, BINS equal bins over 0 … 1.
        removed_bins: the same for the removed images.
        families: the number of removed images by family.
        removed: a random sample of the removed images.
        of_family: a random sample of the removed images of each family.
        borderline: the kept images with the highest probability, those that a review restored left out.
        restored: how many flagged images a review restored, by who did. They count as kept.
    """

    kept_bins: np.ndarray
    removed_bins: np.ndarray
    families: Counter[int]
    removed: list[Drawn]
    of_family: dict[int, list[Drawn]]
    borderline: list[Drawn]
    restored: Mapping[str, int] = field(default_factory=dict)


def read_scores(run: Folder, decisions: Decisions) -> ScoredImages:
    """Read the scores in one pass. Memory grows with the restored images only.

    Args:
        run: a run folder whose Judge stage is committed.
        decisions: its review.
    """
    restored = {i: entry for kept in decisions.restored().values() for i, entry in kept.items()}
    back = pa.array(list(restored), pa.string())
    bins = np.zeros((2, BINS), np.int64)
    families: Counter[int] = Counter()
    sample: list[Drawn] = []
    of_family: dict[int, list[Drawn]] = {}
    borderline: list[Drawn] = []
    for part in _scored(run):
        flagged = pc.equal(part["fate"], artifact.REMOVE)
        gone = pc.and_not(flagged, pc.is_in(part["image_id"], value_set=back))
        kept, removed = part.filter(pc.invert(gone)), part.filter(gone)
        unflagged = part.filter(pc.invert(flagged))
        for row, rows in enumerate((kept, removed)):
            bins[row] += np.histogram(rows["p_poison"].to_numpy(), bins=BINS, range=(0, 1))[0]
        families.update(removed["family"].to_pylist())
        best = unflagged.take(
            pc.select_k_unstable(unflagged, BORDERLINE_SAMPLE, [("p_poison", "descending")])
        )
        borderline = heapq.nlargest(
            BORDERLINE_SAMPLE, [*borderline, *_drawn(best)], key=lambda drawn: (drawn.p, drawn.image_id)
        )
        new = _drawn(removed)
        sample = _lowest(REMOVED_SAMPLE, [*sample, *new])
        for family in {drawn.family for drawn in new}:
            mine = [drawn for drawn in new if drawn.family == family]
            of_family[family] = _lowest(FAMILY_SAMPLE, [*of_family.get(family, []), *mine])
    by_whom = counts(restored.values())
    return ScoredImages(bins[0], bins[1], families, sample, of_family, borderline, by_whom)


def _scored(run: Folder) -> Iterator[pa.Table]:
    """The scores of each slice, with the size of each image. A few parts are in memory at a time."""
    scores, index = run / artifact.SCORES, run / artifact.INDEX

    def read(name: str) -> pa.Table:
        part = scores.read_table(name, ["image_id", "p_poison", "fate", "family", *SIDES])
        sizes = index.read_table(name, SIZE)
        for column in SIZE:
            part = part.append_column(column, sizes[column])
        return part

    parts = scores.parts()
    for first in range(0, len(parts), PARTS_AT_ONCE):
        yield from in_parallel(read, parts[first : first + PARTS_AT_ONCE])


def _drawn(rows: pa.Table) -> list[Drawn]:
    return [
        Drawn(
            draw=zlib.crc32(row["image_id"].encode()),
            image_id=row["image_id"],
            p=row["p_poison"],
            family=row["family"],
            box=None if row["x0"] is None else tuple(row[side] for side in SIDES),
            size=(row["width"], row["height"]),
        )
        for row in rows.to_pylist()
    ]


def _lowest(n: int, rows: list[Drawn]) -> list[Drawn]:
    return heapq.nsmallest(n, rows, key=lambda drawn: (drawn.draw, drawn.image_id))
