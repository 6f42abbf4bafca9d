"""Files of a corpus on any fsspec URL: what lies there and what changed. `store` reads and writes them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import fsspec

from poisoncam_ray.errors import UserError
from poisoncam_ray.store import (
    connect,
    delete,
    in_parallel,
    is_local,
    locate,
    real_path,
    whole_file,
    write_bytes,
)

__all__ = [
    "IMAGE_MAX",
    "IMAGE_SUFFIXES",
    "PARQUET_SUFFIXES",
    "Row",
    "Slice",
    "Source",
    "connect",
    "delete",
    "in_parallel",
    "is_file",
    "is_local",
    "list_sources",
    "locate",
    "real_path",
    "refuse_escaping_links",
    "refuse_same_place",
    "source_of",
    "whole_file",
    "write_bytes",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
IMAGE_MAX = 2**30
"""Bytes of a file or member that are read at all; of those `corpus.max_bytes` says what is an image."""
PARQUET_SUFFIXES = (".parquet",)


@dataclass(frozen=True)
class Source:
    """One file: path relative to the corpus, size in bytes, and the store's tag for this version of it
    (ETag, or modification time in nanoseconds)."""

    path: str
    size: int
    tag: str


@dataclass(frozen=True)
class Slice:
    """A fixed run of rows, the unit of reading and committing. Parquet and tar: rows [start, stop) of
    `source`. Image folder: `source` is ".", rows are positions in the sorted listing, `files` names them.

    `version` is the shard's size and tag when it was listed. `error` says why none of the shard's rows can be
    read, and `kind` what the dead letter calls that: all rows of the slice are dead. A shard whose rows
    cannot be counted has one. Tar: `span` is the slice's bytes [from, to), `twins` rows whose key the shard
    has twice."""

    index: int
    source: str
    start: int
    stop: int
    files: tuple[str, ...] | None = None
    version: str | None = None
    error: str | None = None
    span: tuple[int, int] | None = None
    twins: tuple[int, ...] | None = None
    kind: str | None = None

    def image_id(self, i: int) -> str:
        """Of the slice's row number i, as reading the slice gives it."""
        return self.files[i] if self.files is not None else f"{self.source}#{self.start + i}"


@dataclass(frozen=True)
class Row:
    """One image as stored; `data` is None where the Parquet cell is null. `error`, (kind, message), says why
    a row cannot be read: it is dead."""

    row: int
    image_id: str
    data: bytes | None
    error: tuple[str, str] | None = None


def is_file(uri: str) -> bool:
    """Whether `uri` names one file rather than a folder."""
    fs, root = connect(uri)
    return fs.isfile(root)


def list_sources(uri: str) -> list[Source]:
    """Every visible file under `uri`, sorted by path; `uri` may also be one file. Names (of files or folders)
    that start with `.` are ignored, and with `_`, but for images: cameras call some so. Raises UserError when
    there is nothing at `uri`, or for a key that would be another file's path."""
    fs, root = connect(uri)
    try:
        fs.invalidate_cache()
        if fs.isfile(root):
            return [source_of(fs, root.rsplit("/", 1)[-1], root, fs.info(root))]
        if is_local(fs):
            found = list(_walk_local(root))
        else:
            infos = fs.find(root, detail=True).values()
            prefix = root.rstrip("/")
            found = [(i["name"][len(prefix) :].removeprefix("/"), i) for i in infos if i["type"] == "file"]
            for path, _ in found:
                if path.startswith("/") or "//" in path or "?versionId=" in path:
                    raise UserError(f"The key {path!r} in {uri} is no path of a file: rename the object.")
        exists = bool(found) or fs.exists(root)
    except FileNotFoundError:
        found, exists = [], False
    except PermissionError as error:
        raise UserError(
            f"Access to {uri} was refused ({error}): give credentials that may read it."
        ) from error
    if not exists:
        raise UserError(f"The input {uri} does not exist: give a folder or file that does.")
    visible = [(p, i) for p, i in found if p and _visible(p)]
    return sorted((source_of(fs, p, f"{root}/{p}", i) for p, i in visible), key=lambda s: s.path)


def _visible(path: str) -> bool:
    *folders, name = path.split("/")
    if name.startswith("_") and name.lower().endswith(IMAGE_SUFFIXES):
        name = name.lstrip("_")
    return not any(part.startswith(("_", ".")) for part in (*folders, name))


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


def source_of(fs: fsspec.AbstractFileSystem, relative: str, path: str, info: dict[str, Any]) -> Source:
    """The file as listed; `info` is the store's own description (not used on a local disk)."""
    try:
        relative.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"The file name {relative!r} is not valid UTF-8: rename the file.") from error
    if is_local(fs):
        try:
            stat = os.stat(path)
        except OSError as error:
            if not os.path.islink(path):
                raise
            raise UserError(f"{path} is a broken symbolic link: remove it.") from error
        return Source(relative, stat.st_size, str(stat.st_mtime_ns))
    keys = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "created")
    tag = next((info[k] for k in keys if info.get(k)), "")
    # Some stores list a number where they describe one file by a date.
    tag = str(tag.timestamp() if isinstance(tag, datetime) else tag)
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
        if real_path(output) == real_path(uri):
            raise UserError(f"The output {output} is the corpus itself: give another folder.")
