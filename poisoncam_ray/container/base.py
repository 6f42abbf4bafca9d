"""What all formats share: the error, what a file announces, and the limit of its parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

MAX_SEGMENTS = 65_536
"""Segments, chunks, strips, tags or boxes of a file: far more than encoders write. With more, they cost more
time than the pixels."""

T = TypeVar("T")


class DecodeError(Exception):
    """Bytes that give no image.

    Attributes:
        kind: empty, undecodable, truncated, bomb (too many pixels, bytes or segments) or zero_size.
        message: the reason in words.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Container:
    """What an image file announces.

    Attributes:
        format: JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF.
        width: in pixels, as announced; of several sizes in the file that of the largest.
        height: in pixels, as announced.
        pixels: the file without the metadata that its decoder would parse.
    """

    format: str
    width: int
    height: int
    pixels: bytes


def counted(parts: Iterable[T], what: str, most: int = MAX_SEGMENTS) -> Iterator[T]:
    """The parts.

    Args:
        parts: of a file.
        what: they are, in words.
        most: how many there may be.

    Raises:
        DecodeError: there are more.
    """
    for number, part in enumerate(parts):
        if number == most:
            raise DecodeError("bomb", f"more than {most} {what}")
        yield part
