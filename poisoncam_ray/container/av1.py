"""AV1: the size that a sequence header announces. A decoder allocates a picture of it, whatever the boxes
around it say."""

from __future__ import annotations

from collections.abc import Iterator

from poisoncam_ray.container.base import DecodeError, counted

_SEQUENCE_HEADER = 1
_LEVEL_WITH_TIER = 7


class _Bits:
    """Reads numbers from bits, the highest first."""

    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, n: int) -> int:
        self.left -= n
        if self.left < 0:
            raise DecodeError("truncated", "an AV1 sequence header ends early")
        return self.value >> self.left & (1 << n) - 1

    def take_uvlc(self) -> int:
        zeros = 0
        while not self.take(1):
            zeros += 1
        return self.take(min(zeros, 32))


def sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Width and height of each sequence header in a run of OBUs (AV1 specification, 5.3 to 5.5)."""
    for kind, start, stop in counted(_units(data), "AV1 units"):
        if kind == _SEQUENCE_HEADER:
            # Far more than its fields can take.
            yield _size(_Bits(data[start : min(stop, start + 1024)]))


def _units(data: bytes) -> Iterator[tuple[int, int, int]]:
    position = 0
    while position < len(data):
        head = data[position]
        position += 2 if head & 4 else 1
        size, shift = 0, 0
        if head & 2:
            while True:
                byte = data[position]
                size |= (byte & 127) << shift
                position, shift = position + 1, shift + 7
                if byte < 128 or shift == 56:
                    break
        else:
            size = len(data) - position
        yield head >> 3 & 15, position, position + size
        position += size


def _size(bits: _Bits) -> tuple[int, int]:
    bits.take(4)
    reduced = bits.take(1)
    if reduced:
        bits.take(5)
    else:
        _skip_timing_and_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    width, height = bits.take(width_bits) + 1, bits.take(height_bits) + 1
    if reduced:
        return width, height
    # A frame may override the size with any that fits the bits. Encoders take no more bits than they need.
    spare = (width - 1).bit_length() < width_bits > 1 or (height - 1).bit_length() < height_bits > 1
    return (1 << width_bits, 1 << height_bits) if spare else (width, height)


def _skip_timing_and_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.take(1):
        bits.take(64)
        if bits.take(1):
            bits.take_uvlc()
        if bits.take(1):
            delay_bits = bits.take(5) + 1
            bits.take(42)
    display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > _LEVEL_WITH_TIER:
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if display_delay and bits.take(1):
            bits.take(4)
