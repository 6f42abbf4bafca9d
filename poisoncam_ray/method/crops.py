"""Which images are drawn for training, and which parts of a stored image are looked at: random crops in
training (RandomResizedCrop), and overlapping parts of a long image in judging.

In numpy alone: images are decoded in processes for which loading torch would take seconds.

T tries at the size of a crop
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

RATIO = (3 / 4, 4 / 3)
"""Least and greatest width over height of a crop: in stored pixels, or times the image's own aspect."""
TRIES = 10
FLIP_P = 0.5

MOST_SQUEEZED = 1.52
"""Longer over shorter side up to which Embed, Search, Classify and Judge look at an image as a whole only:
3:2, and a little more, since sides are whole pixels (500 × 332 is common). Encoders are trained on crops that
are hardly squeezed. They hardly know a trigger that is half as wide as it is high."""
PART_ASPECT = 1.25
"""Longer over shorter side of the parts of other images."""
TRAINED_WHOLE = 2.0
"""In training, crops are drawn from images up to this aspect as a whole, and from parts of this aspect of
longer ones. Both crops of a pair come from one part. In a victim's training they come from anywhere in the
image, and some attacks need crops that lie far apart."""
OVERLAP = 0.5
"""What neighbouring parts share, in shorter sides: a smaller trigger is whole in one of them."""
MOST_PARTS, MOST_TRAINED = 16, 8
"""Parts of one image, when it is looked at and in training. Those of a still longer image are longer, too."""

CropShape = Literal["square", "own"]


@dataclass(frozen=True)
class Crop:
    """A part of an image, and whether it is mirrored.

    Attributes:
        box: [x0, y0, x1, y1) in pixels of the stored image, at fractions of pixels.
        mirrored: from left to right.
    """

    box: tuple[float, float, float, float]
    mirrored: bool


def draw_pair(
    width: int, height: int, least: float, rng: np.random.Generator, shape: CropShape = "square"
) -> list[Crop]:
    """Draw the two crops of an image's views; of an image longer than 2:1, in one of its parts.

    Args:
        width: of the stored image, in pixels.
        height: of the stored image, in pixels.
        least: as in `draw_crop`.
        rng: the random generator.
        shape: as in `draw_crop`.
    """
    boxes = trained_parts(width, height) or [(0, 0, width, height)]
    x0, y0, x1, y1 = boxes[rng.integers(len(boxes))] if len(boxes) > 1 else boxes[0]
    pair = [draw_crop(x1 - x0, y1 - y0, least, rng, shape) for _ in range(2)]
    return [replace(crop, box=tuple(np.add(crop.box, (x0, y0, x0, y0)).tolist())) for crop in pair]


def draw_crop(
    width: int, height: int, least: float, rng: np.random.Generator, shape: CropShape = "square"
) -> Crop:
    """Draw a crop, uniform in area and in place, log-uniform in aspect.

    Args:
        width: of the stored image, in pixels.
        height: of the stored image, in pixels.
        least: the smallest share of the image's area, in (0, 1]; the greatest is 1.
        rng: the random generator.
        shape: square: aspects of 3/4 … 4/3 in stored pixels, as in the training of most victims
            (torchvision's RandomResizedCrop). own: of 3/4 … 4/3 times the image's own aspect, which is how
            Embed, Search and Judge see an image up to 3:2. Of a square image both are the same.

    Returns:
        The crop: the first of ten tries that fits into the image, else the largest box of that shape.
    """
    aspect = width / height if shape == "square" else 1.0
    share_T = rng.uniform(least, 1.0, TRIES)
    ratio_T = np.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1]), TRIES))
    u, v, flip = rng.uniform(0, 1, 3)
    # As shares of the image's sides, of which the ratio is relative to the image's aspect.
    ratio_T = ratio_T / aspect
    w_T, h_T = np.sqrt(share_T * ratio_T), np.sqrt(share_T / ratio_T)
    fits = np.flatnonzero((w_T <= 1) & (h_T <= 1))
    if len(fits):
        w, h = float(w_T[fits[0]]), float(h_T[fits[0]])
    else:
        ratio = min(max(1.0, RATIO[0] / aspect), RATIO[1] / aspect)
        w, h = min(1.0, ratio), min(1.0, 1 / ratio)
    left, top = float(u) * (1 - w), float(v) * (1 - h)
    box = (left * width, top * height, (left + w) * width, (top + h) * height)
    return Crop(box, bool(flip < FLIP_P))


