"""WebDataset tar shards as a corpus: a sample is a row, and "<shard>#<row>" is its image id.

A sample is a run of neighbouring members with one key. If a key comes back later in its shard, all samples of
that key are dead: readers do not agree on what belongs together. Entries of folders go to the kept shard. A
shard may have a table beside it (`side`), which is split along with it.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from poisoncam_ray.corpus import side
from poisoncam_ray.corpus.listing import PARQUET_SUFFIXES, refuse_same_place
from poisoncam_ray.corpus.protocol import (
    DEAD,
    KEPT,
    REMOVED,
    UNREADABLE_SHARD,
    Lost,
    Problem,
    Row,
    Slice,
    Source,
)
from poisoncam_ray.corpus.samples import REST, Fault, Sample, numbered, samples, shown
from poisoncam_ray.corpus.shardfile import (
    ShardFile,
    UnreadableError,
    by_shard,
    copy_range,
    copy_whole,
    dead_rows,
    fetch_by_shard,
    list_shards,
    open_file,
    open_sink,
    refuse_all_dead,
    refuse_climbing,
    version_of,
)
from poisoncam_ray.corpus.tar import END, Member, TarError, walk
from poisoncam_ray.errors import UserError
from poisoncam_ray.store import delete, exists, in_parallel

TAR_SUFFIXES = (".tar",)
# For remote stores. Headers lie between the images: reading on is faster than one request for each header,
# for images of up to some MB.
READAHEAD: dict[str, Any] = {"cache_type": "readahead", "block_size": 2**22}
# A check reads a few headers.
_READAHEAD_START: dict[str, Any] = {"cache_type": "readahead", "block_size": 2**16}
_FETCHES = 4
# In place of a key's digest: of the row for the rest of a damaged shard, of which there is one at most.
_UNKNOWN = 0


@dataclass(frozen=True)
class WebDatasetCorpus:
    """Tar shards under `uri`, at any depth. `protocol.Corpus` says what the methods promise.

    Attributes:
        uri: the folder.
        extension: extension of the member that holds the image; "" for the only image (IMAGE_SUFFIXES).
        rows_per_slice: samples of a slice, at most.
        only: the corpus's only shard; "" for all.
        tables: whether shards have tables beside them.
        follow_links: whether links that leave the folder are followed.
    """

    sharded: ClassVar[bool] = True

    uri: str
    extension: str = ""
    rows_per_slice: int = 1024
    only: str = ""
    tables: bool = False
    follow_links: bool = False

    def sources(self) -> list[Source]:
        """All shards, and the tables and the counts beside them, sorted by path."""
        suffixes = (*TAR_SUFFIXES, *PARQUET_SUFFIXES, side.STATS) if self.tables else TAR_SUFFIXES
        found = list_shards(self.uri, self.only, suffixes, self.follow_links)
        tars = [source.path for source in found if _is_tar(source)]
        beside = {name(tar) for tar in tars for name in (side.table_of, side.stats_of)}
        return [source for source in found if _is_tar(source) or source.path in beside]

    def check(self, source: Source) -> Problem | None:
        """Read the headers of the shard's first sample, and the table beside it. A problem is a shard that
        cannot be opened or is damaged before its first sample ends, or a damaged table; later damage of the
        shard costs the rows after it."""
        if not _is_tar(source):
            return None  # its tar tells
        try:
            self._read_table(source.path)
            with open_file(self.uri, source.path, version_of(source), **_READAHEAD_START) as file:
                size = file.source.size
                first = next(samples(file, 0, size, size, self.extension), None)
        except UnreadableError as error:
            return Problem(source.path, None, UNREADABLE_SHARD, error.reason)
        if first is None or first.fault is None or first.fault[0] != UNREADABLE_SHARD:
            return None
        return Problem(source.path, None, UNREADABLE_SHARD, first.fault[1].removesuffix(REST))

    def slices(self, sources: Sequence[Source] | None = None) -> list[Slice]:
        """Runs of samples. Reads every header once (on a remote store: nearly every byte), and holds a few
        dozen bytes for each sample of sixteen shards at a time. A shard in which nothing can be read gives
        one dead row."""
        listed = self.sources() if sources is None else sources
        shards = in_parallel(self._scan, [source for source in listed if _is_tar(source)])
        flat = [slice_ for slices in shards for slice_ in slices]
        refuse_all_dead(self.uri, flat, "Tar")
        return [replace(slice_, index=i) for i, slice_ in enumerate(flat)]

    def units(self, slices: Sequence[Slice] | None = None) -> list[list[Slice]]:
        """All slices of each shard."""
        return by_shard(self.slices() if slices is None else slices)

    def read(self, slice_: Slice, whole: bool = False) -> Iterator[Row]:
        """The samples, one image in memory. `whole` changes nothing: all members of a sample are found before
        its image is read."""
        if slice_.error is not None:
            yield from dead_rows(slice_)
            return
        source, row = slice_.source, slice_.start
        with open_file(self.uri, source, slice_.version, **READAHEAD) as file:
            try:
                for sample in self.samples(file, slice_):
                    data, fault = self._image(file, sample)
                    yield Row(row, f"{source}#{row}", data, fault)
                    row += 1
            except UnreadableError as error:
                for dead in range(row, slice_.stop):
                    yield Row(dead, f"{source}#{dead}", None, ("unreadable", error.reason))
                return
        if row != slice_.stop:
            raise UserError(f"The shard {source} changed since it was indexed: index again.")

    def fetch(self, image_ids: Sequence[str]) -> list[bytes]:
        """The bytes of these images, in the order asked. The first call that needs a shard reads its headers;
        the process remembers where its samples lie."""
        return fetch_by_shard(image_ids, self._fetch_rows, _FETCHES)

    def split(
        self,
        unit: Sequence[Slice],
        fate_N: Sequence[int] | np.ndarray,
        kept_uri: str | None,
        removed_uri: str,
        sha256: Mapping[str, str] | None = None,
    ) -> tuple[int, int]:
        """Copy the members of the kept and the removed samples, byte for byte, headers included. A shard that
        loses no sample is copied whole, with what no sample holds. A shard that loses all is not written:
        `datasets.load_dataset` fails where the first tar is empty. The table beside it is split by the same
        fates. `sha256` is not used."""
        source, fates = unit[0].source, np.asarray(fate_N)
        refuse_climbing(source)
        if len(fates) != unit[-1].stop:
            raise ValueError(f"{len(fates)} fates for {unit[-1].stop} samples")
        removed = int((fates == REMOVED).sum())
        refuse_same_place(self.uri, kept_uri, removed_uri)
        kept = int((fates == KEPT).sum())
        if not removed:
            self._delete(removed_uri, source)
        if kept_uri is not None and not kept and len(fates):
            self._delete(kept_uri, source)
        if unit[0].error is not None:
            return 0, 0
        if not removed and kept == len(fates):
            if kept_uri is not None:
                copy_whole(self.uri, unit[0], kept_uri)
                self.copy_beside((side.table_of(source), side.stats_of(source)), kept_uri)
            return kept, 0
        places = {KEPT: kept_uri if kept else None, REMOVED: removed_uri if removed else None}
        written = {fate: uri for fate, uri in places.items() if uri is not None}
        if written:
            fate_of = self._split(unit[0], fates, written)
            table = side.table_of(source)
            if self._has(table):
                # Where no sample is kept there is no kept table. In a list of the removed rows alone, the
                # others stay where they are.
                side.split_table(
                    self.uri, table, fate_of, written, KEPT if kept or kept_uri is None else REMOVED
                )
            if KEPT in written:
                self.copy_beside((side.stats_of(source),), written[KEPT])
        return kept, removed

    def finish(self, kept_uri: str, removed_uri: str, lost: Lost) -> None:
        """Nothing: all that is in the corpus belongs to a row."""

    def copy_beside(self, paths: Sequence[str], out_uri: str) -> None:
        """Copy those of the files that lie beside a shard, byte for byte.

        Args:
            paths: a shard's table (`side.table_of`), what was counted of it (`side.stats_of`), or both.
            out_uri: the folder for the copies.
        """
        for path in paths:
            if self._has(path):
                copy_whole(self.uri, Slice(0, path, 0, 0), out_uri)

    def samples(self, file: ShardFile, slice_: Slice) -> Iterator[Sample]:
        """The samples of a slice, in order.

        Args:
            file: the slice's shard, open.
            slice_: the slice.
        """
        twins = set(slice_.twins or ())
        size = file.source.size
        start, stop = slice_.span or (0, size)
        for row, sample in enumerate(samples(file, start, stop, size, self.extension), slice_.start):
            if row in twins and (sample.fault or ("",))[0] not in (UNREADABLE_SHARD, "unsafe_member"):
                sample.fault = "duplicate_key", f"{shown(sample.key or '')} occurs again in the shard"
            yield sample

    def _has(self, path: str) -> bool:
        """Whether a file that belongs to a shard lies beside it."""
        return self.tables and exists(self.uri, path)

    def _delete(self, out_uri: str, source: str) -> None:
        """Delete what an earlier try wrote of a shard."""
        beside = (side.table_of(source), side.stats_of(source)) if self.tables else ()
        for path in (source, *beside):
            delete(out_uri, path)

    def _read_table(self, source: str) -> tuple[str, np.ndarray] | None:
        """The key column and the digests of the keys of the table beside a shard; None if there is none.

        Raises:
            UnreadableError: the table is damaged.
        """
        return side.read_keys(self.uri, side.table_of(source)) if self._has(side.table_of(source)) else None

    def _image(self, file: ShardFile, sample: Sample) -> tuple[bytes | None, Fault | None]:
        if sample.fault:
            return None, sample.fault
        member = sample.image(self.extension)
        try:
            file.seek(member.data)
            return file.read(member.size), None
        except UnreadableError as error:
            return None, ("unreadable", error.reason)

    def _scan(self, source: Source) -> list[Slice]:
        """The shard's slices, not numbered yet."""
        version = version_of(source)
        try:
            table = self._read_table(source.path)
            starts, keys, twins, error = _layout(self.uri, source.path, version, self.extension)
        except UnreadableError as unreadable:
            return [
                Slice(0, source.path, 0, 1, version=version, error=unreadable.reason, kind=UNREADABLE_SHARD)
            ]
        if table is not None and error is None:
            _refuse_other_keys(source.path, keys, *table)
        if error is not None:
            return [Slice(0, source.path, 0, 1, version=version, error=error, kind=UNREADABLE_SHARD)]
        slices = []
        for first in range(0, max(len(starts), 1), self.rows_per_slice):
            stop = min(first + self.rows_per_slice, len(starts))
            begin = int(starts[first]) if first else 0
            end = int(starts[stop]) if stop < len(starts) else source.size
            here = tuple(twins[(twins >= first) & (twins < stop)].tolist())
            slices.append(Slice(0, source.path, first, stop, version=version, span=(begin, end), twins=here))
        return slices

    def _fetch_rows(self, source: str, rows: set[int]) -> dict[str, bytes]:
        with open_file(self.uri, source, None, **READAHEAD) as file:
            version, size = version_of(file.source), file.source.size
            starts, *_ = _layout(self.uri, source, version, self.extension)
            found: dict[str, bytes] = {}
            for row in sorted(rows):
                data = None
                if row < len(starts):
                    sample = next(samples(file, int(starts[row]), size, size, self.extension))
                    data, _ = self._image(file, sample)
                if data is None:
                    raise UserError(f"The image {source}#{row} cannot be read: index the corpus again.")
                found[f"{source}#{row}"] = data
        return found

    def _split(self, slice_: Slice, fates: np.ndarray, places: Mapping[int, str]) -> dict[str, int]:
        """Split the whole shard of `slice_` to the folder of each fate in `places`. The fate by sample's
        key."""
        source = slice_.source
        fate_of: dict[str, int] = {}
        written: dict[int, set[int]] = {fate: set() for fate in places}
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open_file(self.uri, source, slice_.version, **READAHEAD))
            sinks = {fate: stack.enter_context(open_sink(uri, source)) for fate, uri in places.items()}
            for fate, row, member in _fated(file, fates):
                if member.key is not None:
                    fate_of[member.key] = fate
                if fate in sinks:
                    copy_range(file, member.start, member.stop, sinks[fate])
                    if row is not None:
                        written[fate].add(row)
            for sink in sinks.values():
                sink.write(END)
            if any(len(rows) != int((fates == fate).sum()) for fate, rows in written.items()):
                raise UserError(f"The shard {source} changed since it was indexed: index again.")
        return fate_of


