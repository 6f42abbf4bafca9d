"""Tar archives as byte ranges: only headers are parsed, and nothing is unpacked.

An archive counts as damaged from the point at which two programs could read it differently: a member with two
names, a size that hides data, data after the end mark.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

BLOCK = 512
END = bytes(2 * BLOCK)
"""The end mark."""
# Extended headers hold names and times, a few hundred bytes.
_EXTENDED_MAX = 2**20
# The padding after the end mark is mostly under 10 KiB.
_TAIL_MAX = 2**20
_NAME_MAX = 4096
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_EMPTY = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
APPLE = "._"
"""How the name of a file begins that macOS writes beside another."""
_CLIMBS = re.compile(r"^$|^[/\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)|\0")


class Reader(Protocol):
    """What is read of an open archive."""

    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, /) -> int: ...


class TarError(Exception):
    """The archive cannot be followed from byte `offset` on. `name`: of the member that was cut, if known."""

    def __init__(self, offset: int, reason: str, name: str | None = None) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.offset, self.name = offset, name


@dataclass(frozen=True)
class Member:
    """One member of an archive.

    Attributes:
        name: its path.
        kind: file, folder, global (a header for all that follows) or other (a link, a device, a sparse file).
        start: byte at which its first header begins.
        data: byte at which its content begins.
        size: of the content, in bytes.
        stop: byte after its padding.
    """

    name: str
    kind: str
    start: int
    data: int
    size: int
    stop: int

    @property
    def safe(self) -> bool:
        """Whether it is an ordinary file or folder whose name stays inside the folder it is unpacked in."""
        return self.kind == "global" or (self.kind in ("file", "folder") and not _CLIMBS.search(self.name))

    @property
    def key(self) -> str | None:
        """The key of its sample: the name up to the first dot of the base name. None for folders and global
        headers, which belong to no sample."""
        return None if self.kind in ("folder", "global") and self.safe else split_name(self.name)[0]

    @property
    def beside(self) -> bool:
        """Whether its name says that macOS wrote it beside another member."""
        return self.kind == "file" and self.name.rpartition("/")[2].startswith(APPLE)

    @property
    def extension(self) -> str:
        """What follows the first dot of the base name, in lower case."""
        return split_name(self.name)[1]


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into key and extension.

    Args:
        name: the name.

    Returns:
        The name up to the first dot of its base name, and what follows that dot in lower case. A hidden file,
        which WebDataset ignores, has its whole name as key and no extension. A file that macOS wrote beside
        another has the other's key and no extension.
    """
    folder, slash, base = name.rpartition("/")
    beside = base.startswith(APPLE)
    stem, dot, extension = base.removeprefix(APPLE).partition(".")
    if not (stem and dot):
        return name, ""
    return folder + slash + stem, "" if beside else extension.lower()


def walk(file: Reader, start: int, stop: int, size: int) -> Iterator[Member]:
    """Find the members between two bytes of an archive, from its headers.

    Args:
        file: the archive.
        start: byte at which the first member begins.
        stop: byte at which the last member ends, or `size` to go on to the end mark.
        size: size of the archive in bytes.

    Yields:
        The members, in order.

    Raises:
        TarError: the archive is damaged.
    """
    at = start
    while at < stop or stop == size:
        member = _member(file, at, size)
        if member is None:
            return
        yield member
        at = member.stop


def _member(file: Reader, start: int, size: int) -> Member | None:
    """The member at `start`; None at the end mark."""
    at, seen = start, dict[bytes, bytes]()
    while True:
        block = read_at(file, at, BLOCK)
        if len(block) < BLOCK:
            cut = block or at > start
            raise TarError(start, "the file ends early" if cut else "the end mark is missing")
        if not any(block):
            if at > start:
                raise TarError(start, "an extended header without its member")
            _check_tail(file, at + BLOCK, size)
            return None
        info = parse_header(block, start)
        if info.size < 0:
            raise TarError(start, "a member of negative size")
        if info.type not in _EXTENDED:
            return _finish(file, info, block, seen, start, at + BLOCK, size)
        kind = tarfile.XHDTYPE if info.type in _PAX else info.type
        if kind in seen or sum(map(len, seen.values())) + info.size > _EXTENDED_MAX:
            raise TarError(start, "too many or too large extended headers")
        seen[kind] = read_at(file, at + BLOCK, info.size)
        at = _padded(at + BLOCK + info.size)
        if at > size:
            raise TarError(start, "the file ends early")


