"""An image folder as a corpus: one file is one image, its relative path the image id.

Files that are no images (captions, metadata) are neither read nor copied.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from poisoncam_ray.corpus import storage
from poisoncam_ray.corpus.shardfile import Problem, UnreadableError, for_good, reason_of, refuse_climbing
from poisoncam_ray.corpus.storage import IMAGE_MAX, IMAGE_SUFFIXES, Row, Slice, Source
from poisoncam_ray.errors import UserError

# Files in memory at once while reading or copying.
_CHUNK = 64


@dataclass(frozen=True)
class FolderCorpus:
    """Images under `uri`, any depth. Holds no open handle; made by `open_corpus`."""

    uri: str
    rows_per_slice: int = 1024

    def sources(self) -> list[Source]:
        """All image files, sorted by path. UserError: there are none, or a link leaves the folder."""
        found = [s for s in storage.list_sources(self.uri) if s.path.lower().endswith(IMAGE_SUFFIXES)]
        if not found:
            raise UserError(f"There are no images in {self.uri}: give a folder with JPEG, PNG or WebP files.")
        storage.refuse_escaping_links(self.uri, (s.path for s in found))
        return found

    def check(self, source: Source) -> Problem | None:
        """None: an image file is a row, and what is wrong with it costs that row alone."""
        return None

    def slices(self, sources: Sequence[Source] | None = None) -> list[Slice]:
        """The sorted files in runs of `rows_per_slice`."""
        paths = [s.path for s in (self.sources() if sources is None else sources)]
        starts = range(0, len(paths), self.rows_per_slice)
        runs = (tuple(paths[a : a + self.rows_per_slice]) for a in starts)
        return [Slice(i, ".", a, a + len(f), f) for i, (a, f) in enumerate(zip(starts, runs, strict=True))]

    def units(self, slices: Sequence[Slice] | None = None) -> list[list[Slice]]:
        """What one writing task handles: one slice."""
        return [[s] for s in (self.slices() if slices is None else slices)]

    def read(self, part: Slice, whole: bool = False) -> Iterator[Row]:
        """Every image of the slice once, in order; a few dozen in memory. One that cannot be read for good is
        a dead row with an `error`. `whole` changes nothing. UserError when a file is gone."""
        files = part.files or ()
        for first in range(0, len(files), _CHUNK):
            chunk = files[first : first + _CHUNK]
            for row, (name, found) in enumerate(
                zip(chunk, self._stored(chunk), strict=True), part.start + first
            ):
                if isinstance(found, UnreadableError):
                    yield Row(row, name, None, (found.kind, found.reason))
                else:
                    yield Row(row, name, found)

    def fetch(self, image_ids: Sequence[str]) -> list[bytes]:
        """The bytes of these images, in the order asked. Raises UserError for one that is gone or cannot be
        read."""
        stored = []
        for found in self._stored(image_ids):
            if isinstance(found, UnreadableError):
                raise found
            stored.append(found)
        return stored

    def _stored(self, image_ids: Sequence[str]) -> Iterable[bytes | UnreadableError]:
        fs, root = storage.connect(self.uri)
        local = storage.is_local(fs)

        def get(image_id: str) -> bytes | UnreadableError:
            refuse_climbing(image_id)
            path = f"{root}/{image_id}"
            # Reading a pipe would wait for ever.
            if local and os.path.exists(path) and not os.path.isfile(path):
                return UnreadableError(f"The image {image_id}", "it is no ordinary file")
            try:
                size = fs.size(path)
                if size is not None and size > IMAGE_MAX:
                    why = f"{size} bytes, more than the limit of {IMAGE_MAX}"
                    return UnreadableError(f"The image {image_id}", why, "bomb")
                # Of a range S3 is not asked for the size once more; one of nothing is refused.
                return fs.cat_file(path, start=0, end=size) if size else fs.cat_file(path)
            except FileNotFoundError as error:
                raise UserError(
                    f"The image {image_id} is gone from {self.uri}: restore it or index again."
                ) from error
            except OSError as error:
                if for_good(error, local):
                    return UnreadableError(f"The image {image_id}", reason_of(error))
                raise

        ids = list(image_ids)
        return map(get, ids) if local else storage.in_parallel(get, ids)

    def labels(self, part: Slice, column: str = "") -> list[str]:
        """The parent folder's name of each image, "" at the top; `column` is not used."""
        return ["/".join(f.split("/")[:-1]).rsplit("/", 1)[-1] for f in part.files or ()]

    def split(
        self,
        unit: Sequence[Slice],
        fate_N: Sequence[int] | np.ndarray,
        kept_uri: str,
        removed_uri: str,
        sha256: Mapping[str, str] | None = None,
    ) -> tuple[int, int]:
        """Copy kept images (fate 0) to `kept_uri` and removed ones (1) to `removed_uri`, byte for byte under
        the same paths; 2 (dead) goes nowhere.

        `sha256`, by image id, in hex: UserError for an image whose bytes have another. Returns (kept,
        removed)."""
        files, fates = _files(unit), np.asarray(fate_N)
        if len(files) != len(fates):
            raise ValueError(f"{len(fates)} fates for {len(files)} images")
        kept = [f for f, fate in zip(files, fates, strict=True) if fate == 0]
        removed = [f for f, fate in zip(files, fates, strict=True) if fate == 1]
        storage.refuse_same_place(self.uri, kept_uri, removed_uri)
        self._copy(kept, {}, kept_uri, sha256)
        self._copy(removed, {}, removed_uri, sha256)
        return len(kept), len(removed)

    def rewrite(self, unit: Sequence[Slice], replacements: Mapping[str, bytes], out_uri: str) -> None:
        """Copy the unit to `out_uri`, same paths, with the bytes of some images replaced."""
        files = _files(unit)
        if unknown := set(replacements) - set(files):
            raise ValueError(f"no such images in this unit: {sorted(unknown)[:3]}")
        storage.refuse_same_place(self.uri, out_uri)
        self._copy(files, replacements, out_uri)

    def _copy(
        self,
        files: list[str],
        replacements: Mapping[str, bytes],
        out_uri: str,
        sha256: Mapping[str, str] | None = None,
    ) -> None:
        for first in range(0, len(files), _CHUNK):
            chunk = files[first : first + _CHUNK]
            stored = dict(zip(chunk, self.fetch(chunk), strict=True))
            for name, data in stored.items():
                if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256[name]:
                    raise UserError(
                        f"The image {name} changed since it was indexed: use a new output folder."
                    )
            storage.in_parallel(
                lambda pair: storage.write_bytes(out_uri, *pair),
                [(f, replacements.get(f, stored[f])) for f in chunk],
            )


def _files(unit: Sequence[Slice]) -> list[str]:
    files = [f for part in unit for f in part.files or ()]
    for name in files:
        refuse_climbing(name)
    return files
