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

__all__ = ["MAX_BYTES", "DecodeError", "decode", "header", "views"]

MAX_BYTES = 128 * 2**20
"""Default limit of an image, in bytes."""
Box = tuple[float, float, float, float]
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
    """Decode an image as a training loader does, scale its shorter side to `image_size` and crop the centre.

    The colours are those of Pillow's `convert("RGB")`: transparency is dropped, so that colours show under
    it, and 16-bit greys are clipped to 255. Of an animation the first frame is taken. One bilinear,
    antialiased resampling of the centre square does both, so that a long, narrow image never becomes a huge
    one on the way.

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
        centre, box = _centre(image, image_size)
        return _square(_opaque(centre), image_size, box)
    except Exception as error:
        raise _translate(error, data) from error


def views(
    data: bytes, image_size: int, max_pixels: int, max_bytes: int = MAX_BYTES
) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode an image as `decode` does, and as a viewer shows it.

    Args:
        data: the stored bytes.
        image_size: side of the square, in pixels.
        max_pixels: limit of the stored width × height.
        max_bytes: limit of the length of `data`.

    Returns:
        What `decode` gives; and the same square with transparent pixels over white and with more than 8 bits
        scaled to 8, None where that is no other picture.

    Raises:
        DecodeError: the bytes give no image.
    """
    image = _open(data, max_pixels, max_bytes)
    try:
        centre, box = _centre(image, image_size)
        other = _shown(centre)
        first = _square(_opaque(centre), image_size, box)
        second = None if other is None else _square(other, image_size, box)
        return first, None if second is None or np.array_equal(first, second) else second
    except Exception as error:
        raise _translate(error, data) from error


def _centre(image: ImageFile.ImageFile, image_size: int) -> tuple[Image.Image, Box]:
    """The pixels that the centre square touches, and its place in them."""
    # libjpeg can scale down while decoding; down to twice the target only, so that the filter does the rest.
    image.draft(image.mode, (2 * image_size, 2 * image_size))
    image.load()
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    centre = (int(left), int(top), int(left + side + 0.5), int(top + side + 0.5))
    box = (left - centre[0], top - centre[1], left - centre[0] + side, top - centre[1] + side)
    return image if centre == (0, 0, width, height) else image.crop(centre), box


def _square(image: Image.Image, image_size: int, box: Box) -> np.ndarray:
    square = image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))


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


def _opaque(image: Image.Image) -> Image.Image:
    # Pillow would only warn about it.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _shown(image: Image.Image) -> Image.Image | None:
    """The image as a viewer shows it; None where that is what `convert("RGB")` gives."""
    if image.mode.startswith(("I", "F")):
        return _deep_grey(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    return None


def _deep_grey(image: Image.Image) -> Image.Image:
    """Greys of more than 8 bits, scaled: 0 … 65535 for integers; 0 … 1 or 0 … 255 for real numbers, unless
    they are larger."""
    stored, transparent = np.nan_to_num(np.asarray(image)), image.info.get("transparency")
    highest = float(stored.max())
    top = 65535 if image.mode.startswith("I") else next((t for t in (1, 255, 65535) if highest <= t), highest)
    shown = (stored.astype(np.float64).clip(0, top) * (255 / top) + 0.5).astype(np.uint8)
    if isinstance(transparent, int):
        shown[stored == transparent] = 255
    return Image.fromarray(shown).convert("RGB")


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
