"""Which files a corpus has, on any fsspec URL, and which names and places are refused."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import fsspec

from poisoncam_ray.corpus.captions import CAPTION_SUFFIXES
from poisoncam_ray.corpus.protocol import Source
from poisoncam_ray.corpus.tables import refuse_table
from poisoncam_ray.errors import UserError
from poisoncam_ray.store import connect, is_local, real_path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
IMAGE_MAX = 2**30
"""A larger file or member is not read, in bytes. `corpus.max_bytes` limits what of these is taken for an
image."""
PARQUET_SUFFIXES = (".parquet",)
_FOLLOW = "give --follow-links (corpus.follow_links=true)"


def is_file(uri: str) -> bool:
    """Whether `uri` names one file rather than a folder."""
    fs, root = connect(uri)
    return fs.isfile(root)


def list_sources(uri: str, of_table: bool = False, follow_links: bool = False) -> list[Source]:
    """List the visible files of a corpus.

    Args:
        uri: a folder, or one file.
        of_table: the folder is known to be a table of another format, and the caller knows which files count.
        follow_links: whether folders that are symbolic links are listed as well, each once.

    Returns:
        The files at any depth, sorted by path. A file is hidden if its name or a folder's name begins with
        "." or "_"; but images and captions may begin with "_", as some cameras name them.

    Raises:
        UserError: there is nothing at `uri`, access is refused, a folder is a symbolic link that is not to be
            followed, a name is not UTF-8, an object's key is no path of a file, or a folder
            is a table of another format.
    """
    fs, root = connect(uri)
    try:
        fs.invalidate_cache()
        if fs.isfile(root):
            return [source_of(fs, root.rsplit("/", 1)[-1], root, fs.info(root))]
        if is_local(fs):
            found = list(_walk_local(root, of_table, follow_links))
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
    for path, _ in () if of_table else found:
        refuse_table(uri, path)
    visible = [(p, i) for p, i in found if p and _visible(p)]
    return sorted((source_of(fs, p, f"{root}/{p}", i) for p, i in visible), key=lambda s: s.path)


def _visible(path: str) -> bool:
    *folders, name = path.split("/")
    if name.startswith("_") and name.lower().endswith((*IMAGE_SUFFIXES, *CAPTION_SUFFIXES)):
        name = name.lstrip("_")
    return not any(n.startswith(("_", ".")) for n in (*folders, name))


def _walk_local(root: str, of_table: bool, follow_links: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    if not os.path.isdir(root):
        raise FileNotFoundError(root)

    def refuse(error: OSError) -> None:
        raise error

    visited = {os.path.realpath(root)}
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=follow_links):
        for name in () if of_table else folders:
            refuse_table(root, f"{os.path.relpath(os.path.join(folder, name), root)}/")
        folders[:] = [n for n in folders if not n.startswith(("_", "."))]
        if follow_links:
            folders[:] = [n for n in sorted(folders) if _is_new(root, os.path.join(folder, n), visited)]
        elif links := [n for n in folders if os.path.islink(os.path.join(folder, n))]:
            raise UserError(
                f"{os.path.join(folder, links[0])} is a symbolic link to a folder: {_FOLLOW}, copy its files "
                "into the corpus, or remove the link."
            )
        for name in files:
            path = os.path.join(folder, name)
            yield os.path.relpath(path, root).replace(os.sep, "/"), {}


def _is_new(root: str, folder: str, visited: set[str]) -> bool:
    """Whether a folder is to be listed under this name: it is not where a link leads that another name led
    to, and no link to a folder that is listed where it lies. `visited` is extended."""
    real, real_root = os.path.realpath(folder), os.path.realpath(root)
    if os.path.islink(folder) and real.startswith(f"{real_root}{os.sep}"):
        inside = os.path.relpath(real, real_root).split(os.sep)
        if not any(name.startswith(("_", ".")) for name in inside):
            return False
    if real in visited:
        return False
    visited.add(real)
    return True


def source_of(fs: fsspec.AbstractFileSystem, relative: str, path: str, info: dict[str, Any]) -> Source:
    """Describe one file as the listing does.

    Args:
        fs: its filesystem.
        relative: its path in the corpus.
        path: its path on the filesystem.
        info: the store's own description; not used on a local disk.

    Raises:
        UserError: its name is not UTF-8, or it is a broken symbolic link.
    """
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
    # Some stores give a number in a listing and a date in the description of one file.
    tag = str(tag.timestamp() if isinstance(tag, datetime) else tag)
    return Source(relative, int(info.get("size") or 0), tag.strip('"'))


def refuse_escaping_links(uri: str, paths: Iterable[str]) -> None:
    """Raise UserError if one of the `paths` is a symbolic link that leads out of the local folder `uri`."""
    fs, root = connect(uri)
    if not is_local(fs):
        return
    real_root = os.path.realpath(root)
    for path in paths:
        full = os.path.join(root, path)
        if os.path.islink(full) and not os.path.realpath(full).startswith(real_root + os.sep):
            raise UserError(
                f"{full} is a symbolic link that leaves the folder: {_FOLLOW}, copy the file, or remove the "
                "link."
            )


def refuse_same_place(uri: str, *outputs: str | None) -> None:
    """Raise UserError if one of the `outputs` is the corpus `uri` itself, whose files it would replace."""
    for output in outputs:
        if output is not None and real_path(output) == real_path(uri):
            raise UserError(f"The output {output} is the corpus itself: give another folder.")
