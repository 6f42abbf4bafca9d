"""The samples of a WebDataset shard: runs of neighbouring members with one key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from poisoncam_ray.container import KINDS
from poisoncam_ray.corpus.listing import IMAGE_MAX, IMAGE_SUFFIXES
from poisoncam_ray.corpus.protocol import UNREADABLE_SHARD
from poisoncam_ray.corpus.tar import Member, Reader, TarError, walk

Fault = tuple[str, str]
"""(kind, message) of a sample that has no image."""
REST = ": this row stands for the rest of the shard"
_MEMBERS_MAX = 1000
# How a file that macOS writes beside another begins: AppleDouble, RFC 1740, appendix B.
_APPLE_DOUBLE = bytes.fromhex("00051607")


@dataclass
class Sample:
    """Neighbouring members of one key.

    Attributes:
        key: the key; None if the shard cannot be followed from here and the next name is not known.
        start: byte of the shard at which the first member begins.
        members: the members, in order.
        fault: why the sample is dead: its kind is no_image, several_images, unsafe_member, duplicate_key,
            bomb, or unreadable_shard where the sample stands for the rest of a damaged shard. None if it is
            not dead.
    """

    key: str | None
    start: int
    members: list[Member] = field(default_factory=list)
    fault: Fault | None = None

    def image(self, extension: str) -> Member:
        """The image of a sample that has no fault. `extension` is that of `samples`."""
        return next(m for m in self.members if is_image(m, extension))


def numbered(members: Iterable[Member]) -> Iterator[tuple[int | None, Member]]:
    """Each member with the number of its sample, counted from 0; None for a member of no sample."""
    row, key = -1, None
    for member in members:
        if member.key is None:
            yield None, member
            continue
        if row < 0 or member.key != key:
            row, key = row + 1, member.key
        yield row, member


def samples(file: Reader, start: int, stop: int, size: int, extension: str) -> Iterator[Sample]:
    """Find the samples between two bytes of a shard, from its headers.

    Args:
        file: the shard.
        start: byte at which the first sample begins.
        stop: byte at which the last sample ends, or `size` to go on to the end mark.
        size: size of the shard in bytes.
        extension: extension of the member that holds the image; "" for the only image (IMAGE_SUFFIXES).

    Yields:
        The samples, in order. Where the shard is damaged, the last one stands for all that follows. It takes
        the place of the sample that the damage cut, which may lack members.
    """
    current: Sample | None = None
    number = -1
    try:
        for row, member in numbered(walk(file, start, stop, size)):
            if row is None:
                continue
            if current is None or row != number:
                if current:
                    yield _judged(current, extension, file)
                current, number = Sample(member.key, member.start), row
            if len(current.members) <= _MEMBERS_MAX:
                current.members.append(member)
    except TarError as damage:
        key = key_of(damage)
        if current and key is not None and key != current.key:
            yield _judged(current, extension, file)
            current = None
        rest = current or Sample(key, damage.offset)
        reason = f"{damage}{REST}"
        yield Sample(rest.key, rest.start, fault=(UNREADABLE_SHARD, reason))
        return
    if current:
        yield _judged(current, extension, file)


def key_of(damage: TarError) -> str | None:
    """The key of the member that was cut; None if its name is not known."""
    return None if damage.name is None else Member(damage.name, "file", 0, 0, 0, 0).key


def shown(text: str) -> str:
    """A name from the archive, made safe for a terminal and for UTF-8."""
    return text.encode("unicode_escape").decode()[:200]


def is_image(member: Member, extension: str) -> bool:
    """Whether the member holds the sample's image, by its extension."""
    if extension:
        return member.extension == extension
    return f".{member.extension}".endswith(IMAGE_SUFFIXES)


def _is_apple_double(file: Reader, member: Member) -> bool:
    file.seek(member.data)
    return file.read(min(member.size, len(_APPLE_DOUBLE))) == _APPLE_DOUBLE


def _judged(sample: Sample, extension: str, file: Reader) -> Sample:
    sample.fault = _fault(sample, extension, file)
    return sample


def _fault(sample: Sample, extension: str, file: Reader) -> Fault | None:
    names, key = [m.name for m in sample.members], shown(sample.key or "")
    if len(names) > _MEMBERS_MAX:
        return "unsafe_member", f"more than {_MEMBERS_MAX} members"
    if unsafe := [m for m in sample.members if not m.safe]:
        named = unsafe[0].kind in ("file", "folder")
        why = "its name leaves the folder" if named else "it is no ordinary file"
        return "unsafe_member", f"{shown(unsafe[0].name)}: {why}"
    if disguised := [m for m in sample.members if m.beside and not _is_apple_double(file, m)]:
        # Some readers would take it for an image, although it was not checked as one.
        return "unsafe_member", f"{shown(disguised[0].name)}: hidden, and not what macOS writes beside a file"
    if len(set(names)) < len(names):
        return "duplicate_key", f"a member of {key} occurs twice"
    images = [m for m in sample.members if is_image(m, extension)]
    if not images:
        kind = f"{extension} member" if extension else f"{KINDS} member"
        return "no_image", f"{key} has no {kind}"
    if len(images) > 1:
        found = shown(", ".join(sorted({m.extension for m in images})))
        return "several_images", f"{key} has several images: set image_column to one of {found}"
    if images[0].size > IMAGE_MAX:
        return "bomb", f"{images[0].size} bytes, more than the limit of {IMAGE_MAX}"
    return None
