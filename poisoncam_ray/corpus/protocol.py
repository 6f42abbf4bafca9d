"""What every corpus format can do, and the types that pass between a corpus and its users.

A corpus is a list of rows, in a fixed order. A row is one image with what belongs to it: a row of a Parquet
shard, a sample of a WebDataset shard, a file of an image folder. A slice is a run of rows, the unit of
reading. A unit is the slices that one writing task handles. A source is one file of the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

KEPT, REMOVED, DEAD = 0, 1, 2
"""The fates of a row, as `fate_N` holds them. A dead row has no image that decodes."""

UNREADABLE_SHARD = "unreadable_shard"
"""Kind of a dead row: the shard cannot be opened, or not be followed from this row on."""
OTHER_SCHEMA = "other_schema"
"""Kind of a dead row: the shard has no image column, or one of another type."""


@dataclass(frozen=True)
class Source:
    """One file of a corpus.

    Attributes:
        path: relative to the corpus.
        size: in bytes.
        tag: the store's name for this version of the file: its ETag, or on a disk the modification time in
            nanoseconds.
    """

    path: str
    size: int
    tag: str


@dataclass(frozen=True)
class Slice:
    """A run of neighbouring rows: the unit of reading and of committing.

    Attributes:
        index: the slice's number in the corpus, from 0.
        source: the path of the shard that holds the rows; "." in an image folder.
        start: number of the first row, counted from 0 in the shard, or in the sorted listing of the folder.
        stop: number after that of the last row.
        files: the images' paths, in an image folder; None in shards.
        version: the shard's size and tag when it was listed; None in an image folder.
        error: why none of the shard's rows can be read: all rows of the slice are dead. None when they can.
            A shard whose rows cannot be counted has one row.
        span: the slice's bytes [from, to) in a tar; None in other formats.
        twins: rows of the slice whose key occurs again in the tar; None in other formats.
        kind: what the dead rows call the `error`.
        beside: captions of the images, in an image folder; None in shards.
    """

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
    beside: tuple[str, ...] | None = None

    def image_id(self, i: int) -> str:
        """The id of the slice's row number `i`, counted from 0, as reading the slice gives it."""
        return self.files[i] if self.files is not None else f"{self.source}#{self.start + i}"


@dataclass(frozen=True)
class Row:
    """One image as it is stored.

    Attributes:
        row: its number, counted as `Slice.start` is.
        image_id: unique in the corpus: "<shard>#<row>", or the path of the file in an image folder.
        data: the bytes; None for a row with an `error`, and for one whose image is null, which is kept.
        error: (kind, message) of a row that cannot be read, which is dead; None for the others.
    """

    row: int
    image_id: str
    data: bytes | None
    error: tuple[str, str] | None = None


Lost = Callable[[], Mapping[str, int]]
"""Gives REMOVED or DEAD for each row that is not kept, by its image id."""


@dataclass(frozen=True)
class Problem:
    """Why none of the rows of a shard can be read.

    Attributes:
        source: the shard's path relative to the corpus, as listed.
        rows: how many rows the shard has, by its footer; None when they cannot be counted.
        kind: UNREADABLE_SHARD or OTHER_SCHEMA, as the dead rows call it.
        reason: in words, on one printable line, without a full stop.
    """

    source: str
    rows: int | None
    kind: str
    reason: str


