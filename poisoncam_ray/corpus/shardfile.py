"""Opening shards: the version that was listed and no other; the store's troubles kept apart from damage.

A shard that is damaged, or that this machine may never read, costs its own rows (`UnreadableError`). A store
that does not answer costs nobody's rows: its exception passes through and the job can be resumed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from poisoncam_ray.corpus import storage
from poisoncam_ray.corpus.storage import Row, Slice, Source
from poisoncam_ray.errors import UserError

# Local errors that another try would meet again. EMFILE, ENOMEM, ESTALE and the like are not of this kind.
_FOR_GOOD = {errno.EACCES, errno.EPERM, errno.EISDIR, errno.EIO}
_PIECE = 2**20
UNREADABLE_SHARD = "unreadable_shard"
OTHER_SCHEMA = "other_schema"


@dataclass(frozen=True)
class Problem:
    """Why none of the rows of the shard `source` can be read.

    Attributes:
        source: The shard's path relative to the corpus, as listed.
        rows: How many rows the shard has, by its footer; None when they cannot be counted.
        kind: `UNREADABLE_SHARD` or `OTHER_SCHEMA`, as the dead letter says it.
        reason: In words, on one printable line, without a full stop.
    """

    source: str
    rows: int | None
    kind: str
    reason: str


class UnreadableError(UserError):
    """A shard or image that cannot be read, now or later; `reason` in words, without a full stop; `kind`:
    what the dead letter calls it."""

    def __init__(self, what: str, reason: str, kind: str = "unreadable") -> None:
        super().__init__(what, reason, kind)  # all of them, so that it can travel between processes
        self.what, self.reason, self.kind = what, reason, kind

    def __str__(self) -> str:
        return f"{self.what} cannot be read ({self.reason}): replace it or take it out of the corpus."


def reason_of(error: BaseException) -> str:
    """What the error says, on one line fit for a terminal: a parser may quote the file."""
    return one_line(str(error)).rstrip(".") or type(error).__name__


def one_line(text: str) -> str:
    """The first 300 characters of `text` on one line, without what would act on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))[:300]


def for_good(error: Exception, local: bool) -> bool:
    """Whether the store's error is one of this file alone and will stay. On a remote store every error, a
    refusal included (credentials expire), is the store's."""
    return local and isinstance(error, OSError) and error.errno in _FOR_GOOD


class ShardFile(io.RawIOBase):
    """An open shard. `trouble` is the exception, if any, with which the store failed a read: what a parser
    says after that is no proof of damage."""

    def __init__(self, handle: Any, source: Source, local: bool) -> None:
        self.handle, self.source, self.local = handle, source, local
        self.trouble: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self.handle.read(size)
        except Exception as error:
            self.trouble = error
            if for_good(error, self.local):
                self.trouble = UnreadableError(self.source.path, reason_of(error))
            raise self.trouble from error

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.handle.seek(offset, whence)

    def tell(self) -> int:
        return self.handle.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def refuse_climbing(name: str) -> None:
    """Raise UserError for a name that leads out of the corpus: others may write the folder slices lie in."""
    if ".." in name.split("/"):
        raise UserError(f"The name {name!r} leaves the corpus: use a new output folder.")


