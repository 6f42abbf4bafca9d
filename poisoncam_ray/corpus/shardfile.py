"""Opening and copying shards, with damage to a file kept apart from trouble with the store.

A shard that is damaged, or that this machine may never read, raises `UnreadableError`: its rows are dead. A
store that does not answer raises its own exception: no row is dead, and the job can be resumed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from poisoncam_ray.corpus.listing import list_sources, refuse_escaping_links, source_of
from poisoncam_ray.corpus.protocol import UNREADABLE_SHARD, Row, Slice, Source
from poisoncam_ray.errors import UserError
from poisoncam_ray.store import connect, copy_file, in_parallel, is_local, whole_file

# Errors of a local disk that another try would meet again. EMFILE, ENOMEM, ESTALE and the like may pass.
_FOR_GOOD = {errno.EACCES, errno.EPERM, errno.EISDIR, errno.EIO}
_COPIED_AT_ONCE = 2**20


class UnreadableError(UserError):
    """A shard or image that cannot be read, now or later.

    Attributes:
        what: what cannot be read, as the sentence for the user begins.
        reason: in words, without a full stop.
        kind: what its dead rows call the error.
    """

    def __init__(self, what: str, reason: str, kind: str = "unreadable") -> None:
        super().__init__(what, reason, kind)  # pickle calls the class with these
        self.what, self.reason, self.kind = what, reason, kind

    def __str__(self) -> str:
        return f"{self.what} cannot be read ({self.reason}): replace it or take it out of the corpus."


def reason_of(error: BaseException) -> str:
    """What the error says, on one line that is safe on a terminal: a parser may quote the file."""
    return one_line(str(error)).rstrip(".") or type(error).__name__


def one_line(text: str) -> str:
    """The first 300 characters of `text` on one line, with "?" for control characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))[:300]


def for_good(error: Exception, local: bool) -> bool:
    """Whether the file itself is the cause of an error that will stay.

    Args:
        error: what reading the file raised.
        local: whether the file lies on a local disk. On a remote store every error is the store's, a refusal
            included, because credentials expire.
    """
    return local and isinstance(error, OSError) and error.errno in _FOR_GOOD


class ShardFile(io.RawIOBase):
    """An open shard.

    Attributes:
        handle: the file as fsspec opened it.
        source: the shard as it was found on opening.
        local: whether it lies on a local disk.
        trouble: the exception with which the store failed a read, if any. An error that a parser raises after
            that is no proof of damage.
    """

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
    """Raise UserError for a name that leads out of the corpus. Slices come from the run folder, which others
    may have written."""
    if ".." in name.split("/"):
        raise UserError(f"The name {name!r} leaves the corpus: use a new output folder.")


@contextlib.contextmanager
def open_file(uri: str, source: str, version: str | None, **remote: Any) -> Iterator[ShardFile]:
    """Open a shard.

    Args:
        uri: the corpus.
        source: the shard's path in it.
        version: the version that was listed (`version_of`); None for whichever is there.
        **remote: options of fsspec's `open` for stores that are not a local disk.

    Raises:
        UserError: the shard is gone or is not that version.
        UnreadableError: the file itself cannot be read.
        Exception: the store's own, when it does not answer.
    """
    refuse_climbing(source)
    fs, root = connect(uri)
    local, path = is_local(fs), f"{root}/{source}"
    with contextlib.ExitStack() as stack:
        try:
            if local and os.path.exists(path) and not os.path.isfile(path):
                raise UnreadableError(f"The file {source}", "it is no ordinary file")
            handle = stack.enter_context(fs.open(path, "rb", **({} if local else remote)))
            info = {} if local else getattr(handle, "details", None) or fs.info(path)
            found = source_of(fs, source, path, info)
        except FileNotFoundError as error:
            raise UserError(
                f"The file {source} is gone from {uri}: restore it, or use a new output folder."
            ) from error
        except OSError as error:
            if for_good(error, local):
                raise UnreadableError(f"The file {source}", reason_of(error)) from error
            raise
        if version is not None and version_of(found) != version:
            raise UserError(
                f"The file {source} changed since it was indexed ({found.size} bytes now): index again, "
                "into a new output folder."
            )
        yield ShardFile(handle, found, local)


