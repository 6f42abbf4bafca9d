"""Files of a corpus on any fsspec URL: listing, reading, and writes that are whole or absent."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from poisoncam_ray.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PARQUET_SUFFIXES = (".parquet",)
# One thread a request: remote stores answer in tens of milliseconds whatever the machine's cores.
_THREADS = 16
REMOVED_TYPES = {
    "_reason": pa.string(),
    "_p_poison": pa.float32(),
    "_family": pa.int32(),
    "_image_id": pa.string(),
}

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Source:
    """One file: path relative to the corpus, size in bytes, and the store's tag for this version of it
    (ETag, or modification time in nanoseconds)."""

    path: str
    size: int
    tag: str


@dataclass(frozen=True)
class Slice:
    """A fixed run of rows, the unit of reading and committing. Parquet: rows [start, stop) of `source`.
    Image folder: `source` is ".", rows are positions in the sorted listing, `files` names them."""

    index: int
    source: str
    start: int
    stop: int
    files: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Row:
    """One image as stored; `data` is None where the Parquet cell is null."""

    row: int
    image_id: str
    data: bytes | None


def connect(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of `uri` and the path on it, without a trailing slash."""
    try:
        fs, root = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise UserError(f"The location {uri} cannot be used: {error}.") from error
    return fs, root.rstrip("/") or "/"


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return isinstance(fs, LocalFileSystem)


def is_file(uri: str) -> bool:
    """Whether `uri` names one file rather than a folder."""
    fs, root = connect(uri)
    return fs.isfile(root)


def list_sources(uri: str) -> list[Source]:
    """Every visible file under `uri`, sorted by path; `uri` may also be one file. Names (of files or folders)
    that start with `_` or `.` are ignored. Raises UserError when there is nothing at `uri`."""
    fs, root = connect(uri)
    try:
        fs.invalidate_cache()
        if fs.isfile(root):
            return [_source(fs, root.rsplit("/", 1)[-1], root, fs.info(root))]
        if is_local(fs):
            found = list(_walk_local(root))
        else:
            infos = fs.find(root, detail=True).values()
            found = [(i["name"][len(root) :].lstrip("/"), i) for i in infos if i["type"] == "file"]
        exists = bool(found) or fs.exists(root)
    except FileNotFoundError:
        found, exists = [], False
    except Exception as error:
        if isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError":
            raise UserError(
                f"Access to {uri} was refused ({error}): give credentials that may read it."
            ) from error
        if type(error).__name__ == "EndpointConnectionError":
            raise UserError(f"{error}: check AWS_ENDPOINT_URL and that the store runs.") from error
        raise
    if not exists:
        raise UserError(f"The input {uri} does not exist: give a folder or file that does.")
    visible = [(p, i) for p, i in found if p and not any(n.startswith(("_", ".")) for n in p.split("/"))]
    return sorted((_source(fs, p, f"{root}/{p}", i) for p, i in visible), key=lambda s: s.path)


def _walk_local(root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not os.path.isdir(root):
        raise FileNotFoundError(root)

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [n for n in folders if not n.startswith(("_", "."))]
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                raise UserError(
                    f"{os.path.join(folder, name)} is a symbolic link to a folder: copy its files into the "
                    "corpus or remove the link."
                )
        for name in files:
            path = os.path.join(folder, name)
            yield os.path.relpath(path, root).replace(os.sep, "/"), {}


def _source(fs: fsspec.AbstractFileSystem, relative: str, path: str, info: dict[str, Any]) -> Source:
    try:
        relative.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"The file name {relative!r} is not valid UTF-8: rename the file.") from error
    if is_local(fs):
        try:
            stat = os.stat(path)
        except FileNotFoundError as error:
            raise UserError(f"{path} is a broken symbolic link: remove it.") from error
        return Source(relative, stat.st_size, str(stat.st_mtime_ns))
    keys = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "created")
    tag = next((str(info[k]) for k in keys if info.get(k)), "")
    return Source(relative, int(info.get("size") or 0), tag.strip('"'))


def refuse_escaping_links(uri: str, paths: Iterable[str]) -> None:
    """Raise UserError for a symbolic link whose target lies outside the local folder `uri`."""
    fs, root = connect(uri)
    if not is_local(fs):
        return
    real_root = os.path.realpath(root)
    for path in paths:
        full = os.path.join(root, path)
        if os.path.islink(full) and not os.path.realpath(full).startswith(real_root + os.sep):
            raise UserError(
                f"{full} is a symbolic link that leaves the folder: copy the image or remove the link."
            )


def refuse_same_place(uri: str, *outputs: str) -> None:
    """Raise UserError when an output is the corpus itself, whose files it would replace."""
    for output in outputs:
        if connect(output)[1] == connect(uri)[1]:
            raise UserError(f"The output {output} is the corpus itself: give another folder.")


def changes(before: Iterable[Source], now: Iterable[Source]) -> list[str]:
    """One sentence for each file that is gone, differs or is new since `before` was listed."""
    old, new = {s.path: s for s in before}, {s.path: s for s in now}
    gone = [f"{p} is gone since the corpus was indexed." for p in old if p not in new]
    differs = [
        f"{p} changed since the corpus was indexed ({old[p].size} bytes then, {new[p].size} now)."
        for p in old
        if p in new and old[p] != new[p]
    ]
    added = [f"{p} was added since the corpus was indexed." for p in new if p not in old]
    return gone + differs + added


def in_parallel(function: Callable[[T], R], items: list[T], threads: int = _THREADS) -> list[R]:
    """`[function(x) for x in items]` with up to `threads` requests under way together."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(function, items))


@contextlib.contextmanager
def whole_file(uri: str, relative: str) -> Iterator[str]:
    """A local path to write to; when the block ends well, its content appears at `uri`/`relative` at once.
    When it fails, nothing appears."""
    fs, root = connect(uri)
    target = f"{root}/{relative}"
    local = is_local(fs)
    # A hidden name beside the target: on the same disk, and ignored by listings if a crash leaves it behind.
    folder = os.path.dirname(target) if local else tempfile.gettempdir()
    scratch = os.path.join(folder, f".writing-{uuid.uuid4().hex}")
    os.makedirs(folder, exist_ok=True)
    try:
        yield scratch
        if local:
            os.replace(scratch, target)
        else:
            fs.put_file(scratch, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)


def write_bytes(uri: str, relative: str, data: bytes) -> None:
    """The same for bytes in hand; one PUT on an object store."""
    fs, root = connect(uri)
    if not is_local(fs):
        fs.pipe_file(f"{root}/{relative}", data)
        return
    with whole_file(uri, relative) as path, open(path, "wb") as file:
        file.write(data)


def delete(uri: str, relative: str) -> None:
    """Delete a file if it is there."""
    fs, root = connect(uri)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(f"{root}/{relative}")


def removed_arrays(columns: dict[str, list[Any]], n_removed: int) -> dict[str, pa.Array]:
    """The columns that say why rows were removed, as Arrow arrays of `n_removed` values."""
    arrays = {k: pa.array(v, type=REMOVED_TYPES.get(k)) for k, v in columns.items()}
    wrong = {k: len(a) for k, a in arrays.items() if len(a) != n_removed}
    if wrong:
        raise ValueError(f"removed columns {wrong} do not fit {n_removed} removed rows")
    return arrays
