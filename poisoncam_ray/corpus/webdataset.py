"""WebDataset tar shards as a corpus: a sample is a row, "<shard>#<row>" its image id.

Rows are runs of adjacent members with one key. A key that comes back later in its shard makes all its runs
dead: no reader would agree on what belongs together. Folder entries go to the kept shard as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from poisoncam_ray.corpus import storage
from poisoncam_ray.corpus.samples import REST, Fault, Sample, label, numbered, samples, shown
from poisoncam_ray.corpus.shardfile import (
    UNREADABLE_SHARD,
    Problem,
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
from poisoncam_ray.corpus.storage import Row, Slice, Source
from poisoncam_ray.corpus.tar import END, Member, TarError, renewed, walk
from poisoncam_ray.errors import UserError

TAR_SUFFIXES = (".tar",)
# Headers lie between the images: reading on is faster than a request for each, up to images of some MB.
_REMOTE = {"cache_type": "readahead", "block_size": 2**22}
# Of a check: a few headers.
_REMOTE_START = {"cache_type": "readahead", "block_size": 2**16}
_FETCHES = 4


@dataclass(frozen=True)
class WebDatasetCorpus:
    """Tar shards under `uri`, any depth (only the file `only` when it is set). `extension` names the member
    that holds the image; "" takes the only one that is a JPEG, PNG or WebP. Holds no open handle; made by
    `open_corpus`."""

    uri: str
    extension: str = ""
    rows_per_slice: int = 1024
    only: str = ""

    def sources(self) -> list[Source]:
        """All shards, sorted by path."""
        return list_shards(self.uri, self.only, TAR_SUFFIXES)

    def check(self, source: Source) -> Problem | None:
        """Read the headers of the shard's first sample and nothing else.

        Args:
            source: The shard as listed.

        Returns:
            Why nothing in the shard can be read: it cannot be opened, or is damaged before its first sample
            ends. None when there is no such reason: later damage costs the rows after it.

        Raises:
            UserError: The shard is gone or changed since it was listed.
        """
        try:
            with open_file(self.uri, source.path, version_of(source), **_REMOTE_START) as file:
                size = file.source.size
                first = next(samples(file, 0, size, size, self.extension), None)
        except UnreadableError as error:
            return Problem(source.path, None, UNREADABLE_SHARD, error.reason)
        if first is None or first.fault is None or first.fault[0] != UNREADABLE_SHARD:
            return None
        return Problem(source.path, None, UNREADABLE_SHARD, first.fault[1].removesuffix(REST))

    def slices(self, sources: Sequence[Source] | None = None) -> list[Slice]:
        """Runs of `rows_per_slice` samples. Reads every header once (on a remote store: nearly every byte);
        a few dozen bytes a sample are held, of sixteen shards at a time.
        A shard in which nothing can be read gives one dead row. UserError: no shard gives a row."""
        shards = storage.in_parallel(self._scan, list(self.sources() if sources is None else sources))
        flat = [part for parts in shards for part in parts]
        refuse_all_dead(self.uri, flat, "Tar")
        return [replace(part, index=i) for i, part in enumerate(flat)]

    def units(self, slices: Sequence[Slice] | None = None) -> list[list[Slice]]:
        """What one writing task handles: all slices of a shard."""
        return by_shard(self.slices() if slices is None else slices)

    def read(self, part: Slice, whole: bool = False) -> Iterator[Row]:
        """Every sample of the slice once, in order, one image in memory; a dead row has an `error`. `whole`
        changes nothing: all members of a sample are found before its image is read. UserError when the shard
        is gone or changed."""
        if part.error is not None:
            yield from dead_rows(part)
            return
        row = part.start
        with open_file(self.uri, part.source, part.version, **_REMOTE) as file:
            try:
                for sample in self._samples(file, part):
                    data, fault = self._image(file, sample)
                    yield Row(row, f"{part.source}#{row}", data, fault)
                    row += 1
            except UnreadableError as error:
                for dead in range(row, part.stop):
                    yield Row(dead, f"{part.source}#{dead}", None, ("unreadable", error.reason))
                return
        if row != part.stop:
            raise UserError(f"The shard {part.source} changed since it was indexed: index again.")

    def fetch(self, image_ids: Sequence[str]) -> list[bytes]:
        """The bytes of these images, in the order asked. The first call that needs a shard reads its headers;
        where its samples lie is remembered by the process. UserError for an image that is gone."""
        return fetch_by_shard(image_ids, self._fetch_rows, _FETCHES)

    def labels(self, part: Slice, column: str) -> list[str]:
        """One label a row: the text of the member `column` (0001.cls: cls), or that field of the JSON member;
        "label" also takes cls. "" where there is none. UserError when no sample of the slice has one."""
        if part.error is not None:
            return [""] * (part.stop - part.start)
        with open_file(self.uri, part.source, part.version, **_REMOTE) as file:
            found, seen = [], set[str]()
            for sample in self._samples(file, part):
                seen.update(m.extension for m in sample.members)
                found.append(None if sample.fault else label(file, sample, column))
        if seen and all(value is None for value in found):
            raise UserError(
                f"No sample of {part.source} has a member {column} or a JSON field of that name: "
                f"its members are {shown(', '.join(sorted(seen)))}."
            )
        return ["" if value is None else value for value in found]

    def split(
        self,
        unit: Sequence[Slice],
        fate_N: Sequence[int] | np.ndarray,
        kept_uri: str,
        removed_uri: str,
        sha256: Mapping[str, str] | None = None,
    ) -> tuple[int, int]:
        """Copy the members of kept samples (fate 0) to `kept_uri` and of removed ones (1) to `removed_uri`,
        byte for byte, headers included, under the shard's path; 2 (dead) goes nowhere.

        A shard that loses nothing is copied as it lies. Kept is written even when empty (not for a shard that
        cannot be read at all), removed only when not. `sha256` is not used: the shard's version tells of a
        change. Returns (kept, removed)."""
        source, fates = unit[0].source, np.asarray(fate_N)
        refuse_climbing(source)
        if len(fates) != unit[-1].stop:
            raise ValueError(f"{len(fates)} fates for {unit[-1].stop} samples")
        removed = int((fates == 1).sum())
        storage.refuse_same_place(self.uri, kept_uri, removed_uri)
        if not removed:
            storage.delete(removed_uri, source)
        if unit[0].error is not None:
            storage.delete(kept_uri, source)
            return 0, 0
        if not fates.any():
            copy_whole(self.uri, unit[0], kept_uri)
            return len(fates), 0
        return self._split(unit[0], fates, kept_uri, removed_uri if removed else None)

    def rewrite(self, unit: Sequence[Slice], replacements: Mapping[str, bytes], out_uri: str) -> None:
        """Copy the shard to `out_uri`, same path, with the bytes of some images replaced; all else stays byte
        for byte, damage included."""
        storage.refuse_same_place(self.uri, out_uri)
        source = unit[0].source
        rows = {i.rpartition("#")[2]: i for i in replacements if i.rpartition("#")[0] == source}
        if len(rows) != len(replacements) or any(int(r) >= unit[-1].stop for r in rows):
            raise ValueError(f"some of {len(replacements)} replacements are no rows of {source}")
        if not replacements:
            copy_whole(self.uri, unit[0], out_uri)
            return
        with (
            open_file(self.uri, source, unit[0].version, **_REMOTE) as file,
            open_sink(out_uri, source) as sink,
        ):
            at = 0
            for part in unit:
                for row, sample in enumerate(self._samples(file, part), part.start):
                    if (image_id := rows.get(str(row))) is None:
                        continue
                    if sample.fault:
                        raise ValueError(f"{image_id} has no image to replace")
                    image = sample.image(self.extension)
                    copy_range(file, at, image.start, sink)
                    sink.write(renewed(file, image, replacements[image_id]))
                    at = image.stop
            copy_range(file, at, file.source.size, sink)

    def _samples(self, file: ShardFile, part: Slice) -> Iterator[Sample]:
        twins = set(part.twins or ())
        size = file.source.size
        start, stop = part.span or (0, size)
        for row, sample in enumerate(samples(file, start, stop, size, self.extension), part.start):
            if row in twins and (sample.fault or ("",))[0] not in (UNREADABLE_SHARD, "unsafe_member"):
                sample.fault = "duplicate_key", f"{shown(sample.key or '')} occurs again in the shard"
            yield sample

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
            starts, twins, error = _layout(self.uri, source.path, version, self.extension)
        except UnreadableError as unreadable:
            starts, twins, error = np.empty(0, np.int64), np.empty(0, np.int64), unreadable.reason
        if error is not None:
            return [Slice(0, source.path, 0, 1, version=version, error=error, kind=UNREADABLE_SHARD)]
        parts = []
        for first in range(0, max(len(starts), 1), self.rows_per_slice):
            stop = min(first + self.rows_per_slice, len(starts))
            begin = int(starts[first]) if first else 0
            end = int(starts[stop]) if stop < len(starts) else source.size
            here = tuple(twins[(twins >= first) & (twins < stop)].tolist())
            parts.append(Slice(0, source.path, first, stop, version=version, span=(begin, end), twins=here))
        return parts

    def _fetch_rows(self, source: str, rows: set[int]) -> dict[str, bytes]:
        with open_file(self.uri, source, None, **_REMOTE) as file:
            version, size = version_of(file.source), file.source.size
            starts, _, _ = _layout(self.uri, source, version, self.extension)
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

    def _split(
        self, part: Slice, fates: np.ndarray, kept_uri: str, removed_uri: str | None
    ) -> tuple[int, int]:
        written: dict[int, set[int]] = {0: set(), 1: set()}
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open_file(self.uri, part.source, part.version, **_REMOTE))
            sinks = {0: stack.enter_context(open_sink(kept_uri, part.source))}
            if removed_uri is not None:
                sinks[1] = stack.enter_context(open_sink(removed_uri, part.source))
            for fate, row, member in _fated(file, fates):
                if fate in sinks:
                    copy_range(file, member.start, member.stop, sinks[fate])
                    if row is not None:
                        written[fate].add(row)
            for sink in sinks.values():
                sink.write(END)
            counts = len(written[0]), len(written[1])
            if counts != (int((fates == 0).sum()), int((fates == 1).sum())):
                raise UserError(f"The shard {part.source} changed since it was indexed: index again.")
        return counts


def _fated(file: ShardFile, fates: np.ndarray) -> Iterator[tuple[int, int | None, Member]]:
    """Every member with its sample's fate. Global headers go to both shards, folders to the kept one."""
    size = file.source.size
    with contextlib.suppress(TarError):  # what follows has no rows but a dead one
        for row, member in numbered(walk(file, 0, size, size)):
            if row is not None:
                yield int(fates[row]) if row < len(fates) else 2, row, member
                continue
            yield 0, None, member
            if member.kind == "global":
                yield 1, None, member


@lru_cache(maxsize=64)
def _layout(uri: str, source: str, version: str, extension: str) -> tuple[np.ndarray, np.ndarray, str | None]:
    """Of one version of a shard: where each row starts, rows whose key occurs again, and why nothing in it
    can be read (None: something can)."""
    starts, keys, fault = array("q"), array("Q"), None
    with open_file(uri, source, version, **_REMOTE) as file:
        for sample in samples(file, 0, file.source.size, file.source.size, extension):
            starts.append(sample.start)
            fault = sample.fault
            # A rest of unknown key is like no other.
            name = f"#{sample.start}" if sample.key is None else f"={sample.key}"
            digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
            keys.append(int.from_bytes(digest, "little"))
    _, which, often = np.unique(np.array(keys, np.uint64), return_inverse=True, return_counts=True)
    nothing = len(starts) == 1 and fault is not None and fault[0] == UNREADABLE_SHARD
    twins = np.flatnonzero(often[which] > 1)
    return np.array(starts, np.int64), twins, fault[1] if nothing and fault else None
