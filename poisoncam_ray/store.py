"""All access to storage, local or remote. Files are written whole or not at all.

S3 goes through `s3.PatientS3`; other fsspec stores are used as they are. Every function takes the URI of a
folder and a path relative to it. All may raise UserError (the user must change something),
FileNotFoundError, and StoreAwayError (the store does not answer).
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from poisoncam_ray.errors import StoreAwayError, UserError

S3_PREFIXES = ("s3://", "s3a://")
# One thread for each request under way: a remote store answers in tens of milliseconds.
THREADS = 16
UPLOADS = 3
_CHANGED = "changed since it was indexed: use a new output folder."

T = TypeVar("T")
R = TypeVar("R")


def connect(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of `uri` and the path on it, without a trailing slash."""
    try:
        if uri.startswith(S3_PREFIXES):
            # Half a second to import.
            from poisoncam_ray.s3 import PatientS3

            fs: fsspec.AbstractFileSystem = PatientS3()
            root = fs._strip_protocol(uri)
        else:
            fs, root = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise UserError(f"The location {uri} cannot be used: {error}.") from error
    return fs, root.rstrip("/") or "/"


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return isinstance(fs, LocalFileSystem)


def real_path(uri: str) -> str:
    """The path on its filesystem, with links and `..` resolved. Two names of one local folder give one
    path."""
    fs, root = connect(uri)
    return os.path.realpath(root) if is_local(fs) else root


def exists(uri: str, relative: str = "") -> bool:
    """Whether a file or folder is there now. Cached listings are not used."""
    fs, target = locate(uri, relative)
    fs.invalidate_cache()
    return fs.exists(target)


def read_bytes(uri: str, relative: str) -> bytes:
    fs, target = locate(uri, relative)
    return fs.cat_file(target)


def write_bytes(uri: str, relative: str, data: bytes) -> None:
    """Write a file. Readers see the old file or the whole new one, never a part of it."""
    fs, target = locate(uri, relative)
    if is_local(fs):
        with whole_file(uri, relative) as path, open(path, "wb") as file:
            file.write(data)
    elif _is_s3(uri):
        _upload(lambda chunk: fs.pipe_file(target, data, chunksize=chunk), len(data))
    else:
        fs.pipe_file(target, data)


@contextlib.contextmanager
def whole_file(uri: str, relative: str) -> Iterator[str]:
    """Write a large file by way of a local path.

    The file appears at `uri`/`relative` when the block ends without an error. A killed process leaves a
    hidden file `.writing-…`, which listings ignore.

    Yields:
        The local path to write to.
    """
    fs, target = locate(uri, relative)
    local = is_local(fs)
    # The scratch file must be on the same disk as the target to be renamed.
    folder = os.path.dirname(target) if local else tempfile.gettempdir()
    scratch = os.path.join(folder, f".writing-{uuid.uuid4().hex}")
    os.makedirs(folder, exist_ok=True)
    try:
        yield scratch
        if local:
            os.replace(scratch, target)
        elif _is_s3(uri):
            _upload(lambda chunk: fs.put_file(scratch, target, chunksize=chunk), os.path.getsize(scratch))
        else:
            fs.put_file(scratch, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)


def copy_file(uri: str, relative: str, out_uri: str, tag: str | None = None) -> bool:
    """Copy a file to the same name in another folder, without its bytes passing through this process.

    On S3 the server copies. On a local disk the kernel does, and clones the blocks where the file system can
    (XFS, Btrfs). The copy is a file of its own and never a hard link: a program that writes into it later
    must not change the source. It appears whole or not at all.

    Args:
        uri: the folder of the source.
        relative: the file's path in both folders.
        out_uri: the folder of the copy.
        tag: what the source must be: its ETag on S3, its modification time in nanoseconds on a disk. None is
            not checked.

    Returns:
        Whether it was copied. Where it was not (other stores, two different stores, or one that refuses), the
        caller reads and writes the file, and meets the reason if there is one.

    Raises:
        UserError: the source has another tag.
        StoreAwayError: the store does not answer.
    """
    (fs, source), (out_fs, target) = locate(uri, relative), locate(out_uri, relative)
    try:
        if _is_s3(uri) and _is_s3(out_uri):
            fs.copy_object(source, target, tag)
        elif is_local(fs) and is_local(out_fs) and hasattr(os, "copy_file_range"):
            with open(source, "rb") as file, whole_file(out_uri, relative) as path, open(path, "xb") as sink:
                _copy_in_kernel(file.fileno(), sink.fileno())
                if tag not in (None, str(os.fstat(file.fileno()).st_mtime_ns)):
                    raise ChangedError(f"The file {relative} {_CHANGED}")
        else:
            return False
    except (ChangedError, StoreAwayError):
        raise
    except UserError:
        return False
    except OSError as error:
        if _is_s3(uri) and _was_taken(uri, error):
            raise ChangedError(f"The file {relative} {_CHANGED}") from error
        return False
    return True


