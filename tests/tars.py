"""Tar shards for tests, written and read back by the standard library alone."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from poisoncam_ray.corpus import Corpus, Row, open_corpus

Members = Iterable[tuple[str | tarfile.TarInfo, bytes]]


def tar_bytes(members: Members, format: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of files (name, content); a TarInfo in place of the name is used as it is."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def special(name: str, type: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, target
    return info


def raw_members(path: Path) -> list[tuple[str, bytes]]:
    """Names and all bytes (headers, content, padding) of each member, as the standard library sees them."""
    whole = path.read_bytes()
    with tarfile.open(path, "r:") as archive:
        found = archive.getmembers()
    stops = [info.offset_data + (-(-info.size // 512) * 512 if info.isreg() else 0) for info in found]
    return [(info.name, whole[info.offset : stop]) for info, stop in zip(found, stops, strict=True)]


def image(i: int = 0, size: int = 4) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (i % 256, i // 256, 7)).save(out, "PNG")
    return out.getvalue()


def corpus_of(folder: Path, *archives: bytes, **options) -> Corpus:
    """The corpus `folder`/in of these archives, 0.tar, 1.tar …"""
    (folder / "in").mkdir(exist_ok=True)
    for i, archive in enumerate(archives):
        (folder / "in" / f"{i}.tar").write_bytes(archive)
    return open_corpus(str(folder / "in"), **options)


def rows_of(corpus: Corpus, whole: bool = True) -> list[Row]:
    """Every row, read slice by slice."""
    return [row for slice_ in corpus.slices() for row in corpus.read(slice_, whole)]


def plain_members(n: int = 6) -> list[tuple[str, bytes]]:
    return [
        member
        for i in range(n)
        for member in (
            (f"set/{i:04d}.png", image(i)),
            (f"set/{i:04d}.cls", str(i % 3).encode()),
            (f"set/{i:04d}.json", json.dumps({"colour": f"c{i}", "none": None}).encode()),
        )
    ]


def pax(records: bytes, type: bytes = tarfile.XHDTYPE, size: int | None = None) -> bytes:
    return one("pax", records, size, type)


def record(key: str, value: str) -> bytes:
    n = len(key) + len(value) + 3
    total = n + len(str(n + len(str(n))))
    return f"{total} {key}={value}\n".encode()


def one(name: str, data: bytes = b"data", size: int | None = None, type: bytes = tarfile.REGTYPE) -> bytes:
    info = special(name, type)
    info.size = len(data) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)
