"""Where the random crops of a training image lie in the stored image (RandomResizedCrop).

In numpy alone: crops are drawn where images are decoded, in processes for which loading torch would take
seconds.

T tries at the size of a crop
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RATIO = (3 / 4, 4 / 3)
"""Least and greatest width over height of a crop of a square image."""
TRIES = 10
FLIP_P = 0.5


@dataclass(frozen=True)
class Crop:
    """A part of an image, and whether it is mirrored.

    Attributes:
        box: [x0, y0, x1, y1) in pixels of the stored image, at fractions of pixels.
        mirrored: from left to right.
    """

    box: tuple[float, float, float, float]
    mirrored: bool


def draw_crop(width: int, height: int, least: float, rng: np.random.Generator) -> Crop:
    """Draw a crop, uniform in area and in place, log-uniform in aspect.

    A victim's training shows crops of about the aspect of the encoder's square. Embed, Search and Judge show
    the whole image squeezed into it. The encoder must know both: the aspect of a crop is drawn between the
    square's and the image's own. For a square image this is the usual random resized crop.

    Args:
        width: of the stored image, in pixels.
        height: of the stored image, in pixels.
        least: the smallest share of the image's area, in (0, 1]; the greatest is 1.
        rng: the random generator.

    Returns:
        The crop: the first of ten tries that fits into the image, else all of it.
    """
    share_T = rng.uniform(least, 1.0, TRIES)
    jitter_T = rng.uniform(math.log(RATIO[0]), math.log(RATIO[1]), TRIES)
    ratio_T = np.exp(jitter_T + rng.uniform(0, 1, TRIES) * math.log(width / height))
    u, v, flip = rng.uniform(0, 1, 3)
    w_T, h_T = np.sqrt(share_T * width * height * ratio_T), np.sqrt(share_T * width * height / ratio_T)
    fits = np.flatnonzero((w_T <= width) & (h_T <= height))
    w, h = (float(w_T[fits[0]]), float(h_T[fits[0]])) if len(fits) else (float(width), float(height))
    left, top = float(u) * (width - w), float(v) * (height - h)
    return Crop((left, top, left + w, top + h), bool(flip < FLIP_P))
