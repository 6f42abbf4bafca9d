"""JPEG, PNG and WebP: their segments and chunks."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from poisoncam_ray.container.base import Container, DecodeError, counted

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
MAX_SCANS = 100
"""Scans of a JPEG file: far more than encoders write. Each costs a pass over the whole image."""
_PNG_KEPT = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_EOI, _SOS, _JFIF, _ADOBE = 0xD9, 0xDA, 0xE0, 0xEE
_TABLES = frozenset((0xC4, 0xCC, 0xDB, 0xDC, 0xDD))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Not a stuffed zero, a fill byte, or a marker that stands alone (ITU T.81, B.1.1.3).
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")


def png(data: bytes) -> Container:
    """Keeps the header, the palette, its transparency and the pixels."""
    width, height = struct.unpack(">II", data[16:24])
    if data[12:16] != b"IHDR":
        raise DecodeError("undecodable", "a PNG file whose first chunk is no header")
    kept = [PNG_MAGIC]
    for start, end in counted(_png_chunks(data), "chunks"):
        # The decoder reports a chunk that reaches past the end.
        if data[start + 4 : start + 8] in _PNG_KEPT or end > len(data):
            kept.append(data[start:end])
    return Container("PNG", width, height, b"".join(kept))


def _png_chunks(data: bytes) -> Iterator[tuple[int, int]]:
    position, kind = len(PNG_MAGIC), b""
    while position + 8 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        yield position, position + 12 + length
        position += 12 + length


def jpeg(data: bytes) -> Container:
    """Keeps the tables, the frame, the scans, and the segments that tell the colours."""
    size: tuple[int, int] | None = None
    kept, scans = [data[:2]], 0
    for start, end in counted(_jpeg_segments(data), "segments"):
        marker = data[start + 1]
        if marker in _FRAMES and size is None:
            height, width = struct.unpack(">HH", data[start + 5 : start + 9])
            size = width, height
        if marker in (_EOI, _SOS) and size is None:
            raise DecodeError("undecodable", "a JPEG file without a frame header")
        scans += marker == _SOS
        if scans > MAX_SCANS:
            raise DecodeError("bomb", f"more than {MAX_SCANS} scans")
        if scans == 0 and marker in (_JFIF, _ADOBE, *_TABLES, *_FRAMES):
            kept.append(data[start:end])
        elif marker == _SOS and scans == 1:
            kept.append(data[start:])
    if size is None:
        raise DecodeError("truncated", "the JPEG file ends before its frame header")
    return Container("JPEG", *size, b"".join(kept))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each segment. Entropy-coded data and junk between segments are skipped, as by
    libjpeg."""
    position = 2
    while match := _MARKER.search(data, position):
        start = match.start()
        length = int.from_bytes(data[start + 2 : start + 4], "big")
        position = start + 2 + length
        yield start, position
        if data[start + 1] == _EOI:
            return


def webp(data: bytes) -> Container:
    """The file stays as it is: its decoder parses no metadata unless it is asked to."""
    end = int.from_bytes(data[4:8], "little") + 8
    if end > len(data):
        raise DecodeError("truncated", "the WebP file ends early")
    for _ in counted(_webp_chunks(data), "chunks"):
        pass
    return Container("WEBP", *_webp_size(data), data)


def _webp_chunks(data: bytes) -> Iterator[tuple[int, int]]:
    position = 12
    while position + 8 <= len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        yield position, position + 8 + length
        position += 8 + length + length % 2


def _webp_size(data: bytes) -> tuple[int, int]:
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", body[1:5])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", body[6:10])
        return width & 0x3FFF, height & 0x3FFF
    raise DecodeError("undecodable", "a WebP file without an image")
