"""Metadata files of an image folder, as Hugging Face's imagefolder reads them, split along with the images.

A row names its images in the columns `file_name`, `file_names`, `*_file_name` and `*_file_names`, relative to
the file's own folder. Rows keep their order and their bytes. A row that names no image of the corpus is kept.
"""

from __future__ import annotations

import contextlib
import csv
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from poisoncam_ray.corpus.parquet_shard import Shard, open_shard, open_writer, rows_where
from poisoncam_ray.corpus.protocol import DEAD, KEPT, REMOVED
from poisoncam_ray.corpus.shardfile import ShardFile, copy_range, one_line, open_file, open_sink
from poisoncam_ray.errors import UserError
from poisoncam_ray.store import delete

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
LINE_MAX = 2**24
"""Bytes of a line or row, at most."""
_READ_AT_ONCE = 2**20
_NAMES, _NAME_ENDS = ("file_name", "file_names"), ("_file_name", "_file_names")

TextRow = tuple[bytes, list[str] | None]
"""The bytes of a row and the names in it; None instead of names for a header."""


def is_metadata(path: str) -> bool:
    """Whether the path is that of a metadata file."""
    return posixpath.basename(path) in METADATA_NAMES


def check_metadata(uri: str, path: str) -> None:
    """Read a metadata file from end to end, in bounded memory.

    Args:
        uri: the corpus.
        path: of the file in it.

    Raises:
        UserError: the file cannot be read, is not what its name says, or names an image outside the corpus.
    """
    if path.endswith(".parquet"):
        with open_shard(uri, path) as shard:
            for _ in _fates(shard, {}):
                pass
        return
    with open_file(uri, path, None) as file:
        for _, names in _text_rows(file, path):
            _fate(path, names or (), {})


def split_metadata(
    uri: str, path: str, lost: Mapping[str, int], kept_uri: str | None, removed_uri: str
) -> None:
    """Write the rows of a metadata file to where their images went. Rows of dead images go nowhere, and a row
    of several images goes where the worst of them went. A place without a row gets no file.

    Args:
        uri: the corpus.
        path: of the file in it.
        lost: REMOVED or DEAD for each image that is not kept, by its id.
        kept_uri: the folder of the kept images; None to write nothing there.
        removed_uri: the folder of the removed images.

    Raises:
        UserError: as `check_metadata`.
    """
    places = {KEPT: kept_uri, REMOVED: removed_uri}
    split = _split_parquet if path.endswith(".parquet") else _split_text
    written = split(uri, path, lost, {fate: place for fate, place in places.items() if place is not None})
    for fate, place in places.items():
        if place is not None and fate not in written:
            delete(place, path)


def _split_text(uri: str, path: str, lost: Mapping[str, int], places: Mapping[int, str]) -> set[int]:
    header = b""
    sinks: dict[int, BinaryIO] = {}
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_file(uri, path, None))
        for raw, names in _text_rows(file, path):
            if names is None:
                header = raw
                continue
            fate = _fate(path, names, lost)
            if fate not in places:
                continue
            if fate not in sinks:
                sinks[fate] = stack.enter_context(open_sink(places[fate], path))
                sinks[fate].write(header)
            sinks[fate].write(raw)
    return set(sinks)


def _split_parquet(uri: str, path: str, lost: Mapping[str, int], places: Mapping[int, str]) -> set[int]:
    with open_shard(uri, path) as shard:
        fates = np.fromiter(_fates(shard, lost), np.int8)
        if (fates == KEPT).all():
            if KEPT in places:
                with open_sink(places[KEPT], path) as sink:
                    copy_range(shard.handle, 0, shard.handle.source.size, sink)
            return {KEPT}
        there = {fate: place for fate, place in places.items() if (fates == fate).any()}
        with contextlib.ExitStack() as stack:
            writers = {fate: stack.enter_context(open_writer(shard, place)) for fate, place in there.items()}
            first = 0
            for group, n in enumerate(shard.group_rows):
                table = shard.table(group, n)
                for fate, write in writers.items():
                    write(rows_where(table, fates[first : first + n] == fate))
                first += n
    return set(there)


def _fates(shard: Shard, lost: Mapping[str, int]) -> Iterator[int]:
    columns = [name for name in shard.schema.names if _names_files(name)]
    for batch in shard.batches(0, shard.n_rows, columns or None):
        rows = batch.values().to_pylist() if columns else [{}] * batch.rows
        for row in rows:
            yield _fate(shard.source, _names(row), lost)


def _text_rows(file: ShardFile, path: str) -> Iterator[TextRow]:
    lines = _lines(file, path)
    try:
        yield from _json_rows(lines, path) if path.endswith(".jsonl") else _csv_rows(lines, path)
    except csv.Error as error:
        raise UserError(
            f"{path} is no CSV file ({one_line(str(error))}): mend it, or take it out."
        ) from error


def _lines(file: ShardFile, path: str) -> Iterator[bytes]:
    """The lines, each with its end."""
    rest = b""
    while chunk := file.read(_READ_AT_ONCE):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line + b"\n" for line in whole)
        if len(rest) > LINE_MAX:
            raise UserError(f"{path} has a line of more than {LINE_MAX} bytes: mend it, or take it out.")
    if rest:
        yield rest


def _json_rows(lines: Iterable[bytes], path: str) -> Iterator[TextRow]:
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode("utf-8-sig")) if line.strip() else {}
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f"Line {number} of {path} is no JSON object: mend it, or take the file out.")
        yield line, _names(row)


def _csv_rows(lines: Iterable[bytes], path: str) -> Iterator[TextRow]:
    """A row may span several lines: what the parser took for it are its bytes."""
    taken: list[bytes] = []

    def text() -> Iterator[str]:
        size = 0
        for line in lines:
            size = len(line) + (size if taken else 0)
            if size > LINE_MAX:
                raise UserError(f"{path} has a row of more than {LINE_MAX} bytes: mend it, or take it out.")
            taken.append(line)
            yield line.decode("utf-8", "surrogateescape")

    reader = csv.reader(text())
    columns = [name.removeprefix("\ufeff") for name in next(reader, [])]
    yield b"".join(taken), None
    taken.clear()
    for values in reader:
        yield b"".join(taken), _names(dict(zip(columns, values, strict=False)))
        taken.clear()


def _names_files(column: str) -> bool:
    return column in _NAMES or column.endswith(_NAME_ENDS)


def _names(row: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for column, value in row.items():
        if _names_files(column):
            found += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str) and v]
    return found


def _fate(path: str, names: Iterable[str], lost: Mapping[str, int]) -> int:
    """Where a row of the metadata file `path` goes."""
    fates = {lost.get(_image_id(path, name), KEPT) for name in names}
    return next((fate for fate in (REMOVED, DEAD) if fate in fates), KEPT)


def _image_id(path: str, name: str) -> str:
    """The id of the image that a metadata file names.

    Raises:
        UserError: the name leads out of the corpus.
    """
    image_id = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
    if image_id.startswith(("/", "../")) or image_id == "..":
        raise UserError(f"{path} names {one_line(name)!r}, which leaves the corpus: mend that row.")
    return image_id
