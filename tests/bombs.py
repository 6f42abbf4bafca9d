"""Small image files that would cost a decoder much: huge announced sizes, bombs in metadata, endless
segments."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 24
CLEAN = Image.fromarray(np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
FRAMES = 3000
MANY = 70_000


def encode(format: str, image: Image.Image = CLEAN, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def in_png(*chunks: bytes) -> bytes:
    """The clean PNG with chunks put in behind its header."""
    png = encode("PNG")
    return png[:33] + b"".join(chunks) + png[33:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def in_jpeg(segments: bytes) -> bytes:
    jpeg = encode("JPEG")
    return jpeg[:2] + segments + jpeg[2:]


def riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def announcing(width: int, height: int) -> dict[str, bytes]:
    """A file of each format that announces this size, without the pixels for it."""
    jpeg = bytearray(encode("JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", height % 65536, width % 65536)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    canvas = (min(width, 2**24) - 1).to_bytes(3, "little") + (min(height, 2**24) - 1).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + canvas
    return {
        "JPEG": bytes(jpeg),
        "PNG": png + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        "WEBP": riff(extended),
    }


def peak() -> int:
    """The most bytes that this process held since its start; getrusage would count those of its parent,
    too."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) * 1024


@cache
def zeros(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def tiff_of_many_tags() -> bytes:
    """An EXIF block whose thousands of tags all point at the same 60 KB."""
    n = 2500
    tags = b"".join(struct.pack("<HHLL", tag, 7, 60_000, 0) for tag in range(1, n + 1))
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, n) + tags + bytes(30_000)


def hidden() -> dict[str, tuple[bytes, str]]:
    """Files whose pixels are those of the clean image and whose metadata is a bomb, with their format."""
    inflates = b"x\0\0" + zeros(2**28)
    thumbnail = b"Exif\0\0" + bytes(65_000)
    return {
        "png text": (in_png(chunk(b"zTXt", inflates)), "PNG"),
        "png international text": (in_png(chunk(b"iTXt", b"x\0\1\0\0\0" + zeros(2**28))), "PNG"),
        "png profile": (in_png(chunk(b"iCCP", inflates)), "PNG"),
        "png many profiles": (in_png(*[chunk(b"iCCP", b"x\0\0" + zeros(2**20))] * 2000), "PNG"),
        "png exif": (in_png(chunk(b"eXIf", tiff_of_many_tags()[6:])), "PNG"),
        "jpeg exif": (in_jpeg(segment(0xE1, tiff_of_many_tags())), "JPEG"),
        "jpeg many exif": (in_jpeg(segment(0xE1, thumbnail) * 400), "JPEG"),
        "jpeg profile": (in_jpeg(segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000)) * 200), "JPEG"),
    }


def endless() -> dict[str, bytes]:
    """Files of so many segments that walking them costs more than the pixels."""
    progressive = encode("JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    frame = b"ANMF" + struct.pack("<I", 16) + bytes(16)
    return {
        "png chunks": in_png(chunk(b"IDAT", b"") * MANY),
        "png private chunks": in_png(chunk(b"abCd", b"") * MANY),
        "jpeg segments": in_jpeg(segment(0xDB, b"") * MANY),
        "jpeg scans": progressive[:-2] + scan * 200 + b"\xff\xd9",
        "webp frames": riff(b"VP8X" + struct.pack("<I", 10) + bytes(10) + frame * MANY),
    }


def animation(format: str) -> bytes:
    """Thousands of frames, the clean image first."""
    others = [Image.new("RGB", (SIDE, SIDE), (i % 256, i // 256, 9)) for i in range(FRAMES - 1)]
    return encode(format, save_all=True, append_images=others, duration=20, lossless=True)


def tiff(*tags: tuple[int, int, int, int], body: bytes = b"") -> bytes:
    """A TIFF of one page: its tags (tag, type, count, value or place), behind the body at byte 8."""
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHLL", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<L", 8 + len(body)) + body + directory + bytes(4)


def box(kind: bytes, content: bytes) -> bytes:
    """A box of an AVIF file."""
    return struct.pack(">I4s", 8 + len(content), kind) + content


def disguised() -> dict[str, bytes]:
    """Files that seem small, and would cost a decoder much."""
    avif = bytearray(encode("AVIF", Image.new("RGB", (6000, 6000), (9, 99, 9)), speed=10))
    size = avif.index(b"ispe") + 8
    avif[size : size + 8] = struct.pack(">II", 8, 8)
    gif = bytearray(encode("GIF"))
    frame = gif.index(b",", 13 + 3 * 256)
    gif[frame + 1 : frame + 9] = struct.pack("<HHHH", 0, 0, 65_535, 65_535)
    lzw = zlib.compress(bytes(2**20))
    sized = ((256, 3, 1, 16), (257, 3, 1, 16), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1))
    n = 60_000
    shared = struct.pack(f"<{n}L", *[8] * n) + struct.pack(f"<{n}L", *[n] * n)
    header = struct.pack("<IiiHHIIiiII", 40, 5000, 5000, 1, 8, 1, 0, 0, 0, 256, 0)
    items = (MANY).to_bytes(4, "big")
    iloc = b"iloc" + bytes([2, 0, 0, 0, 0x44, 0]) + items + bytes(MANY)
    meta = b"meta" + bytes(4) + struct.pack(">I", len(iloc) + 4) + iloc
    kind = b"\0\0\0\x10ftypavif\0\0\0\0"
    # Each of forty boxes names the whole file, whose units have no content.
    units, whole = b"\x32\0" * 20_000, struct.pack(">II", 16, 40_000)
    infes = b"".join(box(b"infe", struct.pack(">IHH4s", 2 << 24, i, 0, b"av01")) for i in range(40))
    ilocs = b"".join(
        box(b"iloc", b"\0\0\0\0\x44\0" + struct.pack(">HHHH", 1, i, 0, 1) + whole) for i in range(40)
    )
    inside = box(b"meta", bytes(4) + box(b"iinf", bytes(4) + struct.pack(">H", 40) + infes) + ilocs)
    place, size = struct.pack(">III", 0, 1, 16), struct.pack(">III", 0, 40_000, 1)
    track = box(b"moov", 40 * (box(b"stco", place) + box(b"stsz", size)))
    return {
        "avif items of the same bytes": kind + box(b"mdat", units) + inside,
        "avif tracks of the same bytes": kind + box(b"mdat", units) + track,
        "avif picture": bytes(avif),
        "avif items": b"\0\0\0\x10ftypavif\0\0\0\0" + struct.pack(">I", len(meta) + 4) + meta,
        "gif frame": bytes(gif),
        "gif blocks": gif[:781] + b"!\xfe" + b"\1x" * MANY + b"\0" + gif[781:],
        "tiff tile": tiff(
            *sized, (322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 8), (325, 4, 1, 9), body=lzw
        ),
        "tiff shared strips": tiff(
            *sized, (273, 4, n, 8), (278, 3, 1, 1), (279, 4, n, 8 + 4 * n), body=shared
        ),
        "tiff strips": tiff(*sized, (273, 3, MANY, 8), (279, 3, MANY, 8), body=bytes(2 * MANY)),
        "tiff tags": tiff(*sized, (273, 4, 1, 8), (279, 4, 1, 9), (320, 3, 2**27, 8)),
        "bmp run lengths": b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + header + bytes(1024) + b"\0\1",
        "bmp size": b"BM" + struct.pack("<IHHIIii", 0, 0, 0, 54, 40, 60_000, -60_000) + bytes(28),
    }