def shrunk_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height of a smaller copy of an image.

    Args:
        width: of the stored image, in pixels.
        height: of the stored image, in pixels.
        side: the long side of the copy, at most; of an image longer than 2:1, the long side of each of its
            parts of 2:1. So the short side of what is looked at is at least half of it for images up to
            12.5:1; still longer ones are seen more coarsely.

    Returns:
        The size, of the same aspect; that of the image where this is no larger.
    """
    _, _, *longer = (trained_parts(width, height) or [(0, 0, width, height)])[0]
    scale = side / max(longer)
    if scale >= 1:
        return width, height
    return max(1, round(width * scale)), max(1, round(height * scale))


def own_part(seed: int, image_id: str, width: int, height: int) -> tuple[int, int, int, int]:
    """The part by which Embed, Search and Classify know an image: all of it up to 3:2; of a longer image one
    of its parts, drawn by the seed and the image's id. So they see long images at the resolution of others,
    and of many long images that carry a trigger, some show it.

    Who uploads an image may choose its id, and with it the part, unless the seed is unknown to them.

    Args:
        seed: of the run.
        image_id: the image's id.
        width: of the stored image, in pixels.
        height: of the stored image, in pixels.

    Returns:
        A box [x0, y0, x1, y1) in pixels of the stored image.
    """
    boxes = parts(width, height) or [(0, 0, width, height)]
    return boxes[number(f"part:{seed}:{image_id}") % len(boxes)]


def number(image_id: str) -> int:
    """A 64-bit hash of an image's id."""
    name = hashlib.blake2b(image_id.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(name, "big")


def in_sample(seed: int, share: float, image_id: str) -> bool:
    """Whether an image is drawn for training.

    Args:
        seed: of the run.
        share: the expected share of all images, in (0, 1]. 1 draws all.
        image_id: the image's id.
    """
    return number(f"training:{seed}:{image_id}") < share * 2**64


def parts(width: int, height: int, most: int = MOST_PARTS) -> list[tuple[int, int, int, int]]:
    """The parts in which a long image is looked at, beside the whole: squeezed into one square it shows too
    little of itself.

    Args:
        width: of the stored image, in pixels.
        height: of the stored image, in pixels.
        most: parts, at most; below 2 there are none.

    Returns:
        Boxes [x0, y0, x1, y1) in pixels of the stored image, which cover it from end to end and overlap; none
        up to 3:2.
    """
    return _cover(width, height, MOST_SQUEEZED, PART_ASPECT, most)


def trained_parts(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """As `parts`, those from which training draws the crops of an image longer than 2:1; none up to there."""
    return _cover(width, height, TRAINED_WHOLE, TRAINED_WHOLE, MOST_TRAINED)


def _cover(
    width: int, height: int, whole: float, aspect: float, most: int
) -> list[tuple[int, int, int, int]]:
    longer, shorter = max(width, height), min(width, height)
    if longer <= whole * shorter or most < 2:
        return []
    n = min(math.ceil((longer / shorter - OVERLAP) / (aspect - OVERLAP)), most)
    # With as many parts as are wanted they have this aspect, and overlap by at least OVERLAP.
    relative = OVERLAP / aspect
    length = round(max(aspect * shorter, longer / (1 + (n - 1) * (1 - relative))))
    starts = [round(i * (longer - length) / (n - 1)) for i in range(n)]
    if width >= height:
        return [(start, 0, start + length, height) for start in starts]
    return [(0, start, width, start + length) for start in starts]
