"""Image bytes to pixels: any JPEG, PNG or WebP to the encoder's uint8 square, or one DecodeError.

C channels (RGB), S side of the square, H W stored height and width.

Stored pixels are what counts: the EXIF orientation is not applied, as in most training loaders, so boxes in
stored pixels (the attack's truth) map to the square by resize and crop alone. Nothing here touches Pillow's
global switches, so the functions are safe in threads and beside other users of Pillow.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

MAX_BYTES = 128 * 2**20
_PNG = b"\x89PNG\r\n\x1a\n"
_WHITE = (255, 255, 255, 255)
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}


class DecodeError(Exception):
    """Bytes that give no image. `kind`: empty, undecodable, truncated, bomb (too many pixels or bytes) or
    zero_size; `str(error)` is the reason in words."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


def header(data: bytes, max_pixels: int, max_bytes: int = MAX_BYTES) -> tuple[int, int, str]:
    """Stored width and height in pixels and the format (JPEG, PNG or WEBP), without decoding pixels.

    Raises DecodeError for bytes that are no such image, or one of more than `max_pixels` pixels.
    """
    image = _open(data, max_pixels, max_bytes)
    return image.size[0], image.size[1], str(image.format)


def decode(data: bytes, image_size: int, max_pixels: int, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """The image as a uint8 array (3, image_size, image_size), RGB, 0–255.

    The shorter side becomes `image_size` (bilinear, antialiased) and the centre is cropped; both happen in
    one resampling of the centre square, so a sliver of an image never becomes a huge one on the way.
    Transparent pixels show white, 16-bit greys are scaled to 8 bits, CMYK and palettes become RGB, of an
    animation the first frame counts. Raises DecodeError, and nothing else, whatever the bytes.
    """
    image = _open(data, max_pixels, max_bytes)
    try:
        # libjpeg can halve while decoding; twice the target leaves the last halving to the filter.
        image.draft(image.mode, (2 * image_size, 2 * image_size))
        image.load()
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        centre = (int(left), int(top), int(left + side + 0.5), int(top + side + 0.5))
        box = (left - centre[0], top - centre[1], left - centre[0] + side, top - centre[1] + side)
        cropped = image if centre == (0, 0, width, height) else image.crop(centre)
        square = _to_rgb(cropped, image.info.get("transparency")).resize(
            (image_size, image_size), Image.Resampling.BILINEAR, box=box
        )
        return np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))
    except Exception as error:
        raise _translate(error, data) from error


def _open(data: bytes, max_pixels: int, max_bytes: int) -> ImageFile.ImageFile:
    if not data:
        raise DecodeError("empty", "no bytes")
    if len(data) > max_bytes:
        raise DecodeError("bomb", f"{len(data)} bytes, more than the limit of {max_bytes}")
    try:
        # Sizes are read by hand first: opening a WebP already allocates its canvas.
        name, width, height = _read_size(data)
        _check_size(width, height, max_pixels)
        image = _PLUGINS[name](io.BytesIO(data))
        _check_size(*image.size, max_pixels)
        return image
    except Exception as error:
        raise _translate(error, data) from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise DecodeError("zero_size", f"the header says {width} × {height} pixels")
    if width * height > max_pixels:
        raise DecodeError("bomb", f"{width} × {height} pixels, more than the limit of {max_pixels}")


def _read_size(data: bytes) -> tuple[str, int, int]:
    if data.startswith(_PNG):
        return ("PNG", *struct.unpack(">II", data[16:24]))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        if int.from_bytes(data[4:8], "little") + 8 > len(data):
            raise DecodeError("truncated", "the WebP file ends early")
        return ("WEBP", *_webp_size(data))
    if data[:2] == b"\xff\xd8":
        return ("JPEG", *_jpeg_size(data))
    raise DecodeError("undecodable", f"neither JPEG, PNG nor WebP (starts with {data[:8].hex(' ')})")


def _webp_size(data: bytes) -> tuple[int, int]:
    kind, body = data[12:16], data[20:]
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", body[1:5])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", body[6:10])
        return width & 0x3FFF, height & 0x3FFF
    raise DecodeError("undecodable", "a WebP file without an image")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Size in the first start-of-frame segment (ITU T.81, B.2.2)."""
    position = 2
    while position + 9 <= len(data):
        if data[position] != 0xFF:
            position += 1
            continue
        marker = data[position + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            position += 1 if marker == 0xFF else 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            return width, height
        if marker in (0xD9, 0xDA):
            raise DecodeError("undecodable", "a JPEG file without a frame header")
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    raise DecodeError("truncated", "the JPEG file ends before its frame header")


def _to_rgb(image: Image.Image, transparency: object) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey16_to_rgb(image, transparency)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    return image.convert("RGB")


def _grey16_to_rgb(image: Image.Image, transparency: object) -> Image.Image:
    grey_HW = np.asarray(image).astype(np.int64).clip(0, 65535)
    shown_HW = (grey_HW + 128) // 257
    if isinstance(transparency, int):
        shown_HW = np.where(grey_HW == transparency, 255, shown_HW)
    return Image.fromarray(shown_HW.astype(np.uint8)).convert("RGB")


def _translate(error: Exception, data: bytes) -> DecodeError:
    if isinstance(error, DecodeError):
        return error
    words = str(error) or type(error).__name__
    # struct.error and IndexError come from a header shorter than its own format demands.
    early = isinstance(error, EOFError | struct.error | IndexError) or "truncated" in words.lower()
    early = early or (data.startswith(_PNG) and b"IEND" not in data)
    return DecodeError("truncated" if early else "undecodable", words)