def _finish(
    file: Reader,
    info: tarfile.TarInfo,
    block: bytes,
    seen: dict[bytes, bytes],
    start: int,
    data: int,
    size: int,
) -> Member:
    records = _records(seen.get(tarfile.XHDTYPE, b""), start)
    name, length, kind = info.name, info.size, _kind(info)
    if kind == "global" and seen:
        raise TarError(start, "an extended header without its member")
    # The name's prefix is a field of POSIX headers only; elsewhere some readers use it and some do not.
    prefixed = block[345] and block[257:263] != tarfile.POSIX_MAGIC[:6]
    if prefixed or (b"path" in records and tarfile.GNUTYPE_LONGNAME in seen):
        raise TarError(start, "a member with two names")
    if tarfile.GNUTYPE_LONGNAME in seen:
        name = seen[tarfile.GNUTYPE_LONGNAME].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    if b"path" in records:
        name = records[b"path"].decode("utf-8", "surrogateescape")
    if len(name) > _NAME_MAX:
        raise TarError(start, f"a name of {len(name)} characters")
    if b"size" in records:
        length = _number(records[b"size"], start)
    if kind == "global":
        if length > _EXTENDED_MAX:
            raise TarError(start, "a global header too large")
        shared = _records(read_at(file, data, length), start)
        if any(k in (b"path", b"linkpath", b"size") or k.startswith(b"GNU.sparse") for k in shared):
            raise TarError(start, "a global header that renames or resizes what follows")
    if info.type in _EMPTY and length:
        raise TarError(start, "a link, folder or device with content", name)
    if any(k.startswith(b"GNU.sparse") for k in records):
        kind = "other"
    if info.type == tarfile.GNUTYPE_SPARSE:
        data = _after_sparse_headers(file, block, data, start)
    stop = _padded(data + length)
    if stop > size:
        raise TarError(start, "the file ends early", name)
    name = name.rstrip("/") if kind == "folder" else name
    return Member(name, kind, start, data, length, stop)


def _kind(info: tarfile.TarInfo) -> str:
    if info.type == tarfile.XGLTYPE:
        return "global"
    if info.type == tarfile.DIRTYPE:
        return "folder"
    return "file" if info.type in _FILES else "other"


def _after_sparse_headers(file: Reader, block: bytes, at: int, start: int) -> int:
    more = block[482]
    while more:
        block = read_at(file, at, BLOCK)
        if len(block) < BLOCK:
            raise TarError(start, "the file ends early")
        more, at = block[504], at + BLOCK
    return at


def _check_tail(file: Reader, at: int, size: int) -> None:
    """Raise TarError if anything but padding follows the end mark: some readers go on behind it."""
    if size - at > _TAIL_MAX or any(read_at(file, at, max(0, size - at))):
        raise TarError(at, "data after the end mark")


def parse_header(block: bytes, start: int) -> tarfile.TarInfo:
    """Parse the header of one block.

    Args:
        block: the block.
        start: byte at which its member begins.

    Raises:
        TarError: it is no header.
    """
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        zipped = " (a compressed archive)" if start == 0 and block.startswith(b"\x1f\x8b") else ""
        raise TarError(start, f"no tar header{zipped}") from error


def _records(body: bytes, start: int) -> dict[bytes, bytes]:
    """Parse pax records, "<length> <key>=<value>\\n"."""
    found, at = {}, 0
    while at < len(body):
        space = body.find(b" ", at, at + 20)
        end = at + _number(body[at:space] if space > 0 else b"", start)
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals or end > len(body) or body[end - 1 : end] != b"\n":
            raise TarError(start, "an extended header that cannot be parsed")
        found[key] = value
        at = end
    return found


def _number(digits: bytes, start: int) -> int:
    if not digits.isdigit() or len(digits) > 18:
        raise TarError(start, "an extended header that cannot be parsed")
    return int(digits)


def read_at(file: Reader, at: int, size: int) -> bytes:
    """Read `size` bytes from byte `at` on; fewer at the end of the file."""
    file.seek(at)
    return file.read(size)


def _padded(offset: int) -> int:
    return -(-offset // BLOCK) * BLOCK