@contextlib.contextmanager
def open_file(uri: str, source: str, version: str | None, **remote: Any) -> Iterator[ShardFile]:
    """Open `uri`/`source`; `remote` are options for stores that are not a local disk.

    Raises UserError when it is gone or is not the `version` that was listed, UnreadableError when this file
    alone refuses to be read, and the store's exception otherwise.
    """
    refuse_climbing(source)
    fs, root = storage.connect(uri)
    local, path = storage.is_local(fs), f"{root}/{source}"
    with contextlib.ExitStack() as stack:
        try:
            if local and os.path.exists(path) and not os.path.isfile(path):
                raise UnreadableError(f"Shard {source}", "it is no ordinary file")
            handle = stack.enter_context(fs.open(path, "rb", **({} if local else remote)))
            info = {} if local else getattr(handle, "details", None) or fs.info(path)
            found = storage.source_of(fs, source, path, info)
        except FileNotFoundError as error:
            raise UserError(
                f"The shard {source} is gone from {uri}: restore it, or use a new output folder."
            ) from error
        except OSError as error:
            if for_good(error, local):
                raise UnreadableError(f"Shard {source}", reason_of(error)) from error
            raise
        if version is not None and version_of(found) != version:
            raise UserError(
                f"The shard {source} changed since it was indexed ({found.size} bytes now): index again, "
                "into a new output folder."
            )
        yield ShardFile(handle, found, local)


def version_of(source: Source) -> str:
    """Size and tag as one string, for `Slice.version`."""
    return f"{source.size} {source.tag}"


def list_shards(uri: str, only: str, suffixes: tuple[str, ...]) -> list[Source]:
    """All shards with these suffixes, sorted by path; only the file `only` when it is set."""
    found = storage.list_sources(f"{uri}/{only}" if only else uri)
    return [s for s in found if s.path.lower().endswith(suffixes)]


def by_shard(slices: Sequence[Slice]) -> list[list[Slice]]:
    grouped: dict[str, list[Slice]] = defaultdict(list)
    for part in slices:
        grouped[part.source].append(part)
    return list(grouped.values())


def dead_rows(part: Slice) -> Iterator[Row]:
    """The rows of a slice whose `error` is set: all of them dead."""
    fault = part.kind or UNREADABLE_SHARD, part.error or ""
    for i in range(part.stop - part.start):
        yield Row(part.start + i, part.image_id(i), None, fault)


def refuse_all_dead(uri: str, slices: Sequence[Slice], kind: str) -> None:
    """Raise UserError when no shard gives a row: all are broken or empty."""
    if any(part.stop > part.start and part.error is None for part in slices):
        return
    if broken := next((part for part in slices if part.error is not None), None):
        raise UnreadableError(f"{kind} shard {broken.source}", broken.error or "")
    raise UserError(f"The {kind} files in {uri} hold no rows: give a corpus that has images.")


def copy_range(file: BinaryIO | ShardFile, start: int, stop: int, sink: BinaryIO) -> None:
    """Append bytes [start, stop) of `file` to `sink`. Raises UserError when the file ends before."""
    file.seek(start)
    while start < stop:
        data = file.read(min(_PIECE, stop - start))
        if not data:
            raise UserError(f"A shard became shorter ({start} bytes) while it was read: index again.")
        sink.write(data)
        start += len(data)


@contextlib.contextmanager
def open_sink(uri: str, source: str) -> Iterator[BinaryIO]:
    """A file to write that appears at `uri`/`source` when the block ends well."""
    with storage.whole_file(uri, source) as path, open(path, "wb") as sink:
        yield sink


def copy_whole(uri: str, part: Slice, out_uri: str) -> None:
    """Copy the slice's shard as it lies to `out_uri`, same path."""
    with (
        open_file(uri, part.source, part.version) as file,
        open_sink(out_uri, part.source) as sink,
    ):
        copy_range(file, 0, file.source.size, sink)


def fetch_by_shard(
    image_ids: Sequence[str], fetch_rows: Callable[[str, set[int]], dict[str, bytes]], at_once: int
) -> list[bytes]:
    """The bytes of "<shard>#<row>" images in the order asked, by one call a shard, `at_once` together."""
    wanted: dict[str, set[int]] = defaultdict(set)
    for image_id in image_ids:
        source, _, row = image_id.rpartition("#")
        wanted[source].add(int(row))
    pairs = storage.in_parallel(lambda item: fetch_rows(*item), list(wanted.items()), at_once)
    found = {image_id: data for part in pairs for image_id, data in part.items()}
    return [found[i] for i in image_ids]
