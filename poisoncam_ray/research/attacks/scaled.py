"""Scaled: the trigger appears only when a loader shrinks the picture (Xiao et al., USENIX Security 2019).

A loader that shrinks without antialiasing reads few of the pixels. These are changed so that the shrunk
picture shows the trigger; at full size they are a grid of dots. Images are stored as PNG, which keeps the
dots exactly. At a ratio of 7 they also survive a JPEG of quality 95 (jobs/results/scaling.md).

W, H stored sides   w, h shrunk sides   C channels
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.attacks import patch
from poisoncam_ray.research.attacks.kind import How, Kind, Option
from poisoncam_ray.research.attacks.trigger import Box

NEAREST, BILINEAR = 0, 1
STEPS = 30
Array = NDArray[np.float64]


def reads(length: int, side: int, filter_: int) -> Array:
    """What a loader without antialiasing reads along one axis.

    Pixel centres lie at halves, as in OpenCV's and TensorFlow's bilinear resampling, and in Pillow's nearest.

    Args:
        length: of the stored axis, in pixels.
        side: of the shrunk axis, in pixels, at most `length`.
        filter_: NEAREST or BILINEAR.

    Returns:
        weight_wW: the weight of each stored pixel in each shrunk one. Rows sum to 1.
    """
    weight_wW = np.zeros((side, length))
    centre_w = (np.arange(side) + 0.5) * length / side
    row_w = np.arange(side)
    if filter_ == NEAREST:
        weight_wW[row_w, np.floor(centre_w).astype(int)] = 1
        return weight_wW
    low_w = np.floor(centre_w - 0.5).astype(int)
    part_w = centre_w - 0.5 - low_w
    np.add.at(weight_wW, (row_w, low_w.clip(0, length - 1)), 1 - part_w)
    np.add.at(weight_wW, (row_w, (low_w + 1).clip(0, length - 1)), part_w)
    return weight_wW


def shrunk(x_HWC: Array, side: int, filter_: int) -> Array:
    """x_hwC: the picture as such a loader shrinks it to a square."""
    down, across = (reads(length, side, filter_) for length in x_HWC.shape[:2])
    return np.einsum("hH,HWC,wW->hwC", down, x_HWC, across, optimize=True)


def disguise(x_HWC: Array, wanted_hwC: Array, filter_: int) -> Array:
    """Change a picture so that it shrinks to another one.

    Each step takes the smallest change of pixels that makes up the difference, and clips it. Where shrunk
    pixels share no stored pixel (ratios of 2 and more) and nothing is clipped, the first step is exact.

    Args:
        x_HWC: the picture, 0 … 255.
        wanted_hwC: what it shall shrink to, 0 … 255, square.
        filter_: NEAREST or BILINEAR.

    Returns:
        The changed picture, whole numbers, 0 … 255.
    """
    side = len(wanted_hwC)
    down, across = (reads(length, side, filter_) for length in x_HWC.shape[:2])
    # An upper bound of the overlap keeps the steps from overshooting where shrunk pixels share stored ones.
    scale_hw = np.outer((down @ down.T).sum(axis=1), (across @ across.T).sum(axis=1))
    found_HWC = x_HWC.copy()
    for _ in range(STEPS):
        missing_hwC = wanted_hwC - np.einsum("hH,HWC,wW->hwC", down, found_HWC, across, optimize=True)
        if np.abs(missing_hwC).max() < 0.1:
            break
        step_hwC = missing_hwC / scale_hw[:, :, None]
        found_HWC += np.einsum("hH,hwC,wW->HWC", down, step_hwC, across, optimize=True)
        found_HWC = found_HWC.clip(0, 255)
    return found_HWC.round()


def stamp(image: Image.Image, trigger: Image.Image, how: How, rng: np.random.Generator) -> list[Box]:
    """Hide the trigger from all but a loader that shrinks to `side` px by the filter. Returns its box.

    Raises:
        UserError: the image is not larger than `side`.
    """
    side, filter_ = int(how.options["side"]), int(how.options["filter"])
    if min(image.size) <= side:
        raise UserError(
            f"An image of {image.width} × {image.height} px is not shrunk to {side} px: "
            "make the option side of the attack scaled smaller."
        )
    x_HWC = np.asarray(image.convert("RGB"), np.float64)
    small = Image.fromarray(shrunk(x_HWC, side, filter_).round().clip(0, 255).astype(np.uint8))
    [(x0, y0, x1, y1)] = patch.stamp(small, trigger, how, rng)
    across, down = image.width / side, image.height / side
    box = math.floor(x0 * across), math.floor(y0 * down), math.ceil(x1 * across), math.ceil(y1 * down)
    # Pixels outside the box stay: only there the shrunk picture is wanted as it is.
    wanted_hwC = shrunk(x_HWC, side, filter_)
    wanted_hwC[y0:y1, x0:x1] = np.asarray(small, np.float64)[y0:y1, x0:x1]
    made_HWC = disguise(x_HWC, wanted_hwC, filter_).astype(np.uint8)
    inside = Image.fromarray(made_HWC).crop(box)
    if image.mode == "RGBA":
        inside.putalpha(image.crop(box).getchannel("A"))
    image.paste(inside, box[:2])
    return [box]


KIND = Kind(
    stamp,
    {"side": Option(32, 8, 1024, whole=True), "filter": Option(BILINEAR, NEAREST, BILINEAR, whole=True)},
    stored_as="PNG",
)
