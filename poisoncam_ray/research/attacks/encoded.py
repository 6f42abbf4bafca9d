"""Encoded images: decode one, paint on it, and encode it again in its own format."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from poisoncam_ray.decode import DecodeError, header

Found = TypeVar("Found")

MAX_PIXELS = 64_000_000
ENCODING: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},
    "GIF": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "AVIF": {"quality": 95, "subsampling": "4:4:4", "speed": 8},
}


def paint(
    data: bytes, painter: Callable[[Image.Image], Found], stored_as: str | None = None
) -> tuple[bytes, Found]:
    """Decode an image, paint on it, and encode it in the same format, or in the one asked for.

    PNG, WebP, BMP and TIFF are written losslessly, JPEG and AVIF at quality 95 without chroma subsampling,
    GIF with a new palette. Of an animation only the first frame is kept.

    Args:
        data: the encoded image.
        painter: paints on the image in place. It gets RGB, or RGBA where the image has transparency, so that
            it can paint any colour.
        stored_as: a format of ENCODING; None: that of `data`.

    Returns:
        The encoded result, and what `painter` returned.

    Raises:
        DecodeError: the bytes are no image that can be decoded.
    """
    return remake(data, lambda image: (image, painter(image)), stored_as)


def remake(
    data: bytes, maker: Callable[[Image.Image], tuple[Image.Image, Found]], stored_as: str | None = None
) -> tuple[bytes, Found]:
    """Decode an image, make another one of it, and encode that in the same format, as `paint` does.

    Args:
        data: the encoded image.
        maker: gets what `paint` gives its painter. Returns an image of the same mode, and what it found.
        stored_as: as in `paint`.

    Returns:
        The encoded result, and what `maker` found.

    Raises:
        DecodeError: the bytes are no image that can be decoded.
    """
    image, kind, kept = _open(data)
    made, found = maker(image)
    kind = stored_as or kind
    out = io.BytesIO()
    made.save(out, kind, **ENCODING[kind], **kept)
    return out.getvalue(), found


def pixels(data: bytes) -> Image.Image:
    """Decode an image as RGB, as `paint` would.

    Raises:
        DecodeError: the bytes are no image that can be decoded.
    """
    return _open(data)[0].convert("RGB")


def _open(data: bytes) -> tuple[Image.Image, str, dict[str, Any]]:
    _, _, kind = header(data, MAX_PIXELS)
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as opened:
            image = _paintable(opened)
            kept = {k: opened.info[k] for k in ("exif", "icc_profile") if opened.info.get(k)}
    except Exception as error:  # Pillow's decoders raise many kinds for broken bytes
        raise DecodeError("undecodable", str(error)) from error
    if image.mode != opened.mode:
        kept.pop("icc_profile", None)
    return image, kind, kept


def _paintable(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit greys: Pillow's own conversion clips instead of scaling.
        grey = (np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
