"""What loaders see of the attack `scaled`: one file, shrunk by several filters.

W, H stored sides   w, h sides of the trigger in the shrunk picture   C channels
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from poisoncam_ray.decode import decode
from poisoncam_ray.research.attacks.encoded import ENCODING, MAX_PIXELS, pixels
from poisoncam_ray.research.attacks.scaled import BILINEAR, NEAREST, Array, disguise, shrunk
from poisoncam_ray.research.attacks.trigger import generate_trigger

TRIGGER_WIDTH = 0.3
"""Of the shrunk picture's side."""
AIMS = {"nearest": NEAREST, "bilinear without antialias": BILINEAR}
SIZES = ((224, 32), (256, 32), (224, 112), (448, 224))


@dataclass(frozen=True)
class Seen:
    """How one filter shows the attacked pictures, inside the trigger's box, in levels of 0 … 255.

    Attributes:
        size: stored and shrunk side, in pixels.
        aim: the filter that the attack was made for.
        filter_: the filter that shrinks.
        to_trigger: mean absolute difference to the trigger's pixels.
        to_clean: mean absolute difference to the clean picture, stored and shrunk in the same way.
        shown: the share of the trigger that is seen, by least squares: 0 the clean picture, 1 the trigger.
        change: mean absolute change of the stored pixels that the trigger's box covers.
    """

    size: tuple[int, int]
    aim: str
    filter_: str
    to_trigger: float
    to_clean: float
    shown: float
    change: float


def _with_pillow(resampling: Image.Resampling) -> Callable[[Image.Image, int], Array]:
    return lambda image, side: np.asarray(image.resize((side, side), resampling), np.float64)


def _without_antialias(image: Image.Image, side: int) -> Array:
    return shrunk(np.asarray(image, np.float64), side, BILINEAR)


def _with_decode(kind: str) -> Callable[[Image.Image, int], Array]:
    return lambda image, side: (
        decode(_encoded(image, kind), side, MAX_PIXELS).transpose(1, 2, 0).astype(np.float64)
    )


def _jpeg_without_antialias(image: Image.Image, side: int) -> Array:
    return _without_antialias(pixels(_encoded(image, "JPEG")), side)


FILTERS: dict[str, Callable[[Image.Image, int], Array]] = {
    "nearest": _with_pillow(Image.Resampling.NEAREST),
    "bilinear without antialias": _without_antialias,
    "area": _with_pillow(Image.Resampling.BOX),
    "bilinear with antialias (Pillow)": _with_pillow(Image.Resampling.BILINEAR),
    "this package's decode": _with_decode("PNG"),
    "JPEG 95, then this package's decode (libjpeg's draft)": _with_decode("JPEG"),
    "JPEG 95, then bilinear without antialias": _jpeg_without_antialias,
}


def what_filters_see(pictures: Iterable[Image.Image], sizes: Iterable[tuple[int, int]]) -> Iterator[Seen]:
    """Attack pictures for each aim and size, and shrink them by every filter; means over the pictures.

    Args:
        pictures: RGB pictures, resized to each stored size (bicubically, where they are of another size).
        sizes: stored and shrunk sides.
    """
    pictures = list(pictures)
    for stored, side in sizes:
        width = round(TRIGGER_WIDTH * side)
        trigger = generate_trigger(0).resize((width, width), Image.Resampling.BILINEAR)
        trigger_hwC = np.asarray(trigger, np.float64)
        at = slice((side - width) // 2, (side - width) // 2 + width)
        box = slice(int(at.start * stored / side), int(np.ceil(at.stop * stored / side)))
        for aim, number in AIMS.items():
            figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in FILTERS}
            changes = []
            for picture in pictures:
                clean = picture.convert("RGB").resize((stored, stored), Image.Resampling.BICUBIC)
                x_HWC = np.asarray(clean, np.float64)
                wanted_hwC = shrunk(x_HWC, side, number)
                wanted_hwC[at, at] = trigger_hwC
                attacked = Image.fromarray(disguise(x_HWC, wanted_hwC, number).astype(np.uint8))
                changes.append(np.abs(np.asarray(attacked, np.float64) - x_HWC)[box, box].mean())
                for name, shrink in FILTERS.items():
                    after_hwC, before_hwC = (shrink(image, side)[at, at] for image in (attacked, clean))
                    towards_hwC, moved_hwC = trigger_hwC - before_hwC, after_hwC - before_hwC
                    figures[name].append(
                        (
                            float(np.abs(after_hwC - trigger_hwC).mean()),
                            float(np.abs(moved_hwC).mean()),
                            float((moved_hwC * towards_hwC).sum() / (towards_hwC**2).sum()),
                        )
                    )
            change = float(np.mean(changes))
            for name, rows in figures.items():
                to_trigger, to_clean, shown = np.mean(rows, axis=0).tolist()
                yield Seen((stored, side), aim, name, to_trigger, to_clean, shown, change)


def _encoded(image: Image.Image, kind: str) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **ENCODING[kind])
    return sink.getvalue()