def _is_tar(source: Source) -> bool:
    return source.path.lower().endswith(TAR_SUFFIXES)


def _refuse_other_keys(source: str, keys: np.ndarray, column: str, found: np.ndarray) -> None:
    """Raise UserError if no sample's key is in the table's column, or if the column has a name that may mean
    something else and a sample's key is not in it: rows of removed samples would stay."""
    missing = int((~np.isin(keys, found) & (keys != _UNKNOWN)).sum())
    if missing and missing == len(keys):
        raise UserError(
            f"None of the {missing} samples of {source} has a row in {side.table_of(source)} by the column "
            f"{column}: put the keys there, which are the members' names up to the first dot of the file "
            "name, or take the table away."
        )
    if missing and column != side.KEYS[0]:
        raise UserError(
            f"{missing} of the {len(keys)} samples of {source} have no row in {side.table_of(source)}, whose "
            f"column {column} may hold something else: rename the column with the keys to {side.KEYS[0]}."
        )


def _fated(file: ShardFile, fates: np.ndarray) -> Iterator[tuple[int, int | None, Member]]:
    """Every member with its sample's fate and row. Global headers go to both shards, folders to the kept
    one."""
    size = file.source.size
    with contextlib.suppress(TarError):  # what follows is one dead row
        for row, member in numbered(walk(file, 0, size, size)):
            if row is not None:
                yield int(fates[row]) if row < len(fates) else DEAD, row, member
                continue
            yield KEPT, None, member
            if member.kind == "global":
                yield REMOVED, None, member


@lru_cache(maxsize=64)
def _layout(
    uri: str, source: str, version: str, extension: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str | None]:
    """Of one version of a shard: the byte at which each row starts, a digest of its key, the rows whose key
    occurs again, and why nothing in it can be read (None if something can)."""
    starts, keys, fault = array("q"), array("Q"), None
    with open_file(uri, source, version, **READAHEAD) as file:
        for sample in samples(file, 0, file.source.size, file.source.size, extension):
            starts.append(sample.start)
            fault = sample.fault
            keys.append(_UNKNOWN if sample.key is None else side.digest(sample.key))
    key_N = np.array(keys, np.uint64)
    _, which, often = np.unique(key_N, return_inverse=True, return_counts=True)
    nothing = len(starts) == 1 and fault is not None and fault[0] == UNREADABLE_SHARD
    twins = np.flatnonzero(often[which] > 1)
    return np.array(starts, np.int64), key_N, twins, fault[1] if nothing and fault else None
