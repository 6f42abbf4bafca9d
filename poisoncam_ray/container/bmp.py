"""BMP: the size, and the bound of what run lengths may cost."""

from __future__ import annotations

import struct

from poisoncam_ray.container.base import Container, DecodeError

_OS2 = 12
_HEADERS = (40, 52, 56, 64, 108, 124)
_RLE = (1, 2)
RLE_PIXELS = 2**24
"""Of a file of run lengths, at most: Pillow unpacks them in Python."""


def read(data: bytes) -> Container:
    """A negative height, which says that the rows go down, is taken as Pillow takes it."""
    (header,) = struct.unpack_from("<I", data, 14)
    if header == _OS2:
        width, height = struct.unpack_from("<HH", data, 18)
        return Container("BMP", width, height, data)
    if header not in _HEADERS:
        raise DecodeError("undecodable", f"a BMP file with a header of {header} bytes")
    width, height, _, _, compression = struct.unpack_from("<IIHHI", data, 18)
    if data[25] == 0xFF:
        height = 2**32 - height
    if compression in _RLE:
        most = min(width * height, RLE_PIXELS)
        # Pairs of bytes: one for each pixel at worst, and two for the end of each row.
        if width * height > RLE_PIXELS or len(data) > 2 * most + 4 * height + 2**16:
            raise DecodeError("bomb", f"{width} × {height} pixels of run lengths in {len(data)} bytes")
    return Container("BMP", width, height, data)
