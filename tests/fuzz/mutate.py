"""Seeded damage to files: the same name and number give the same bytes on every machine."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

Damage = Callable[[random.Random, bytearray], None]


def mutate(data: bytes, seed: str) -> bytes:
    """`data` with one to four kinds of damage."""
    rng = random.Random(seed)
    broken = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if broken:
            rng.choice(DAMAGES)(rng, broken)
    return bytes(broken)


def _place(rng: random.Random, data: bytearray) -> int:
    """Anywhere, but mostly near the ends: headers and footers are where a parser breaks."""
    span = rng.choice((64, 600, len(data)))
    offset = rng.randrange(min(span, len(data)))
    return rng.choice((offset, len(data) - 1 - offset))


def _span(rng: random.Random, data: bytearray) -> tuple[int, int]:
    start = _place(rng, data)
    return start, min(len(data), start + rng.choice((1, 4, 16, 100, 1000)))


def flip_bits(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[_place(rng, data)] ^= 1 << rng.randrange(8)


def set_byte(rng: random.Random, data: bytearray) -> None:
    data[_place(rng, data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def cut_off(rng: random.Random, data: bytearray) -> None:
    del data[_place(rng, data) :]


def cut_out(rng: random.Random, data: bytearray) -> None:
    start, stop = _span(rng, data)
    del data[start:stop]


def splice(rng: random.Random, data: bytearray) -> None:
    """The head of the file, then its tail from elsewhere."""
    a, b = _place(rng, data), _place(rng, data)
    data[a:] = data[b:]


def repeat(rng: random.Random, data: bytearray) -> None:
    start, stop = _span(rng, data)
    place = _place(rng, data)
    data[place:place] = data[start:stop] * rng.choice((1, 2, 50))


def zero(rng: random.Random, data: bytearray) -> None:
    start, stop = _span(rng, data)
    data[start:stop] = bytes(stop - start)


def insert(rng: random.Random, data: bytearray) -> None:
    place = _place(rng, data)
    data[place:place] = rng.randbytes(rng.choice((1, 4, 32)))


def set_number(rng: random.Random, data: bytearray) -> None:
    """A length or a size, written over at any place in either byte order."""
    kind = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    bits = 8 * struct.calcsize(kind)
    values = (0, 1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1, rng.getrandbits(bits), len(data))
    place = _place(rng, data)
    field = struct.pack(kind, rng.choice(values) % 2**bits)[: len(data) - place]
    data[place : place + len(field)] = field


def set_varint(rng: random.Random, data: bytearray) -> None:
    """A huge number as Thrift (Parquet footers) writes it."""
    place = _place(rng, data)
    n = rng.choice((2, 4, 5, 9))
    data[place : place + 1] = bytes([0xFF] * n + [rng.choice((0x01, 0x0F, 0x7F))])


def set_octal(rng: random.Random, data: bytearray) -> None:
    """A number as tar headers write it, too large, negative or none, with the header's checksum mended."""
    block = 512 * rng.randrange(max(1, len(data) // 512))
    if len(data) < block + 512:
        return
    start, size = rng.choice(((100, 8), (124, 12), (124, 12), (124, 12), (136, 12)))
    big = b"\x80" + rng.randbytes(size - 1)
    text = rng.choice(
        (b"7" * (size - 1), b"0" * (size - 1), b"-1", b" " * size, b"99999999", big, b"\xff" * size)
    )
    data[block + start : block + start + size] = text.ljust(size, b"\0")[:size]
    mend_checksum(data, block)


def set_type(rng: random.Random, data: bytearray) -> None:
    """A tar member of another kind (link, device, GNU long name, pax header …)."""
    block = 512 * rng.randrange(max(1, len(data) // 512))
    if len(data) >= block + 512:
        data[block + 156] = rng.choice(b"01234567LKxgSVD\0")
        mend_checksum(data, block)


def mend_checksum(data: bytearray, block: int) -> None:
    data[block + 148 : block + 156] = b" " * 8
    data[block + 148 : block + 156] = b"%06o\0 " % sum(data[block : block + 512])


DAMAGES: tuple[Damage, ...] = (
    flip_bits, flip_bits, set_byte, cut_off, cut_out, splice, repeat, zero, insert, set_number, set_number,
    set_varint, set_octal, set_type,
)  # fmt: skip
