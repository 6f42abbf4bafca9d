"""AVIF: every size that its boxes and pixels announce, and how many items and bytes the boxes name."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from poisoncam_ray.container import av1
from poisoncam_ray.container.base import Container, DecodeError, counted

MAX_ITEMS = 4096
"""Tiles, masks and the like, at most: a tile is rarely smaller than 64 × 64 pixels."""
_BRANDS = (b"avif", b"avis")
_SHARED_BRANDS = (b"mif1", b"msf1")
# Boxes that hold boxes, and where these begin.
_INNER = {
    b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0,
    b"stsd": 8,
}  # fmt: skip
_DEEPEST = 8
# Of a track: what the box tells of its first sample, where the number of entries lies, and the bytes of one.
_FIRST_SAMPLE = {b"stco": ("at", 4, 4), b"co64": ("at", 4, 8), b"stsz": ("size", 8, 4)}
# Pillow would parse these.
_METADATA = (b"Exif", b"mime")
_CODED = b"av01"

Box = tuple[bytes, int, int]
"""Its kind, and the range of its content in the file."""
Piece = tuple[bool, int, int]
"""Whether it lies in the `idat` box, where it begins, and its length."""


@dataclass
class _Found:
    """What the boxes say.

    Attributes:
        sizes: that they announce.
        metadata: where the kinds of items lie that are metadata.
        coded: the numbers of the items that are AV1.
        items: where each item lies, by its number.
        tracks: where the first sample of each track lies.
        idat: where the content of that box begins.
        sample: where the first sample of the track under work lies, and its length, as far as known.
    """

    sizes: list[tuple[int, int]] = field(default_factory=list)
    metadata: list[int] = field(default_factory=list)
    coded: set[int] = field(default_factory=set)
    items: dict[int, list[Piece]] = field(default_factory=dict)
    tracks: list[list[Piece]] = field(default_factory=list)
    idat: int | None = None
    sample: dict[str, int] = field(default_factory=dict)


def is_avif(data: bytes) -> bool:
    """Whether the file says that it is AVIF; HEIC has the same container."""
    if data[4:8] != b"ftyp":
        return False
    compatible = data[16 : min(int.from_bytes(data[:4], "big"), 1024)]
    return data[8:12] in _BRANDS or (
        data[8:12] in _SHARED_BRANDS and any(brand in compatible for brand in _BRANDS)
    )


def read(data: bytes) -> Container:
    """The metadata items get a kind that no decoder knows."""
    found = _Found()
    for box in counted(_boxes(data, 0, len(data), 0), "boxes"):
        _look(data, box, found)
    coded = [*(found.items[i] for i in found.coded if i in found.items), *found.tracks]
    # An image may be an item and a track as well. All that is gathered here is walked.
    if sum(length for pieces in coded for _, _, length in pieces) > 2 * len(data):
        raise _overlaid()
    for pieces in coded:
        found.sizes += av1.sizes(_joined(data, pieces, found.idat))
    if not found.sizes:
        raise DecodeError("undecodable", "an AVIF file without an image")
    width, height = max(found.sizes, key=lambda size: size[0] * size[1])
    if found.metadata:
        changed = bytearray(data)
        for place in found.metadata:
            changed[place : place + 4] = b"xxxx"
        data = bytes(changed)
    return Container("AVIF", width, height, data)


def _boxes(data: bytes, start: int, stop: int, depth: int) -> Iterator[Box]:
    """The boxes in a range, each followed by those inside it."""
    while start + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        begin = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, begin)
            begin += 8
        end = start + size if size else stop
        if end > stop:
            raise DecodeError("truncated", "the AVIF file ends inside a box")
        if end < begin:
            raise DecodeError("undecodable", "an AVIF box that is shorter than its header")
        yield kind, begin, end
        inner = _INNER.get(kind)
        if kind == b"iinf":
            inner = 8 if data[begin] else 6
        if inner is not None:
            if depth == _DEEPEST:
                raise DecodeError("bomb", f"AVIF boxes more than {_DEEPEST} deep")
            yield from _boxes(data, begin + inner, end, depth + 1)
        start = end


def _look(data: bytes, box: Box, found: _Found) -> None:
    kind, start, end = box
    if kind == b"ispe":
        found.sizes.append(struct.unpack_from(">II", data, start + 4))
    elif kind == b"tkhd":
        width, height = struct.unpack_from(">II", data, start + (88 if data[start] else 76))
        found.sizes.append((width >> 16, height >> 16))
    elif kind == _CODED:
        found.sizes.append(struct.unpack_from(">HH", data, start + 24))
    elif kind == b"infe":
        wide = 4 if data[start] > 2 else 2
        place = start + 6 + wide
        if data[place : place + 4] in _METADATA:
            found.metadata.append(place)
        elif data[place : place + 4] == _CODED:
            found.coded.add(int.from_bytes(data[start + 4 : start + 4 + wide], "big"))
    elif kind == b"idat":
        found.idat = start
    elif kind == b"iloc":
        found.items |= _places(data[start:end], len(data))
    elif kind in _FIRST_SAMPLE:
        name, count, entry = _FIRST_SAMPLE[kind]
        same = int.from_bytes(data[start + 4 : start + 8], "big") if kind == b"stsz" else 0
        if same or int.from_bytes(data[start + count : start + count + 4], "big"):
            place = start + count + 4
            found.sample[name] = same or int.from_bytes(data[place : place + entry], "big")
        if len(found.sample) == 2:
            found.tracks.append([(False, found.sample["at"], found.sample["size"])])
            found.sample = {}


def _joined(data: bytes, pieces: list[Piece], idat: int | None) -> bytes:
    if any(inside and idat is None for inside, _, _ in pieces):
        raise DecodeError("undecodable", "an AVIF item in a box that is missing")
    starts = ((start + (idat or 0 if inside else 0), length) for inside, start, length in pieces)
    return b"".join(data[start : start + length] for start, length in starts)


def _overlaid() -> DecodeError:
    return DecodeError("bomb", "an AVIF file whose items lie on one another")


def _places(iloc: bytes, size: int) -> dict[int, list[Piece]]:
    """Where the items lie, by their numbers.

    Raises:
        DecodeError: there are too many, or together they are longer than the file: a decoder gathers the
            pieces of an item in memory.
    """
    version = iloc[0]
    offset_bytes, length_bytes, base_bytes = iloc[4] >> 4, iloc[4] & 15, iloc[5] >> 4
    index_bytes = iloc[5] & 15 if version else 0
    wide = 4 if version == 2 else 2
    place = 6

    def number(n: int) -> int:
        nonlocal place
        if place + n > len(iloc):
            raise DecodeError("truncated", "the AVIF file ends inside a box")
        place += n
        return int.from_bytes(iloc[place - n : place], "big")

    items: dict[int, list[Piece]] = {}
    total = 0
    for _ in counted(range(number(wide)), "items", MAX_ITEMS):
        item = number(wide)
        method = number(2) & 15 if version else 0
        if method > 1:
            raise DecodeError("undecodable", "an AVIF item made of other items' bytes")
        number(2)
        base, pieces = number(base_bytes), []
        for _ in counted(range(number(2)), "pieces of an item", MAX_ITEMS):
            number(index_bytes)
            offset = base + number(offset_bytes)
            # Without a length the piece is all that follows.
            length = number(length_bytes) or max(size - offset, 0)
            pieces.append((method == 1, offset, length))
            if method == 0 and offset + length > size:
                raise DecodeError("truncated", "the AVIF file ends before its last item")
            total += length
            if total > size:
                raise _overlaid()
        items[item] = pieces
    return items
