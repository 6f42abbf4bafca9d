"""What decoding costs a core: by the stored side and the encoder's, with and without JPEG's own scaling, two
crops of training against one whole image, and both from the smaller copies that Index can keep
(`corpus.shrink_to`), with the number of epochs after which these pay.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
from PIL import Image

from poisoncam_ray.decode import cut_out, decode, header, shrink
from poisoncam_ray.method.crops import draw_pair, shrunk_size
from poisoncam_ray.research.benchmark.compare import Measured, Row, Setting, Table, alternate
from poisoncam_ray.research.benchmark.images import MAX_PIXELS, pictures

CROP_MIN = 0.08
"""The smallest share of an image that a crop of training shows, as the paper has it at 224 px."""
AREA = 500 * 375
"""Of larger images fewer are decoded in a round."""
EPOCHS = (20, 200)
"""Of a run: the default, and the paper's."""
WHOLE_PASSES = 2
"""Embed and Judge."""


@dataclass(frozen=True)
class Sizes:
    """Of the part `decode`.

    Attributes:
        images: decoded in a round; of large images fewer.
        stored: widths and heights of stored images, in pixels.
        targets: sides that they are decoded to.
    """

    images: int = 150
    stored: tuple[tuple[int, int], ...] = ((64, 64), (224, 224), (500, 375), (1600, 900))
    targets: tuple[int, ...] = (32, 64, 224)


def measure_decode(setting: Setting, sizes: Sizes) -> Measured:
    """Images a second on one core."""
    found, lines, copied = Measured(), list[tuple[str, ...]](), list[tuple[str, ...]]()
    for width, height in sizes.stored:
        n_images = max(4, round(sizes.images * min(1.0, AREA / (width * height))))
        stored = [pictures(width, height)[i % len(pictures(width, height))] for i in range(n_images)]
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
            rates = (f"{n_images / median(s):,.0f}" for s in times)
            lines.append((name, str(target), *rates, f"{n_images / median(seconds[0]):,.0f}"))
            regime = f"{name}, one thread"
            found.rows += [
                Row(
                    f"decode {width} px to {target} px",
                    ("decode.decode", "Pillow, decoded whole"),
                    (times[0], times[1]),
                    regime,
                    units=n_images,
                ),
                Row(
                    f"two crops of {target} px from {width} px",
                    ("two crops, one decode", "one whole image"),
                    (times[2], times[0]),
                    f"{regime}; crops show {CROP_MIN:.0%} to all of an image",
                    units=n_images,
                ),
            ]
            if width > 2 * target:
                row, line = _measure_copies(stored, (width, height), target, setting.rounds)
                found.rows.append(row)
                copied.append((name, *line))
    columns = ("stored", "to", "decode.decode", "Pillow, decoded whole", "two crops", "header only")
    found.tables.append(Table("Images a second and core", columns, lines))
    found.tables.append(Table("Smaller copies, images a second and core", COPY_COLUMNS, copied))
    found.notes.append(
        "A copy's long side is twice the encoder's. It pays in decoding from that number of epochs on, where "
        f"Index makes it beside its proof, and {WHOLE_PASSES} passes decode whole images; reading is not "
        "counted."
    )
    return found


COPY_COLUMNS = (
    "stored", "to", "copy", "proof alone", "proof and copy", "two crops: stored → copy",
    "whole: stored → copy", "pays after epochs",
    *(f"seconds of {epochs} epochs a million images: without → with" for epochs in EPOCHS),
)  # fmt: skip


def _measure_copies(
    stored: Sequence[bytes], size: tuple[int, int], target: int, rounds: int
) -> tuple[Row, tuple[str, ...]]:
    """Decode stored images and their copies in turns.

    Args:
        stored: the images.
        size: their width and height, in pixels.
        target: the encoder's side.
        rounds: how often.

    Returns:
        The row for two crops, and a line of the table without its first cell.
    """
    small, n = shrunk_size(*size, 2 * target), len(stored)
    copies = [shrink(data, small, MAX_PIXELS)[0] for data in stored]
    whole = partial(decode, image_size=target, max_pixels=MAX_PIXELS)
    ways: list[Callable[[], object]] = [
        partial(_each, stored, whole),
        partial(_each, stored, lambda data: shrink(data, small, MAX_PIXELS)),
        partial(_crops, stored, *size, target),
        partial(_crops, copies, *size, target),
        partial(_each, copies, whole),
    ]
    seconds, _ = alternate(ways, rounds)
    proof, make, crops, crops_of_copies, whole_of_copies = (median(s) / n for s in seconds)
    added, saved = make - proof, crops - crops_of_copies
    more = WHOLE_PASSES * (whole_of_copies - proof)
    totals = [
        (proof + epochs * crops + WHOLE_PASSES * proof,
         make + epochs * crops_of_copies + WHOLE_PASSES * whole_of_copies)
        for epochs in EPOCHS
    ]  # fmt: skip
    line = (
        str(target),
        f"{small[0]} × {small[1]} px, {sum(map(len, copies)) / n / 1000:.1f} kB",
        f"{1 / proof:,.0f}",
        f"{1 / make:,.0f}",
        f"{1 / crops:,.0f} → {1 / crops_of_copies:,.0f}",
        f"{1 / proof:,.0f} → {1 / whole_of_copies:,.0f}",
        "never" if saved <= 0 else f"{max(0.0, (added + more) / saved):.1f}",
        *(f"{without * 1e6:,.0f} → {with_copies * 1e6:,.0f}" for without, with_copies in totals),
    )
    row = Row(
        f"two crops of {target} px from {size[0]} px, from copies",
        ("from copies", "from stored images"),
        (seconds[3], seconds[2]),
        f"JPEG of {size[0]} × {size[1]} px, one thread; crops show {CROP_MIN:.0%} to all of an image",
        units=n,
    )
    return row, line


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
        cut_out(data, [crop.box for crop in pair], size, MAX_PIXELS, size=(width, height))
