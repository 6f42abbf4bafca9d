"""WebDataset's samples in a tar shard: the members of one key, which lie next to each other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from poisoncam_ray.corpus.shardfile import UNREADABLE_SHARD
from poisoncam_ray.corpus.storage import IMAGE_MAX, IMAGE_SUFFIXES
from poisoncam_ray.corpus.tar import Member, Reader, TarError, walk

Fault = tuple[str, str]
REST = ": this row stands for the rest of the shard"
_MEMBERS_MAX = 1000
# RFC 1740, appendix B.
_APPLE_DOUBLE = bytes.fromhex("00051607")
# A larger label is none.
_LABEL_MAX = 2**20


@dataclass
class Sample:
    """Adjacent members of one key, from byte `start` of the shard. `fault`, (kind, message), makes it dead:
    no_image, several_images, unsafe_member, duplicate_key, bomb, or unreadable_shard for all that follows
    the point from which the shard cannot be followed."""

    key: str | None
    start: int
    members: list[Member] = field(default_factory=list)
    fault: Fault | None = None

    def image(self, extension: str) -> Member:
        """The only image of a sample without fault."""
        return next(m for m in self.members if is_image(m, extension))


def numbered(members: Iterable[Member]) -> Iterator[tuple[int | None, Member]]:
    """Members with the number of their sample, counted from 0; None for what belongs to no sample."""
    row, key = -1, None
    for member in members:
        if member.key is None:
            yield None, member
            continue
        if row < 0 or member.key != key:
            row, key = row + 1, member.key
        yield row, member


def samples(file: Reader, start: int, stop: int, size: int, extension: str) -> Iterator[Sample]:
    """The samples in bytes [start, stop) of a shard of `size` bytes, in order; see `walk`. `extension` names
    the member that holds the image, "" takes the only one that looks like an image.

    Where the shard is damaged the last sample stands for the rest, with the sample that may lack members."""
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
    """The key of the member that was cut, if its name is known."""
    return None if damage.name is None else Member(damage.name, "file", 0, 0, 0, 0).key


def shown(text: str) -> str:
    """A name from the archive, fit for a terminal and for UTF-8."""
    return text.encode("unicode_escape").decode()[:200]


def is_image(member: Member, extension: str) -> bool:
    if extension:
        return member.extension == extension
    return f".{member.extension}".endswith(IMAGE_SUFFIXES)


def label(file: Reader, sample: Sample, name: str) -> str | None:
    """The text of the member `name`, or that field of the JSON member; for "label" also the member `cls`.
    None when there is no such thing."""
    by_extension = {m.extension: m for m in sample.members}
    for extension in (name, "cls") if name == "label" else (name,):
        if (member := by_extension.get(extension)) and member.size <= _LABEL_MAX:
            return _content(file, member).decode("utf-8", "replace").strip()
    member = by_extension.get("json")
    if member is None or member.size > _LABEL_MAX:
        return None
    try:
        fields = json.loads(_content(file, member))
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or name not in fields:
        return None
    return "" if fields[name] is None else str(fields[name])


def _content(file: Reader, member: Member) -> bytes:
    file.seek(member.data)
    return file.read(member.size)


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
        # Some readers would take it for an image, and nobody has looked at it.
        return "unsafe_member", f"{shown(disguised[0].name)}: hidden, and not what macOS writes beside a file"
    if len(set(names)) < len(names):
        return "duplicate_key", f"a member of {key} occurs twice"
    images = [m for m in sample.members if is_image(m, extension)]
    if not images:
        kind = f"{extension} member" if extension else "JPEG, PNG or WebP member"
        return "no_image", f"{key} has no {kind}"
    if len(images) > 1:
        found = shown(", ".join(sorted({m.extension for m in images})))
        return "several_images", f"{key} has several images: set image_column to one of {found}"
    if images[0].size > IMAGE_MAX:
        return "bomb", f"{images[0].size} bytes, more than the limit of {IMAGE_MAX}"
    return None
