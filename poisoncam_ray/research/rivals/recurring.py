"""A rival without any model: small patches that recur in many images.

The most frequent window of an image is the one that recurs in the most other images. A window in the mirror
is no copy of anything, but resembles other photographs by chance as often as the window itself. So an image
scores the count of its most frequent window less that of its mirror image's: above 0 as often as below where
no patch recurs. The scores below 0 tell how many of those above are chance (the knockoff filter, Barber and
Candès, arXiv 1404.5609), and so set the threshold without any truth. A patch that is its own mirror image is
not found.

N images of the corpus   W windows of one image   I images of the sample
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from poisoncam_ray.research.rivals.joined_windows import Joined, join
from poisoncam_ray.research.rivals.windows import Grid, mirrored, windows

SIDES_PX = (12, 16, 24)
"""Sides of the windows on pictures with a shorter side of 64 px."""
FALSE_SHARE = 0.1
"""Share of the flagged images that chance may have flagged, of each side."""
TOGETHER = 64


class Pictures(Protocol):
    """Reads pictures again and again."""

    def __call__(self) -> Iterable[tuple[int, Image.Image]]:
        """Each picture with its number."""


@dataclass(frozen=True)
class Recurring:
    """What windows of one side say about each image.

    Attributes:
        count_N: other images that hold its most frequent window; -1 for an image that was not seen.
        chance_N: the same for its mirrored windows.
        box_N4: its most frequent window, in stored pixels.
        flops: multiplications and additions of the look-ups.
    """

    count_N: np.ndarray
    chance_N: np.ndarray
    box_N4: np.ndarray
    flops: float


def recurring(pictures: Pictures, n_images: int, sample: dict[int, int], grid: Grid, seed: int) -> Recurring:
    """Count for every image in how many others its most frequent window recurs.

    Args:
        pictures: reads the corpus's pictures.
        n_images: numbers are below this.
        sample: the images whose windows are compared with: their numbers, and their places 0 … I − 1.
        grid: the windows.
        seed: of the lists of `join`.
    """
    joined = _join_sample(pictures, sample, grid, seed)
    found = Recurring(
        np.full(n_images, -1), np.full(n_images, -1), np.zeros((n_images, 4), np.int64), flops=0.0
    )
    flops = 0.0
    for numbers, x_WD, box_W4, size_M in _batches(pictures, grid):
        own_W = torch.tensor([sample.get(n, -1) for n in numbers]).repeat_interleave(torch.tensor(size_M))
        if joined is None or not len(x_WD):
            found.count_N[numbers] = found.chance_N[numbers] = 0
            continue
        count_W, chance_W = joined.look_up(x_WD, own_W), joined.look_up(mirrored(x_WD), own_W)
        flops += joined.flops(2 * len(x_WD))
        parts = zip(numbers, count_W.split(size_M), chance_W.split(size_M), np.cumsum(size_M), strict=True)
        for number, mine, theirs, stop in parts:
            found.count_N[number] = int(mine.max()) if len(mine) else 0
            found.chance_N[number] = int(theirs.max()) if len(theirs) else 0
            if len(mine):
                found.box_N4[number] = box_W4[stop - len(mine) + int(mine.argmax())]
    return Recurring(found.count_N, found.chance_N, found.box_N4, flops)


def scores(found: Recurring) -> np.ndarray:
    """score_N by one side; 0 for an image that was not seen."""
    return found.count_N - found.chance_N


def threshold(score_N: np.ndarray, share: float) -> int | None:
    """The lowest score from which at most this share of the images is expected to be chance.

    Args:
        score_N: whole numbers, of one side.
        share: of the images that reach the threshold, 0 … 1.

    Returns:
        A score above 0; None where there is none. With no score below 0 at least 1 / share images are needed.
    """
    for bar in range(1, int(score_N.max(initial=0)) + 1):
        if 1 + int((score_N <= -bar).sum()) <= share * int((score_N >= bar).sum()):
            return bar
    return None


def combine(
    found: dict[int, Recurring], share: float = FALSE_SHARE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images with a patch that recurs more often than chance, by windows of any side.

    Args:
        found: of each side.
        share: as in `threshold`.

    Returns:
        score_N: the largest of the sides' scores, each divided by its standard deviation below 0;
        flagged_N: whether a side's threshold is reached; side_N: the side of the largest score.
    """
    sides = sorted(found)
    score_SN = np.stack([scores(found[side]) / _spread(scores(found[side])) for side in sides])
    flagged_N = np.zeros(score_SN.shape[1], bool)
    for side in sides:
        bar = threshold(scores(found[side]), share)
        flagged_N |= bar is not None and scores(found[side]) >= bar
    return score_SN.max(axis=0), flagged_N, np.array(sides)[score_SN.argmax(axis=0)]


def _spread(score_N: np.ndarray) -> float:
    """Of the scores if those above 0 mirrored those below; at least 0.1."""
    below_M = np.minimum(score_N, 0)
    return max(0.1, float(np.sqrt(2 * (below_M.astype(np.float64) ** 2).mean())))


def _join_sample(pictures: Pictures, sample: dict[int, int], grid: Grid, seed: int) -> Joined | None:
    chosen = [(sample[n], windows(image, grid).x_WD.half()) for n, image in pictures() if n in sample]
    sizes = torch.tensor([len(x_WD) for _, x_WD in chosen])
    if not int(sizes.sum()):
        return None
    image_W = torch.tensor([place for place, _ in chosen]).repeat_interleave(sizes)
    return join(torch.cat([x_WD for _, x_WD in chosen]), image_W, len(sample), seed)


def _batches(pictures: Pictures, grid: Grid) -> Iterator[tuple[list[int], Tensor, np.ndarray, list[int]]]:
    """The windows of some pictures together: their numbers, x_WD, box_W4 and how many windows each has."""
    numbers: list[int] = []
    found = []
    for number, image in pictures():
        numbers.append(number)
        found.append(windows(image, grid))
        if len(numbers) == TOGETHER:
            yield _together(numbers, found)
            numbers, found = [], []
    if numbers:
        yield _together(numbers, found)


def _together(numbers: list[int], found: list) -> tuple[list[int], Tensor, np.ndarray, list[int]]:
    sizes = [len(one.x_WD) for one in found]
    return (
        numbers,
        torch.cat([one.x_WD for one in found]),
        np.concatenate([one.box_W4 for one in found]),
        sizes,
    )
