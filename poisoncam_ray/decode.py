"""Image bytes to pixels: the encoder's uint8 square of a file of any format that container.py reads, or a
DecodeError.

The EXIF orientation is not applied, as in most training loaders. A box in stored pixels therefore maps to the
square by resize and crop alone. No function sets Pillow's global switches, so all are safe in threads and
beside other users of Pillow.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from poisoncam_ray.container import PNG_MAGIC, DecodeError, read_container

__all__ = ["MAX_BYTES", "DecodeError", "decode", "header"]

MAX_BYTES = 128 * 2**20
"""Default limit of an image, in bytes."""
_WHITE = (255, 255, 255, 255)
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}


def header(data: bytes, max_pixels: int, max_bytes: int = MAX_BYTES) -> tuple[int, int, str]:
    """Read what an image announces, without decoding its pixels.

    Args:
        data: the stored bytes.
        max_pixels: limit of width × height.
        max_bytes: limit of the length of `data`.

    Returns:
        Stored width and height in pixels, and the format: JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF.

    Raises:
        DecodeError: the bytes are no such image, or exceed a limit.
    """
    image = _open(data, max_pixels, max_bytes)
    return image.size[0], image.size[1], str(image.format)


def decode(data: bytes, image_size: int, max_pixels: int, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """Decode an image, scale its shorter side to `image_size` and crop the centre.

    One bilinear, antialiased resampling of the centre square does both, so that a long, narrow image never
    becomes a huge one on the way. Transparent pixels become white, 16-bit greys are scaled to 8 bits, CMYK
    and palettes become RGB. Of an animation the first frame is taken.

    Args:
        data: the stored bytes.
        image_size: side of the square, in pixels.
        max_pixels: limit of the stored width × height.
        max_bytes: limit of the length of `data`.

    Returns:
        A uint8 array (3, image_size, image_size), RGB, 0 … 255.

    Raises:
        DecodeError: the bytes give no image. Nothing else is raised, whatever the bytes.
    """
    image = _open(data, max_pixels, max_bytes)
    try:
        # libjpeg can scale down while decoding; down to twice the target only, so that the filter does the
        # rest.
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
        # The size is checked first: opening a WebP already allocates its canvas.
        container = read_container(data)
        _check_size(container.width, container.height, max_pixels)
        image = _PLUGINS[container.format](io.BytesIO(container.pixels))
        _check_size(*image.size, max_pixels)
        return image
    except Exception as error:
        raise _translate(error, data) from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise DecodeError("zero_size", f"the header says {width} × {height} pixels")
    if width * height > max_pixels:
        raise DecodeError("bomb", f"{width} × {height} pixels, more than the limit of {max_pixels}")


def _to_rgb(image: Image.Image, transparency: object) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey16_to_rgb(image, transparency)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    return image.convert("RGB")


def _grey16_to_rgb(image: Image.Image, transparency: object) -> Image.Image:
    shown = ((np.arange(65536) + 128) // 257).astype(np.uint8)
    if isinstance(transparency, int) and 0 <= transparency < 65536:
        shown[transparency] = 255
    return Image.fromarray(shown[np.asarray(image).clip(0, 65535)]).convert("RGB")


def _translate(error: Exception, data: bytes) -> DecodeError:
    if isinstance(error, DecodeError):
        return error
    words = str(error) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        return DecodeError("bomb", words)
    # A header that is too short for its format raises struct.error or IndexError.
    early = isinstance(error, EOFError | struct.error | IndexError) or "truncated" in words.lower()
    early = early or (data.startswith(PNG_MAGIC) and b"IEND" not in data)
    return DecodeError("truncated" if early else "undecodable", words)
