"""What decoding costs a core: by the stored side and the encoder's, with and without JPEG's own scaling, and
two crops of training against one whole image.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
from PIL import Image

from poisoncam_ray.decode import cut_out, decode, header
from poisoncam_ray.method.crops import draw_pair
from poisoncam_ray.research.benchmark.compare import Measured, Row, Setting, Table, alternate
from poisoncam_ray.research.benchmark.images import MAX_PIXELS, pictures

CROP_MIN = 0.08
"""The smallest share of an image that a crop of training shows, as the paper has it at 224 px."""


@dataclass(frozen=True)
class Sizes:
    """Of the part `decode`.

    Attributes:
        images: decoded in a round.
        stored: widths and heights of stored images, in pixels.
        targets: sides that they are decoded to.
    """

    images: int = 300
    stored: tuple[tuple[int, int], ...] = ((64, 64), (224, 224), (500, 375))
    targets: tuple[int, ...] = (32, 64, 224)


def measure_decode(setting: Setting, sizes: Sizes) -> Measured:
    """Images a second on one core."""
    found, lines = Measured(), list[tuple[str, ...]]()
    for width, height in sizes.stored:
        stored = [pictures(width, height)[i % len(pictures(width, height))] for i in range(sizes.images)]
        targets = [size for size in sizes.targets if size <= width]
        ways: list[Callable[[], object]] = [partial(_each, stored, _header)]
        ways += [
            partial(_each, stored, partial(decode, image_size=size, max_pixels=MAX_PIXELS))
            for size in targets
        ]
        ways += [partial(_each, stored, partial(_unscaled, size=size)) for size in targets]
        ways += [partial(_crops, stored, width, height, size) for size in targets]
        seconds, _ = alternate(ways, setting.rounds)
        n, name = len(targets), f"JPEG of {width} × {height} px, {len(stored[0]) / 1000:.1f} kB"
        whole, unscaled, crops = (seconds[1 + i * n : 1 + (i + 1) * n] for i in range(3))
        for target, *times in zip(targets, whole, unscaled, crops, strict=True):
            rates = (f"{sizes.images / median(s):,.0f}" for s in times)
            lines.append((name, str(target), *rates, f"{sizes.images / median(seconds[0]):,.0f}"))
            regime = f"{name}, one thread"
            found.rows += [
                Row(
                    f"decode {width} px to {target} px",
                    ("decode.decode", "Pillow, decoded whole"),
                    (times[0], times[1]),
                    regime,
                    units=sizes.images,
                ),
                Row(
                    f"two crops of {target} px from {width} px",
                    ("two crops, one decode", "one whole image"),
                    (times[2], times[0]),
                    f"{regime}; crops show {CROP_MIN:.0%} to all of an image",
                    units=sizes.images,
                ),
            ]
    columns = ("stored", "to", "decode.decode", "Pillow, decoded whole", "two crops", "header only")
    found.tables.append(Table("Images a second and core", columns, lines))
    return found


def _each(stored: Sequence[bytes], work: Callable[[bytes], object]) -> None:
    for data in stored:
        work(data)


def _header(data: bytes) -> object:
    return header(data, MAX_PIXELS)


def _unscaled(data: bytes, size: int) -> object:
    """A plain training loader's square."""
    image = Image.open(io.BytesIO(data), formats=["JPEG"]).convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _crops(stored: Sequence[bytes], width: int, height: int, size: int) -> None:
    for i, data in enumerate(stored):
        pair = draw_pair(width, height, CROP_MIN, np.random.default_rng(i))
        cut_out(data, [crop.box for crop in pair], size, MAX_PIXELS)
