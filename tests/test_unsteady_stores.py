"""A store that fails stops the job, which can be resumed, and makes no row dead; files that change are
refused."""

from __future__ import annotations

import errno
import hashlib
import uuid

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from poisoncam_ray.corpus import KEPT, open_corpus
from poisoncam_ray.errors import UserError
from tests.ledger import write_parquet
from tests.tars import image, rows_of, tar_bytes


class Far(MemoryFileSystem):
    """A remote store that fails while `trouble` is set."""

    protocol = "far"
    trouble: Exception | None = None

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("far:/"))

    def _open(self, path, mode="rb", **options):
        handle = super()._open(path, mode, **options)
        return FarFile(handle) if mode == "rb" else handle

    def cat_file(self, path, start=None, end=None, **options):
        if Far.trouble:
            raise Far.trouble
        return super().cat_file(path, start, end, **options)


class FarFile:
    def __init__(self, handle):
        self.handle = handle

    def read(self, size=-1):
        if Far.trouble:
            raise Far.trouble
        return self.handle.read(size)

    def __getattr__(self, name):
        return getattr(self.handle, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


fsspec.register_implementation("far", Far, clobber=True)


@pytest.mark.parametrize("kind", ["parquet", "tar", "png"])
@pytest.mark.parametrize(
    "trouble",
    [
        ConnectionResetError("reset"),
        TimeoutError("too slow"),
        OSError(errno.EBUSY, "SlowDown"),
        OSError(errno.EIO, "internal error"),
        PermissionError("the token expired"),
        RuntimeError("a client's own error"),
    ],
    ids=repr,
)
def test_trouble_with_a_store_is_never_a_dead_row(tmp_path, kind, trouble):
    root = f"far://{uuid.uuid4().hex}"
    fs = fsspec.filesystem("far")
    write_parquet(tmp_path / "a.parquet")
    tar = tar_bytes([("0.png", image(0)), ("1.png", image(1))])
    data = {"parquet": (tmp_path / "a.parquet").read_bytes(), "tar": tar, "png": image(0)}[kind]
    fs.pipe_file(f"{root}/a.{kind}", data)
    corpus = open_corpus(root, rows_per_slice=1)
    try:
        if kind != "png":
            Far.trouble = trouble
            with pytest.raises(type(trouble), match=str(trouble.args[-1])):
                corpus.slices()
        Far.trouble = None
        slices = corpus.slices()
        Far.trouble = trouble
        with pytest.raises(type(trouble), match=str(trouble.args[-1])):
            list(corpus.read(slices[0], whole=True))
    finally:
        Far.trouble = None
    assert not any(row.error for row in rows_of(corpus))


@pytest.mark.parametrize("kind", ["parquet", "tar", "png"])
def test_files_that_vanish_or_change_are_refused(tmp_path, kind):
    folder = tmp_path / "in"
    folder.mkdir()
    # Two other kinds lie beside it. A table of the tar's name would belong to the tar.
    write_parquet(folder / ("a.parquet" if kind == "parquet" else "b.parquet"))
    (folder / "a.tar").write_bytes(tar_bytes([("0.png", image(0))]))
    (folder / "a.png").write_bytes(image(0))
    form = {"parquet": "parquet", "tar": "webdataset", "png": "folder"}[kind]
    corpus = open_corpus(str(folder), form)
    (unit,), path = corpus.units(), folder / f"a.{kind}"
    whole = path.read_bytes()
    n = unit[-1].stop

    sha256 = {row.image_id: hashlib.sha256(row.data or b"").hexdigest() for row in corpus.read(unit[0])}

    def split():
        return corpus.split(unit, [KEPT] * n, str(tmp_path / "kept"), str(tmp_path / "removed"), sha256)

    path.write_bytes(whole[: len(whole) // 2])
    # A file of a folder has no version: read_slice compares what it reads with the index.
    for work in (split, lambda: list(corpus.read(unit[0])))[: 1 if kind == "png" else 2]:
        with pytest.raises(UserError, match=rf"a\.{kind} changed since it was indexed"):
            work()
    path.unlink()
    for work in (split, lambda: list(corpus.read(unit[0]))):
        with pytest.raises(UserError, match=rf"a\.{kind} is gone"):
            work()
    assert not [p for p in (tmp_path / "kept").rglob("*") if p.is_file()]