class ChangedError(UserError):
    """A file is not the one that was listed."""


def create_once(uri: str, relative: str, data: bytes) -> bool:
    """Create a file that must not exist yet. Of several writers, one succeeds.

    On a disk without hard links, readers may see the file before it is whole.

    Args:
        uri: the folder.
        relative: the file.
        data: the content. It must differ between writers: when the answer to a successful write is lost, the
            retry is refused, and the writer recognises its own content.

    Returns:
        Whether this call created the file.
    """
    fs, target = locate(uri, relative)
    if is_local(fs):
        return _create_local(uri, relative, target, data)
    try:
        fs.pipe_file(target, data, mode="create")
    except OSError as error:
        if not _was_taken(uri, error):
            raise
        try:
            return fs.cat_file(target) == data
        except FileNotFoundError:
            return False
    return True


def delete(uri: str, relative: str) -> None:
    """Delete a file if it is there."""
    fs, target = locate(uri, relative)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(target)


def in_parallel(function: Callable[[T], R], items: list[T], threads: int = THREADS) -> list[R]:
    """Apply `function` to all items in up to `threads` threads; the results in the order of the items."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(function, items))


def locate(uri: str, relative: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem, and the path on it of a file in the folder `uri`.

    Raises:
        UserError: the relative path leaves the folder.
    """
    fs, root = connect(uri)
    # Names come from listings and run folders, which other people may have written.
    if relative.startswith("/") or ".." in relative.split("/"):
        raise UserError(
            f"The name {relative} leaves {uri}: take it out of the corpus or use a new output folder."
        )
    return fs, f"{root.rstrip('/')}/{relative}" if relative else root


def _is_s3(uri: str) -> bool:
    return uri.startswith(S3_PREFIXES)


def _upload(send: Callable[[int], object], size: int) -> None:
    """Upload by `send(chunk size)`. When the answer to the last request of a large upload is lost, the store
    no longer knows the upload, so it is repeated."""
    from poisoncam_ray.s3 import chunk_size

    for left in reversed(range(UPLOADS)):
        try:
            send(chunk_size(size))
            return
        except FileNotFoundError:
            if left == 0:
                raise


def _copy_in_kernel(source: int, sink: int) -> None:
    """Copy a whole file between two descriptors; OSError where the kernel cannot."""
    left = os.fstat(source).st_size
    while left:
        copied = os.copy_file_range(source, sink, left)
        if not copied:
            # Some file systems copy nothing and report no error.
            raise OSError(errno.ENOTSUP, "the kernel copied nothing")
        left -= copied


def _create_local(uri: str, relative: str, target: str, data: bytes) -> bool:
    folder = os.path.dirname(target)
    os.makedirs(folder, exist_ok=True)
    scratch = os.path.join(folder, f".writing-{uuid.uuid4().hex}")
    try:
        with open(scratch, "xb") as file:
            file.write(data)
        os.link(scratch, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        return _create_exclusively(target, data)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
    return True


def _create_exclusively(target: str, data: bytes) -> bool:
    try:
        with open(target, "xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


def _was_taken(uri: str, error: OSError) -> bool:
    if not _is_s3(uri):
        return isinstance(error, FileExistsError)
    from poisoncam_ray.s3 import was_taken

    return was_taken(error)
