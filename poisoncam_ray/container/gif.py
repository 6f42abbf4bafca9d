"""GIF: the extents of the first frame."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from poisoncam_ray.container.base import Container, DecodeError, counted

_EXTENSION, _IMAGE, _END = b"!", b",", b";"
_PALETTE = 0x80


def read(data: bytes) -> Container:
    """The canvas grows to hold the first frame, as in Pillow. The file stays as it is: its decoder skips
    comments and reads nothing behind the first frame."""
    width, height = struct.unpack_from("<HH", data, 6)
    position = 13 + _palette_size(data[10])
    for start in counted(_blocks(data, position), "blocks"):
        if data[start : start + 1] == _IMAGE:
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, start + 1)
            return Container("GIF", max(width, left + frame_width), max(height, top + frame_height), data)
    if not data.endswith(_END):
        raise DecodeError("truncated", "the GIF file ends before its first image")
    raise DecodeError("undecodable", "a GIF file without an image")


def _blocks(data: bytes, position: int) -> Iterator[int]:
    """Where each block before the pixels begins: extensions, their parts, stray bytes, the first image."""
    while position < len(data) and data[position : position + 1] != _END:
        yield position
        if data[position : position + 1] == _IMAGE:
            return
        if data[position : position + 1] != _EXTENSION:
            position += 1
            continue
        position += 2
        while position < len(data) and data[position]:
            yield position
            position += 1 + data[position]
        position += 1


def _palette_size(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & _PALETTE else 0
