"""The container of an image file: what the file announces, and the file without its metadata.

A small file can hide gigabytes, or minutes of work, in EXIF, ICC profiles, text and thumbnails. They are
therefore cut away where a decoder would parse them: it gets only what makes pixels. Sizes, counts and places
are read here, before a decoder allocates anything. Of several frames or pages the first is meant.
"""

from __future__ import annotations

import re

from poisoncam_ray.container import avif, bmp, gif, jpeg_png_webp, tiff
from poisoncam_ray.container.base import MAX_SEGMENTS, Container, DecodeError
from poisoncam_ray.container.jpeg_png_webp import PNG_MAGIC

__all__ = ["KINDS", "MAX_SEGMENTS", "PNG_MAGIC", "Container", "DecodeError", "read_container"]

KINDS = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
"""The formats that are read, in words."""
# What a file is that is not read: its first bytes, and the words for it.
_FOREIGN = (
    (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\x00\x00\x00\x0cJXL |\xff\x0a", "JPEG XL"),
    (rb"....ftyp(hei|hev|mif1|msf1)", "HEIC"),
    (rb"....ftyp", "a video"),
    (rb"8BPS", "a Photoshop file (PSD)"),
    (rb"MM\x00\x2b|II\xbc\x01", "a kind of TIFF that is not read"),
    (rb"\x00\x00[\x01\x02]\x00", "an icon (ICO)"),
    (rb"\x76\x2f\x31\x01", "OpenEXR"),
    (rb"DDS ", "a texture (DDS)"),
    (rb"P[1-7][\s#]", "a netpbm image (PPM)"),
    (rb"%PDF", "a PDF"),
    (rb"%!PS", "PostScript"),
    (rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf", "a packed file"),
)
_MARKUP = ((b"<svg", "an SVG"), (b"<html", "HTML"), (b"<!doctype html", "HTML"), (b"<", "XML or HTML"))


def read_container(data: bytes) -> Container:
    """Read the container of an image file.

    Args:
        data: the file.

    Raises:
        DecodeError: another format, too many segments, or no header where there must be one.
        struct.error: the header ends early.
        IndexError: the header ends early.
    """
    if data.startswith(PNG_MAGIC):
        return jpeg_png_webp.png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return jpeg_png_webp.webp(data)
    if data[:2] == b"\xff\xd8":
        return jpeg_png_webp.jpeg(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return gif.read(data)
    if data.startswith(b"BM"):
        return bmp.read(data)
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0")):
        return tiff.read(data)
    if avif.is_avif(data):
        return avif.read(data)
    raise DecodeError("undecodable", f"{_named(data)}, not {KINDS}")


def _named(data: bytes) -> str:
    """What the file looks like."""
    head = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"<"):
        return next(words for mark, words in _MARKUP if mark in head.lower())
    if head.startswith((b"{", b"[")):
        return "JSON"
    for pattern, words in _FOREIGN:
        if re.match(pattern, data, re.DOTALL):
            return words
    return f"a file that starts with {data[:8].hex(' ')}"
