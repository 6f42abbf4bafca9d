"""An image folder as a corpus: one file is one image, and its relative path is the image id.

Captions go where their image goes (captions.py), and metadata files are split along (metadata.py). Other
files are neither read nor copied.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from poisoncam_ray.container import KINDS
from poisoncam_ray.corpus.captions import captions_of
from poisoncam_ray.corpus.listing import (
    IMAGE_MAX,
    IMAGE_SUFFIXES,
    list_sources,
    refuse_escaping_links,
    refuse_same_place,
)
from poisoncam_ray.corpus.metadata import check_metadata, is_metadata, split_metadata
from poisoncam_ray.corpus.protocol import KEPT, REMOVED, Lost, Problem, Row, Slice, Source
from poisoncam_ray.corpus.shardfile import (
    UnreadableError,
    copy_whole,
    for_good,
    reason_of,
    refuse_climbing,
)
from poisoncam_ray.errors import UserError
from poisoncam_ray.store import connect, copy_file, delete, exists, in_parallel, is_local, write_bytes

FILES_AT_ONCE = 64
"""Files in memory at once while reading or copying."""


@dataclass(frozen=True)
class FolderCorpus:
    """Images under `uri`, at any depth. `protocol.Corpus` says what the methods promise.

    Attributes:
        uri: the folder.
        rows_per_slice: images of a slice, at most.
        follow_links: whether links that leave the folder are followed.
    """

    sharded: ClassVar[bool] = False

    uri: str
    rows_per_slice: int = 1024
    follow_links: bool = False

    def sources(self) -> list[Source]:
        """All image files, their captions and the metadata files, sorted by path."""
        found = self._listed()
        images = [source.path for source in self._images(found)]
        captions = captions_of(images, (source.path for source in found))
        belonging = {*images, *self._metadata(found), *_all_of(captions)}
        self._refuse_links(belonging)
        return [source for source in found if source.path in belonging]

    def check(self, source: Source) -> Problem | None:
        """None: an image file is one row, and what is wrong with it costs that row alone."""
        return None

    def slices(self, sources: Sequence[Source] | None = None) -> list[Slice]:
        """The sorted files in runs of `rows_per_slice`. Reads the metadata files once, and looks whether
        captions can be read: a mistake shows now and not when all is done."""
        found = self._listed()
        paths = [s.path for s in self._images(found if sources is None else sources)]
        captions = captions_of(paths, (s.path for s in found))
        metadata = self._metadata(found)
        self._refuse_links([*metadata, *_all_of(captions)])
        self._refuse_unreadable(_all_of(captions))
        for path in metadata:
            check_metadata(self.uri, path)
        slices = []
        for i, start in enumerate(range(0, len(paths), self.rows_per_slice)):
            files = tuple(paths[start : start + self.rows_per_slice])
            beside = dict.fromkeys(path for image in files for path in captions.get(image, ()))
            slices.append(Slice(i, ".", start, start + len(files), files, beside=tuple(beside)))
        return slices

    def units(self, slices: Sequence[Slice] | None = None) -> list[list[Slice]]:
        """Each slice alone."""
        return [[s] for s in (self.slices() if slices is None else slices)]

    def read(self, slice_: Slice, whole: bool = False) -> Iterator[Row]:
        """The slice's images, `FILES_AT_ONCE` in memory. `whole` changes nothing."""
        files = slice_.files or ()
        for first in range(0, len(files), FILES_AT_ONCE):
            chunk = files[first : first + FILES_AT_ONCE]
            for row, (name, found) in enumerate(
                zip(chunk, self._stored(chunk), strict=True), slice_.start + first
            ):
                if isinstance(found, UnreadableError):
                    yield Row(row, name, None, (found.kind, found.reason))
                else:
                    yield Row(row, name, found)

    def fetch(self, image_ids: Sequence[str]) -> list[bytes]:
        """The bytes of these images, in the order asked."""
        stored = []
        for found in self._stored(image_ids):
            if isinstance(found, UnreadableError):
                raise found
            stored.append(found)
        return stored

    def split(
        self,
        unit: Sequence[Slice],
        fate_N: Sequence[int] | np.ndarray,
        kept_uri: str | None,
        removed_uri: str,
        sha256: Mapping[str, str] | None = None,
    ) -> tuple[int, int]:
        """Copy the files, byte for byte, under the same paths, and their captions with them. An image whose
        digest is not that in `sha256` raises UserError. Images that an earlier call with other fates wrote
        stay where they are."""
        files, fates = files_of(unit), np.asarray(fate_N)
        if len(files) != len(fates):
            raise ValueError(f"{len(fates)} fates for {len(files)} images")
        kept = [f for f, fate in zip(files, fates, strict=True) if fate == KEPT]
        removed = [f for f, fate in zip(files, fates, strict=True) if fate == REMOVED]
        refuse_same_place(self.uri, kept_uri, removed_uri)
        captions = captions_of(files, _inside(path for slice_ in unit for path in slice_.beside or ()))
        for images, place in ((kept, kept_uri), (removed, removed_uri)):
            if place is not None:
                self._copy(images, place, sha256)
                self._copy_captions(_all_of({image: captions.get(image, ()) for image in images}), place)
        return len(kept), len(removed)

    def finish(self, kept_uri: str, removed_uri: str, lost: Lost) -> None:
        """Split the metadata files."""
        metadata = self._metadata(self._listed())
        fates = lost() if metadata else {}
        for path in metadata:
            split_metadata(self.uri, path, fates, kept_uri if exists(kept_uri) else None, removed_uri)

    def _listed(self) -> list[Source]:
        return list_sources(self.uri, follow_links=self.follow_links)

    def _images(self, listed: Iterable[Source]) -> list[Source]:
        found = [s for s in listed if s.path.lower().endswith(IMAGE_SUFFIXES)]
        if not found:
            raise UserError(f"There are no images in {self.uri}: give a folder with {KINDS} files.")
        self._refuse_links(s.path for s in found)
        return found

    def _metadata(self, listed: Iterable[Source]) -> list[str]:
        return [source.path for source in listed if is_metadata(source.path)]

    def _refuse_links(self, paths: Iterable[str]) -> None:
        if not self.follow_links:
            refuse_escaping_links(self.uri, paths)

    def _refuse_unreadable(self, captions: Iterable[str]) -> None:
        """Raise UnreadableError if a caption on a local disk is no file that may be read."""
        fs, root = connect(self.uri)
        for path in captions if is_local(fs) else ():
            if not os.path.isfile(f"{root}/{path}"):
                raise UnreadableError(f"The caption {path}", "it is no ordinary file")
            if not os.access(f"{root}/{path}", os.R_OK):
                raise UnreadableError(f"The caption {path}", "access is refused")

    def _stored(self, image_ids: Sequence[str]) -> Iterable[bytes | UnreadableError]:
        fs, root = connect(self.uri)
        local = is_local(fs)

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
                # With a range s3fs does not ask for the size again; S3 refuses the range of an empty object.
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
        return map(get, ids) if local else in_parallel(get, ids)

    def _copy_captions(self, paths: list[str], out_uri: str) -> None:
        """Copy captions without holding one in memory: nothing bounds their size."""
        in_parallel(lambda path: copy_whole(self.uri, Slice(0, path, 0, 0), out_uri), paths)

    def _copy(self, files: list[str], out_uri: str, sha256: Mapping[str, str] | None) -> None:
        fs, root = connect(self.uri)
        local = is_local(fs)
        for first in range(0, len(files), FILES_AT_ONCE):
            chunk = files[first : first + FILES_AT_ONCE]
            # A store does not tell a digest: its images are read, and what was read is written.
            tags = [_modified(f"{root}/{name}") if local else None for name in chunk]
            stored = list(zip(chunk, self.fetch(chunk), strict=True))
            for name, data in stored:
                if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256[name]:
                    raise UserError(
                        f"The image {name} changed since it was indexed: use a new output folder."
                    )
            clone = partial(copy_file, self.uri, out_uri=out_uri)
            cloned = [local and clone(name, tag=tag) for name, tag in zip(chunk, tags, strict=True)]
            left = [pair for pair, done in zip(stored, cloned, strict=True) if not done]
            in_parallel(lambda pair: write_bytes(out_uri, *pair), left)


