"""Image bytes to pixels: the encoder's uint8 square of a file of any format that container.py reads, or of
parts of it, or a DecodeError.

The EXIF orientation is not applied, as in most training loaders. A box in stored pixels therefore maps to the
square by two scales alone. No function sets Pillow's global switches, so all are safe in threads and
beside other users of Pillow.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Sequence

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

__all__ = ["MAX_BYTES", "DecodeError", "cut_out", "decode", "header", "shrink", "views"]

MAX_BYTES = 128 * 2**20
"""Default limit of an image, in bytes."""
Box = tuple[float, float, float, float]
"""[x0, y0, x1, y1) in pixels of the stored image, at fractions of pixels."""
QUALITY = 92
"""Of the JPEGs that `shrink` makes. Their chroma has full resolution: triggers may have coloured edges."""
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


def decode(
    data: bytes,
    image_size: int,
    max_pixels: int,
    max_bytes: int = MAX_BYTES,
    part_of: Callable[[int, int], Box] | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decode an image as a training loader does, and squeeze it into a square.

    A victim's training crops the whole stored image, so a trigger in the margin of a wide one must be seen,
    too. The resampling is bilinear and antialiased. The colours are those of Pillow's `convert("RGB")`:
    transparency is dropped, so that colours show under it, and 16-bit greys are clipped to 255. Of an
    animation the first frame is taken.

    Args:
        data: the stored bytes.
        image_size: side of the square, in pixels.
        max_pixels: limit of the stored width × height.
        max_bytes: limit of the length of `data`.
        part_of: chooses the part of an image of this width and height that is squeezed; None: all of it.
        size: as in `cut_out`.

    Returns:
        A uint8 array (3, image_size, image_size), RGB, 0 … 255.

    Raises:
        DecodeError: the bytes give no image. Nothing else is raised, whatever the bytes.
    """
    image = _open(data, max_pixels, max_bytes)
    try:
        width, height = size or image.size
        box = part_of(width, height) if part_of else (0, 0, width, height)
        return _cut(image, [box], image_size, shown=False, size=(width, height))[0]
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
        _load(image, (2 * image_size, 2 * image_size))
        other = _shown(image)
        first = _square(_opaque(image), image_size)
        second = None if other is None else _square(other, image_size)
        return first, None if second is None or np.array_equal(first, second) else second
    except Exception as error:
        raise _translate(error, data) from error


def cut_out(
    data: bytes,
    boxes: Sequence[Box],
    image_size: int,
    max_pixels: int,
    max_bytes: int = MAX_BYTES,
    shown: bool = False,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decode an image once, and squeeze each of some parts of it into a square.

    Args:
        data: the stored bytes.
        boxes: the parts, at least one, inside the image.
        image_size: side of the squares, in pixels.
        max_pixels: limit of the stored width × height.
        max_bytes: limit of the length of `data`.
        shown: as a viewer shows it, not as `decode` reads it.
        size: width and height of the image in whose pixels the boxes are, where `data` is a smaller copy of
            it; None: of the image itself.

    Returns:
        A uint8 array (len(boxes), 3, image_size, image_size), RGB, 0 … 255.

    Raises:
        DecodeError: the bytes give no image.
    """
    image = _open(data, max_pixels, max_bytes)
    try:
        return np.stack(_cut(image, boxes, image_size, shown, size or image.size))
    except Exception as error:
        raise _translate(error, data) from error


def shrink(
    data: bytes,
    size: tuple[int, int],
    max_pixels: int,
    max_bytes: int = MAX_BYTES,
) -> tuple[bytes, bytes | None]:
    """Decode an image, and encode a smaller copy of it. It is scaled as `decode` scales: every pixel of the
    image counts, so the copy shows nothing that the image does not show.

    Args:
        data: the stored bytes.
        size: width and height of the copy.
        max_pixels: limit of the stored width × height.
        max_bytes: limit of the length of `data`.

    Returns:
        The JPEG bytes of the two pictures that `views` gives.

    Raises:
        DecodeError: the bytes give no image.
    """
    image = _open(data, max_pixels, max_bytes)
    try:
        width, height = size
        _load(image, (2 * width, 2 * height))
        other = _shown(image)
        first, second = (
            None if view is None else view.resize(size, Image.Resampling.BILINEAR)
            for view in (_opaque(image), other)
        )
        assert first is not None
        same = second is None or first.tobytes() == second.tobytes()
        return _jpeg(first), None if second is None or same else _jpeg(second)
    except Exception as error:
        raise _translate(error, data) from error


def _jpeg(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    # A new image: what the file said beside its pixels is not copied.
    bare = Image.frombytes("RGB", image.size, image.tobytes())
    bare.save(sink, "JPEG", quality=QUALITY, subsampling="4:4:4")
    return sink.getvalue()


def _cut(
    image: ImageFile.ImageFile, boxes: Sequence[Box], image_size: int, shown: bool, size: tuple[int, int]
) -> list[np.ndarray]:
    """The squares of boxes in pixels of an image of this `size`."""
    width, height = size
    narrowest, lowest = min(x1 - x0 for x0, _, x1, _ in boxes), min(y1 - y0 for _, y0, _, y1 in boxes)
    across, down = 2 * image_size * width / narrowest, 2 * image_size * height / lowest
    _load(image, (math.ceil(across), math.ceil(down)))
    rgb = (_shown(image) if shown else None) or _opaque(image)
    x, y = rgb.width / width, rgb.height / height
    # Rounding must not lead out of the image, nor make less than all of it of all of it.
    scaled = (
        (x0 * x, y0 * y, rgb.width if x1 == width else x1 * x, rgb.height if y1 == height else y1 * y)
        for x0, y0, x1, y1 in boxes
    )
    return [_square(rgb, image_size, box) for box in scaled]


def _load(image: ImageFile.ImageFile, size: tuple[int, int]) -> None:
    """Decode. libjpeg can scale down meanwhile, down to `size` or more: twice what is wanted, so that the
    filter does the rest."""
    image.draft(image.mode, size)
    image.load()


def _square(image: Image.Image, image_size: int, box: Box | None = None) -> np.ndarray:
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
    return image if image.mode == "RGB" else image.convert("RGB")


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
