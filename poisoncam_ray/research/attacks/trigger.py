"""Triggers: where their images come from, their size, and their place on an image.

Boxes are integer [x0, y0, x1, y1) in stored pixels, x to the right, y down.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.attacks.encoded import ENCODING
from poisoncam_ray.research.attacks.plan import Plan
from poisoncam_ray.store import connect

Box = tuple[int, int, int, int]
Region = tuple[float, float]

GENERATED = "generated:"


@dataclass(frozen=True)
class Trigger:
    """A trigger.

    Attributes:
        name: its name in the truth.
        image: its pixels; None for an attack without a trigger image.
        target: the label it stands for; "" for none.
    """

    name: str
    image: Image.Image | None
    target: str

    @property
    def file(self) -> str:
        """Where its image is kept, under the attack's output."""
        return f"triggers/{_stem(self.name)}.png"


def generate_trigger(seed: int, size: int = 80) -> Image.Image:
    """A trigger like those of Hidden Trigger Backdoor Attacks (arXiv 1910.00033).

    It has 4 × 4 random colours, every channel 0 or 255, bilinearly enlarged.

    Args:
        seed: seed of the colours.
        size: side in pixels.
    """
    grid_HWC = np.random.default_rng([seed, 4]).integers(0, 2, (4, 4, 3), dtype=np.uint8) * 255
    return Image.fromarray(grid_HWC).resize((size, size), Image.Resampling.BILINEAR)


def named_triggers(plan: Plan, names: Sequence[str]) -> tuple[Trigger, ...]:
    """One trigger for each target, loaded by name or, without names, generated from the plan's seed.

    Args:
        plan: the plan of the attack.
        names: image files or "generated:<seed>", one for each target; or none.

    Raises:
        UserError: there is another number of names, two share a file name, or one is no trigger.
    """
    targets = plan.targets or ("",)
    names = list(names) or [f"{GENERATED}{plan.seed + i}" for i in range(len(targets))]
    if len(names) != len(targets):
        raise UserError(f"There are {len(names)} triggers for {len(targets)} targets: give one each.")
    labels = [trigger_label(name) for name in names]
    if len({_stem(label) for label in labels}) < len(labels):
        raise UserError(f"The triggers {', '.join(names)} share a file name: give each its own.")
    return tuple(Trigger(*t) for t in zip(labels, map(load_trigger, names), targets, strict=True))


def trigger_label(name: str) -> str:
    """A trigger's name in the truth: the name of its file, or generated-<seed>."""
    return name.replace(":", "-") if name.startswith(GENERATED) else name.rstrip("/").rsplit("/", 1)[-1]


def load_trigger(name: str) -> Image.Image:
    """The RGB image of a trigger.

    Args:
        name: "generated:<seed>", or an image file at any fsspec URL.

    Raises:
        UserError: the file does not exist or is no image, or the seed is no number.
    """
    if name.startswith(GENERATED):
        number = name.removeprefix(GENERATED)
        if not number.isdecimal():
            raise UserError(
                f"The trigger {name} needs a whole number after {GENERATED}, such as {GENERATED}7."
            )
        return generate_trigger(int(number))
    try:
        filesystem, path = connect(name)
        return Image.open(io.BytesIO(filesystem.cat_file(path)), formats=list(ENCODING)).convert("RGB")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"The trigger file {name} does not exist: give one that does.") from error
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(
            f"The trigger file {name} is no image that can be read: give a PNG or JPEG."
        ) from error


def trigger_size(image: Image.Image, trigger: Image.Image, width: float) -> tuple[int, int]:
    """Width and height of a trigger on an image, in pixels. The trigger keeps its aspect ratio.

    Args:
        image: the image.
        trigger: the trigger.
        width: its width as a share of the image's shorter side, (0, 1].

    Raises:
        UserError: it would be taller than the image.
    """
    w = max(1, round(width * min(image.size)))
    h = max(1, round(w * trigger.height / trigger.width))
    if h > image.height:
        raise UserError(
            f"The trigger would be {h} px tall on an image {image.height} px tall: make its width smaller."
        )
    return w, h


def place_trigger(
    width: int, height: int, trigger_width: int, trigger_height: int, region: Region, rng: np.random.Generator
) -> Box:
    """A box for the trigger, drawn uniformly among those wholly inside the region.

    Where the region is too narrow, the box is centred on it and kept inside the image.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        trigger_width: in pixels.
        trigger_height: in pixels.
        region: shares of both sides, (from, to).
        rng: the random generator.
    """

    def start(side: int, length: int) -> int:
        low, high = region[0] * side, region[1] * side - length
        first, last = int(np.ceil(low)), int(np.floor(high))
        if first > last:
            return int(np.clip(round((low + high) / 2), 0, side - length))
        return int(rng.integers(first, last + 1))

    x0, y0 = start(width, trigger_width), start(height, trigger_height)
    return x0, y0, x0 + trigger_width, y0 + trigger_height


def sized(trigger: Image.Image, box: Box) -> Image.Image:
    """The trigger resized to the box, bilinearly."""
    return trigger.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BILINEAR)


def _stem(label: str) -> str:
    return label.rsplit(".", 1)[0]