def shared_captions(slices: Sequence[Slice]) -> frozenset[str]:
    """The captions that images of several slices have: a.txt, where a.jpg ends one slice and a.png begins the
    next."""
    count = Counter(path for slice_ in slices for path in slice_.beside or ())
    return frozenset(path for path, n in count.items() if n > 1)


def delete_images(
    unit: Sequence[Slice], uri: str, image_ids: Iterable[str], spared: Collection[str] = ()
) -> None:
    """Delete images of a unit and their captions from a folder that `split` wrote, if they are there, and the
    folders that are empty then: some readers take an empty folder for a class without images, and fail.

    Args:
        unit: the slices of the unit.
        uri: the folder.
        image_ids: the images.
        spared: captions that stay, because an image of another unit, which may be written at the same time,
            has them, too.
    """
    fs, root = connect(uri)
    images = list(image_ids)
    beside = (path for slice_ in unit for path in slice_.beside or () if path not in spared)
    for path in (*images, *_all_of(captions_of(images, beside))):
        delete(uri, path)
        folder = os.path.dirname(path)
        while is_local(fs) and folder:
            try:
                os.rmdir(f"{root}/{folder}")
            except OSError:
                break
            folder = os.path.dirname(folder)


def _modified(path: str) -> str | None:
    """The tag of a local file (`Source.tag`); None when it is gone."""
    try:
        return str(os.stat(path).st_mtime_ns)
    except FileNotFoundError:
        return None


def files_of(unit: Sequence[Slice]) -> list[str]:
    """The paths of a unit's images, in order.

    Raises:
        UserError: a path leads out of the corpus.
    """
    return _inside(f for slice_ in unit for f in slice_.files or ())


def _all_of(captions: Mapping[str, Sequence[str]]) -> list[str]:
    """All captions, those of several images once."""
    return list(dict.fromkeys(path for of_image in captions.values() for path in of_image))


def _inside(paths: Iterable[str]) -> list[str]:
    found = list(paths)
    for path in found:
        refuse_climbing(path)
    return found
