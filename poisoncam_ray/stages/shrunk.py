"""Smaller copies of the images (`corpus.shrink_to`): Index makes them in its one pass, beside the index, and
whoever looks at images decodes them in place of the corpus's.

They are no output. Boxes stay in pixels of the stored images, so each copy says how large its image is.

Torch is not imported here: reading and decoding tasks run in many processes, and it would cost each of them
seconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.decode import MAX_BYTES, shrink
from poisoncam_ray.errors import LedgerError, StoreAwayError
from poisoncam_ray.folder import Folder, part_name
from poisoncam_ray.method.crops import shrunk_size
from poisoncam_ray.store import in_parallel, whole_file

GROUP_ROWS = 32
"""Rows of a row group: so many are in memory, and are read for one of them."""
BYTES_A_PIXEL, BYTES_FREE = 3, 2**16
"""A small image is stored as it is, unless it has more bytes than this: then it is encoded anew."""


class Encoded(NamedTuple):
    """An image before it is decoded.

    Attributes:
        data: the bytes; None in a row that has none.
        size: width and height of the stored image, of which `data` may be a smaller copy; None where `data`
            is the stored image and says it itself.
        shown: a copy of the image as a viewer shows it; None where that is no other picture, or `data` gives
            both.
    """

    data: bytes | None
    size: tuple[int, int] | None = None
    shown: bytes | None = None


class Copy(NamedTuple):
    """A row of SHRUNK_SCHEMA."""

    image_id: str
    width: int
    height: int
    image: bytes
    shown: bytes | None


def copy_of(image_id: str, data: bytes, width: int, height: int, config: Config) -> Copy | None:
    """Make the copy of an image.

    Args:
        image_id: the image's id.
        data: the stored bytes.
        width: of the image, in pixels.
        height: of the image, in pixels.
        config: the configuration, with `corpus.shrink_to`.

    Returns:
        The copy; None where the stored bytes take its place, which are not decoded here.

    Raises:
        DecodeError: the bytes give no image.
    """
    limits = config.corpus
    assert limits.shrink_to is not None
    size = shrunk_size(width, height, limits.shrink_to)
    if size == (width, height) and len(data) <= min(MAX_BYTES, BYTES_A_PIXEL * width * height + BYTES_FREE):
        return None
    image, shown = shrink(data, size, limits.max_pixels, limits.max_bytes)
    return Copy(image_id, width, height, image, shown)


def write_copies(index: Folder, part: str, copies: Iterator[Copy]) -> None:
    """Write the copies of one slice as they come, a row group in memory. Without any, no file is left.

    Args:
        index: the artifact of Index.
        part: the name of the slice's part.
        copies: one for each row of the part, in its order.
    """
    folder, first = index / artifact.SHRUNK, next(copies, None)
    if first is None:
        # An earlier try that did not end may have left one.
        folder.delete(part)
        return
    # JPEGs do not compress, and statistics would hold whole images.
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with (
        whole_file(folder.uri, part) as path,
        pq.ParquetWriter(path, artifact.SHRUNK_SCHEMA, **options) as writer,
    ):
        waiting = [first]
        for copy in copies:
            if len(waiting) == GROUP_ROWS:
                writer.write_table(_table(waiting))
                waiting = []
            waiting.append(copy)
        writer.write_table(_table(waiting))


def _table(copies: Iterable[Copy]) -> pa.Table:
    columns = zip(*copies, strict=True)
    return pa.table(dict(zip(Copy._fields, columns, strict=True)), schema=artifact.SHRUNK_SCHEMA)


@dataclass(frozen=True)
class Copies:
    """The copies of a run.

    Attributes:
        index: the artifact of Index.
    """

    index: Folder

    def __reduce__(self) -> tuple[type[Copies], tuple[Folder]]:
        """Without the slices, which each process reads itself."""
        return Copies, (self.index,)

    def read(self, part: str, wanted: Mapping[int, str]) -> Iterator[Encoded]:
        """Read copies of one slice, a row group in memory.

        Args:
            part: the name of the slice's part.
            wanted: the ids of images by their places in the index part, ascending.

        Raises:
            LedgerError: they are not there, or are those of other images.
        """
        if not wanted:
            return
        left = len(wanted)
        with self._open(part) as copies:
            first = 0
            for group in range(copies.num_row_groups):
                places = range(first, first + copies.metadata.row_group(group).num_rows)
                first = places.stop
                if not any(place in wanted for place in places):
                    continue
                for place, row in zip(places, copies.read_row_group(group).to_pylist(), strict=True):
                    if place not in wanted:
                        continue
                    if row["image_id"] != wanted[place]:
                        raise LedgerError(f"The copies of {part} in {self.index.uri} are of other images")
                    left -= 1
                    yield Encoded(row["image"], (row["width"], row["height"]), row["shown"])
        if left:
            raise self._gone(part)

    def ids(self, part: str) -> list[str]:
        """The ids of one slice's copies.

        Raises:
            LedgerError: they are not there, or cannot be read.
        """
        with self._open(part) as copies:
            return copies.read(["image_id"])["image_id"].to_pylist()

    def fetch(self, image_ids: Sequence[str]) -> list[Encoded]:
        """Read the copies of images anywhere in the corpus, in the order asked; repeats are allowed.

        Raises:
            LedgerError: an image has no copy.
        """
        by_part: dict[str, set[str]] = {}
        for image_id in image_ids:
            by_part.setdefault(part_name(self._slices.holder(image_id)), set()).add(image_id)

        def of_part(part: str) -> dict[str, Encoded]:
            indexed = self.index.read_table(part, ["image_id"])["image_id"].to_pylist()
            wanted = {place: one for place, one in enumerate(indexed) if one in by_part[part]}
            return dict(zip(wanted.values(), self.read(part, wanted), strict=True))

        found: dict[str, Encoded] = {}
        for some in in_parallel(of_part, list(by_part)):
            found |= some
        if lost := [image_id for image_id in image_ids if image_id not in found]:
            raise LedgerError(f"There is no copy of {lost[0]} in {self.index.uri}")
        return [found[image_id] for image_id in image_ids]

    @contextmanager
    def _open(self, part: str) -> Iterator[pq.ParquetFile]:
        try:
            with (self.index / artifact.SHRUNK).open(part) as file:
                yield pq.ParquetFile(file, pre_buffer=True)
        except StoreAwayError:
            raise
        except (OSError, pa.ArrowException, KeyError) as error:
            raise self._gone(part) from error

    def _gone(self, part: str) -> LedgerError:
        return LedgerError(
            f"{self.index.uri}/{artifact.SHRUNK}/{part} is gone or damaged: give the same command with "
            "--redo index, or use a new output folder"
        )

    @cached_property
    def _slices(self) -> _Slices:
        return _Slices(self.index.read_table(artifact.SLICES, ["index", "source", "start", "files"]))


class _Slices:
    """Which slice holds an image."""

    def __init__(self, table: pa.Table) -> None:
        # An image folder's slices are runs of the sorted paths.
        self.folder = table["files"].null_count < len(table)
        names = pc.list_element(table["files"], 0) if self.folder else table["source"]
        numbers = zip(names.to_pylist(), table["start"].to_pylist(), table["index"].to_pylist(), strict=True)
        self.firsts: list[tuple[Any, ...]] = sorted(numbers)

    def holder(self, image_id: str) -> int:
        """The index of the slice that holds an image, if one does."""
        source, _, row = image_id.rpartition("#")
        key = (image_id, float("inf")) if self.folder else (source, int(row))
        place = bisect_right(self.firsts, (*key, float("inf"))) - 1
        return int(self.firsts[max(0, place)][-1])