class Corpus(Protocol):
    """A corpus of any format. `open_corpus` makes one.

    It holds no open handle, so it travels to other processes. A store that does not answer raises the store's
    own exception from every method: that says nothing about the rows.

    Attributes:
        sharded: whether a file holds many rows, which can all become unreadable together; False where each
            file is one row.
    """

    sharded: ClassVar[bool]

    @property
    def uri(self) -> str:
        """The folder that holds the files."""

    def sources(self) -> list[Source]:
        """List the corpus's files.

        Returns:
            The files, sorted by path. Files of other kinds and hidden files are left out.

        Raises:
            UserError: there is nothing at `uri`, a file cannot be part of a corpus (a name that is not UTF-8,
                a link that leads elsewhere), or access was refused.
        """

    def check(self, source: Source) -> Problem | None:
        """Open one file and look whether its rows can be read, without reading them.

        Args:
            source: the file as listed.

        Returns:
            Why none of its rows can be read; None when there is no such reason. Damage further inside is
            found where the rows are read. Always None in a corpus that is not `sharded`.

        Raises:
            UserError: the file is gone or changed since it was listed.
        """

    def slices(self, sources: Sequence[Source] | None = None) -> list[Slice]:
        """Cut the corpus into slices: every row is in one of them, in order.

        Args:
            sources: the files as listed; None to list them.

        Returns:
            The slices, of at most `rows_per_slice` rows, numbered from 0. A slice never spans two shards. A
            shard without rows has one empty slice; one that cannot be read has slices with an `error`.

        Raises:
            UserError: no file gives a row, or a file is gone or changed since it was listed.
        """

    def units(self, slices: Sequence[Slice] | None = None) -> list[list[Slice]]:
        """Group the slices into units: what one writing task handles, so that no two write one file.

        Args:
            slices: the slices of the corpus, in order; None to cut them.

        Returns:
            The units, in order: all slices of a shard, or one slice of an image folder.
        """

    def read(self, slice_: Slice, whole: bool = False) -> Iterator[Row]:
        """Read a slice, row by row, in bounded memory.

        Args:
            slice_: the slice.
            whole: whether everything that belongs to a row must be readable, as writing it demands, or its
                image alone.

        Yields:
            Every row of the slice once, in order. A row that cannot be read has an `error`.

        Raises:
            UserError: the file is gone or changed since the slice was cut, or the slice's names lead out of
                the corpus.
        """

    def fetch(self, image_ids: Sequence[str]) -> list[bytes]:
        """Read images from anywhere in the corpus.

        Args:
            image_ids: ids of rows that can be read, as `read` gives them; repeats are allowed.

        Returns:
            The stored bytes, in the order of `image_ids`.

        Raises:
            UserError: an image is gone, null or cannot be read, or its name leads out of the corpus.
        """

    def split(
        self,
        unit: Sequence[Slice],
        fate_N: Sequence[int] | np.ndarray,
        kept_uri: str | None,
        removed_uri: str,
        sha256: Mapping[str, str] | None = None,
    ) -> tuple[int, int]:
        """Copy the kept rows of a unit to one place and the removed rows to another, in the corpus's own
        layout.

        Paths, bytes and all that belongs to a row stay as they are. Each written file appears whole or not at
        all, and replaces what an earlier try of the same run left. Dead rows go nowhere. A Parquet
        shard without kept rows is written empty to `kept_uri`, unless it cannot be read at all, so that it
        keeps its schema. A tar that loses all its samples is not written there: some tools fail on an empty
        one. A shard without removed rows is not written to `removed_uri`.

        Args:
            unit: the slices of the unit, in order.
            fate_N: KEPT, REMOVED or DEAD for each row of the unit, counted from the shard's first row.
            kept_uri: the folder for the kept rows; None to write the removed rows alone. The unit may then be
                some slices of a shard, and the rows after them are left alone.
            removed_uri: the folder for the removed rows.
            sha256: of an image folder, the digest in hex that each image had when it was indexed, by image
                id. Shards do not need it: `Slice.version` tells of a change.

        Returns:
            How many rows are kept, and written to `kept_uri` if there is one, and how many were written to
            `removed_uri`.

        Raises:
            UserError: a file is gone or changed, a row that is not DEAD cannot be read, an output is the
                corpus itself, or a name leads out of the corpus.
            ValueError: there is not one fate for each row.
        """

    def finish(self, kept_uri: str, removed_uri: str, lost: Lost) -> None:
        """Write what belongs to no row or to many, once all units are split: a list of the shards, the
        metadata of an image folder. It may be called again, and does nothing in most formats. Where the kept
        rows were not written, it writes nothing to `kept_uri`.

        Args:
            kept_uri: the folder of the kept rows.
            removed_uri: the folder of the removed rows.
            lost: gives the rows that are not kept.

        Raises:
            UserError: a file is gone, cannot be read, or names an image outside the corpus.
        """
