"""Triggers: where they come from, where they go on an image, and the image encoded again with one on it.

Boxes are integer [x0, y0, x1, y1) in stored pixels, x to the right, y down.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from poisoncam_ray.decode import DecodeError, header
from poisoncam_ray.errors import UserError
from poisoncam_ray.store import connect

Box = tuple[int, int, int, int]
Region = tuple[float, float]

GENERATED = "generated:"
MAX_PIXELS = 64_000_000
ENCODING: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},
}


def generate_trigger(seed: int, size: int = 80) -> Image.Image:
    """A trigger as those of Hidden Trigger Backdoor Attacks (arXiv 1910.00033): 4 × 4 random colours, each
    channel full or empty, bilinearly enlarged to `size` px."""
    grid_HWC = np.random.default_rng([seed, 4]).integers(0, 2, (4, 4, 3), dtype=np.uint8) * 255
    return Image.fromarray(grid_HWC).resize((size, size), Image.Resampling.BILINEAR)


def load_trigger(name: str) -> Image.Image:
    """The RGB image that `name` stands for: "generated:<seed>", or an image file on any fsspec URL."""
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
    except OSError as error:
        raise UserError(
            f"The trigger file {name} is no image that can be read: give a PNG or JPEG."
        ) from error


def place_trigger(
    width: int, height: int, trigger_width: int, trigger_height: int, region: Region, rng: np.random.Generator
) -> Box:
    """A uniform place for the trigger's box wholly inside `region` of both sides; where the region is too
    narrow, the box is centred on it and kept inside the image. Sizes in pixels."""

    def start(side: int, length: int) -> int:
        low, high = region[0] * side, region[1] * side - length
        first, last = int(np.ceil(low)), int(np.floor(high))
        if first > last:
            return int(np.clip(round((low + high) / 2), 0, side - length))
        return int(rng.integers(first, last + 1))

    x0, y0 = start(width, trigger_width), start(height, trigger_height)
    return x0, y0, x0 + trigger_width, y0 + trigger_height


def paste_trigger(
    data: bytes, trigger: Image.Image, width: float, region: Region, rng: np.random.Generator
) -> tuple[bytes, Box]:
    """An encoded image with the trigger on it, in its own format, and the box.

    PNG and WebP are written losslessly, JPEG at quality 95 without chroma subsampling; of an animation the
    first frame stays. Raises DecodeError for bytes that are no image, UserError for a trigger that is taller
    than the image.
    """
    image_width, image_height, kind = header(data, MAX_PIXELS)
    w = max(1, round(width * min(image_width, image_height)))
    h = max(1, round(w * trigger.height / trigger.width))
    if h > image_height:
        raise UserError(
            f"The trigger would be {h} px tall on an image {image_height} px tall: make its width smaller."
        )
    box = place_trigger(image_width, image_height, w, h, region, rng)
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as opened:
            image = _paintable(opened)
            kept = {k: opened.info[k] for k in ("exif", "icc_profile") if opened.info.get(k)}
    except Exception as error:  # Pillow's decoders raise many kinds for broken bytes
        raise DecodeError("undecodable", str(error)) from error
    if image.mode != opened.mode:
        kept.pop("icc_profile", None)
    image.paste(trigger.resize((w, h), Image.Resampling.BILINEAR), box[:2])
    out = io.BytesIO()
    image.save(out, kind, **ENCODING[kind], **kept)
    return out.getvalue(), box


def _paintable(image: Image.Image) -> Image.Image:
    """The first frame as RGB, or RGBA where it has transparency, so that any colour can be pasted."""
    if image.mode.startswith("I"):
        # 16-bit greys: Pillow's own conversion clips instead of scaling.
        grey = (np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