def version_of(source: Source) -> str:
    """Size and tag in one string, for `Slice.version`."""
    return f"{source.size} {source.tag}"


def list_shards(uri: str, only: str, suffixes: tuple[str, ...], follow_links: bool = False) -> list[Source]:
    """All shards under `uri` with these suffixes, sorted by path; only the file `only` when it is not "".

    Raises:
        UserError: a shard is a link that leaves `uri`, and links are not to be followed.
    """
    if only:
        return list_sources(f"{uri}/{only}")
    found = [s for s in list_sources(uri, follow_links=follow_links) if s.path.lower().endswith(suffixes)]
    if not follow_links:
        refuse_escaping_links(uri, (s.path for s in found))
    return found


def by_shard(slices: Sequence[Slice]) -> list[list[Slice]]:
    """The slices in one list for each shard, in order."""
    grouped: dict[str, list[Slice]] = defaultdict(list)
    for slice_ in slices:
        grouped[slice_.source].append(slice_)
    return list(grouped.values())


def dead_rows(slice_: Slice) -> Iterator[Row]:
    """The rows of a slice whose `error` is set: all are dead."""
    fault = slice_.kind or UNREADABLE_SHARD, slice_.error or ""
    for i in range(slice_.stop - slice_.start):
        yield Row(slice_.start + i, slice_.image_id(i), None, fault)


def refuse_all_dead(uri: str, slices: Sequence[Slice], kind: str) -> None:
    """Raise UserError when no shard gives a row, because all are broken or empty.

    Args:
        uri: the corpus.
        slices: all its slices.
        kind: what the message calls the shards: Parquet or Tar.
    """
    if any(s.stop > s.start and s.error is None for s in slices):
        return
    if broken := next((s for s in slices if s.error is not None), None):
        raise UnreadableError(f"{kind} shard {broken.source}", broken.error or "")
    raise UserError(f"The {kind} files in {uri} hold no rows: give a corpus that has images.")


def copy_range(file: BinaryIO | ShardFile, start: int, stop: int, sink: BinaryIO) -> None:
    """Append bytes [start, stop) of `file` to `sink`.

    Raises:
        UserError: the file ends before `stop`.
    """
    file.seek(start)
    while start < stop:
        data = file.read(min(_COPIED_AT_ONCE, stop - start))
        if not data:
            raise UserError(f"A shard became shorter ({start} bytes) while it was read: index again.")
        sink.write(data)
        start += len(data)


@contextlib.contextmanager
def open_sink(uri: str, source: str) -> Iterator[BinaryIO]:
    """A file to write. It appears at `uri`/`source` when the block ends without an exception."""
    with whole_file(uri, source) as path, open(path, "wb") as sink:
        yield sink


def copy_whole(uri: str, slice_: Slice, out_uri: str) -> None:
    """Copy the slice's shard, byte for byte, to the same path under `out_uri`. The store or the kernel copies
    where it can.

    Raises:
        UserError: the shard is gone, or is not the version that was listed.
    """
    source = slice_.source
    with open_file(uri, source, slice_.version) as file:
        if not copy_file(uri, source, out_uri, file.source.tag or None):
            with open_sink(out_uri, source) as sink:
                copy_range(file, 0, file.source.size, sink)


def fetch_by_shard(
    image_ids: Sequence[str], fetch_rows: Callable[[str, set[int]], dict[str, bytes]], at_once: int
) -> list[bytes]:
    """Fetch images of shards, each shard once.

    Args:
        image_ids: ids "<shard>#<row>".
        fetch_rows: gives the images of one shard, by id, from its path and the numbers of the rows.
        at_once: shards that are open at the same time.

    Returns:
        The bytes, in the order of `image_ids`.
    """
    wanted: dict[str, set[int]] = defaultdict(set)
    for image_id in image_ids:
        source, _, row = image_id.rpartition("#")
        wanted[source].add(int(row))
    pairs = in_parallel(lambda item: fetch_rows(*item), list(wanted.items()), at_once)
    found = {image_id: data for of_shard in pairs for image_id, data in of_shard.items()}
    return [found[i] for i in image_ids]
