"""The verdicts on all images, boiled down part by part to what a page can show."""

from __future__ import annotations

import heapq
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from poisoncam_ray import artifact
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.folder import Folder

FAMILY_SAMPLE = 6
REMOVED_SAMPLE = 48
BORDERLINE_SAMPLE = 24
BINS = 50
SIZE = ["width", "height"]


@dataclass(frozen=True)
class Drawn:
    """An image drawn into a sample: `draw` is its id's checksum, so the sample depends neither on parts nor
    on their order. `box`: where the trigger is, None on a kept image, in pixels of the stored image of
    `size` (width, height)."""

    draw: int
    image_id: str
    p: float
    family: int
    box: tuple[int, ...] | None
    size: tuple[int, int]


@dataclass
class Verdicts:
    """Counts by probability (BINS of 0 … 1) and of removed images by family; samples of both kinds."""

    kept_bins: np.ndarray
    removed_bins: np.ndarray
    families: Counter[int]
    removed: list[Drawn]
    of_family: dict[int, list[Drawn]]
    borderline: list[Drawn]


def read_verdicts(run: Folder) -> Verdicts:
    """One pass: histograms, families, fair samples of the removed, the nearest of the kept."""
    bins = np.zeros((2, BINS), np.int64)
    families: Counter[int] = Counter()
    sample: list[Drawn] = []
    of_family: dict[int, list[Drawn]] = {}
    borderline: list[Drawn] = []
    for part in _judged(run):
        gone = pc.equal(part["fate"], artifact.REMOVE)
        kept, removed = part.filter(pc.invert(gone)), part.filter(gone)
        for row, rows in enumerate((kept, removed)):
            bins[row] += np.histogram(rows["p_poison"].to_numpy(), bins=BINS, range=(0, 1))[0]
        families.update(removed["family"].to_pylist())
        best = kept.take(pc.select_k_unstable(kept, BORDERLINE_SAMPLE, [("p_poison", "descending")]))
        borderline = heapq.nlargest(
            BORDERLINE_SAMPLE, [*borderline, *_drawn(best)], key=lambda drawn: (drawn.p, drawn.image_id)
        )
        new = _drawn(removed)
        sample = _lowest(REMOVED_SAMPLE, [*sample, *new])
        for family in {drawn.family for drawn in new}:
            mine = [drawn for drawn in new if drawn.family == family]
            of_family[family] = _lowest(FAMILY_SAMPLE, [*of_family.get(family, []), *mine])
    return Verdicts(bins[0], bins[1], families, sample, of_family, borderline)


def _judged(run: Folder) -> Iterator[pa.Table]:
    """Verdicts, each beside its image's size."""
    verdicts, index = run / artifact.SCORES, run / artifact.INDEX
    for name in verdicts.parts():
        part = verdicts.read_table(name, ["image_id", "p_poison", "fate", "family", *SIDES])
        sizes = index.read_table(name, SIZE)
        for column in SIZE:
            part = part.append_column(column, sizes[column])
        yield part


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


def tables(folder: Folder, columns: list[str]) -> Iterator[pa.Table]:
    """Part by part."""
    return (folder.read_table(name, columns) for name in folder.parts())
