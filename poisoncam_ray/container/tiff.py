"""TIFF: the tags of the first page that make pixels, and where its strips or tiles lie."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from poisoncam_ray.container.base import Container, DecodeError, counted

_WIDTH, _HEIGHT, _COMPRESSION = 256, 257, 259
_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES = 273, 279, 324, 325
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
# Besides these: bits, photometric, fill order, orientation, samples, rows of a strip, planes, fax options,
# predictor, palette, extra samples, sample format, JPEG tables, YCbCr, XMP (Pillow finds an orientation in
# it), and the tag of another format.
_KEPT = {
    _WIDTH, _HEIGHT, 258, _COMPRESSION, 262, 266, _STRIP_OFFSETS, 274, 277, 278, _STRIP_BYTES, 284, 292, 293,
    317, 320, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES, 338, 339, 347, 529, 530, 531, 532, 700,
    0xBC01,
}  # fmt: skip
_RAW = 1
_COMPRESSIONS = {
    _RAW, 2, 3, 4, 5, 7, 8, 32773, 32946,
}  # fmt: skip
"""None, CCITT, LZW, JPEG, deflate, PackBits. Old JPEG, WebP, LZMA, Zstandard and LERC are not read."""
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_NUMBERS = {1: "B", 3: "H", 4: "L", 13: "L", 16: "Q"}
TAG_BYTES = 2**24
"""Of all tags that are kept, at most."""
_TILE_FREE = 2**22


@dataclass(frozen=True)
class _Layout:
    """How numbers are written: the byte order, and the fields of classic TIFF or of BigTIFF."""

    order: str
    big: bool

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.big else "L")

    @property
    def count(self) -> str:
        return self.order + ("Q" if self.big else "H")

    @property
    def entry(self) -> str:
        return self.order + ("HHQ8s" if self.big else "HHL4s")


@dataclass(frozen=True)
class _Tag:
    entry: bytes
    kind: int
    count: int
    data: bytes

    def numbers(self, order: str) -> tuple[int, ...]:
        if self.kind not in _NUMBERS:
            raise DecodeError("undecodable", f"a TIFF tag of type {self.kind} where numbers must be")
        return struct.unpack(f"{order}{self.count}{_NUMBERS[self.kind]}", self.data)


def read(data: bytes) -> Container:
    """The file gets a new directory, of the first page alone, behind its last byte."""
    layout = _Layout("<" if data[:2] == b"II" else ">", data[2] == 43)
    tags = _first_page(data, layout)

    def number(tag: int, default: int | None = None) -> int:
        if tag not in tags and default is not None:
            return default
        if tag not in tags or len(numbers := tags[tag].numbers(layout.order)) != 1:
            raise DecodeError("undecodable", f"a TIFF file without one value of tag {tag}")
        return numbers[0]

    width, height, compression = number(_WIDTH), number(_HEIGHT), number(_COMPRESSION, _RAW)
    if compression not in _COMPRESSIONS:
        raise DecodeError("undecodable", f"a TIFF file of compression {compression}, which is not read")
    if _TILE_OFFSETS in tags:
        area = number(_TILE_WIDTH) * number(_TILE_HEIGHT)
        if area > max(4 * width * height, _TILE_FREE):
            raise DecodeError("bomb", f"tiles of {area} pixels in an image of {width} × {height}")
        _check_parts(data, layout, tags, _TILE_OFFSETS, _TILE_BYTES, compression)
    if _STRIP_OFFSETS in tags or _TILE_OFFSETS not in tags:
        _check_parts(data, layout, tags, _STRIP_OFFSETS, _STRIP_BYTES, compression)
    place = len(data) + len(data) % 2
    start = struct.calcsize(layout.offset)
    directory = struct.pack(layout.count, len(tags)) + b"".join(tag.entry for tag in tags.values())
    parts = (
        data[:start],
        struct.pack(layout.offset, place),
        data[2 * start :],
        bytes(place - len(data)),
        directory,
        bytes(start),
    )
    return Container("TIFF", width, height, b"".join(parts))


def _first_page(data: bytes, layout: _Layout) -> dict[int, _Tag]:
    """The tags that are kept. Of a tag that occurs twice the first counts, as in Pillow and libtiff."""
    start = struct.calcsize(layout.offset)
    (place,) = struct.unpack_from(layout.offset, data, start)
    if place + start > len(data):
        raise DecodeError("truncated", "the TIFF file ends before its first directory")
    (n,) = struct.unpack_from(layout.count, data, place)
    tags: dict[int, _Tag] = {}
    total = 0
    for entry in counted(_entries(data, place + struct.calcsize(layout.count), n, layout), "tags"):
        tag, kind, count, value = struct.unpack(layout.entry, entry)
        if tag not in _KEPT or tag in tags:
            continue
        if kind not in _SIZES:
            raise DecodeError("undecodable", f"a TIFF tag of type {kind}")
        size = count * _SIZES[kind]
        total += size
        if total > TAG_BYTES:
            raise DecodeError("bomb", f"{total} bytes of tags, more than the limit of {TAG_BYTES}")
        if size > len(value):
            (offset,) = struct.unpack(layout.offset, value)
            value = data[offset : offset + size] if offset < len(data) else b""
        if len(value) < size:
            raise DecodeError("truncated", f"the TIFF file ends before its tag {tag}")
        tags[tag] = _Tag(entry, kind, count, value[:size])
    return tags


def _entries(data: bytes, place: int, n: int, layout: _Layout) -> Iterator[bytes]:
    size = struct.calcsize(layout.entry)
    for i in range(n):
        yield data[place + i * size : place + (i + 1) * size]


def _check_parts(
    data: bytes, layout: _Layout, tags: dict[int, _Tag], at: int, size: int, compression: int
) -> None:
    """Refuse too many strips or tiles, and compressed ones that lie outside the file or on one another: each
    costs as much as all its bytes."""
    if at not in tags:
        raise DecodeError("undecodable", "a TIFF file without pixels")
    offsets = list(counted(tags[at].numbers(layout.order), "strips or tiles"))
    if compression == _RAW:
        return
    if size not in tags or tags[size].count != len(offsets):
        raise DecodeError("undecodable", "a TIFF file that does not say how long its strips or tiles are")
    sizes = tags[size].numbers(layout.order)
    if any(offset + n > len(data) for offset, n in zip(offsets, sizes, strict=True)):
        raise DecodeError("truncated", "the TIFF file ends before its last strip or tile")
    if sum(sizes) > len(data):
        raise DecodeError("bomb", "a TIFF file whose strips or tiles lie on one another")
