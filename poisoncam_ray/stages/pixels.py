"""Pixels of indexed images, read from the corpus and decoded to the encoder's size.

Torch is not imported here: reading and decoding tasks run in many processes, and it would cost each of them
seconds.

N images   M images with a second view   C channels   H = W encoder image side
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, Slice
from poisoncam_ray.decode import decode, views
from poisoncam_ray.errors import LedgerError
from poisoncam_ray.folder import Folder, part_name

# Of `fetch_images`: so many encoded images lie in memory beside the pixels.
FETCHED_AT_ONCE = 256

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class SecondViews:
    """Images of a slice that a viewer shows otherwise than a training loader reads them.

    Attributes:
        rows_M: their places in the slice's x_NCHW, ascending.
        x_MCHW: what the viewer shows.
    """

    rows_M: NDArray[np.int32]
    x_MCHW: Pixels


def read_slice(corpus: Corpus, config: Config, index: Folder, slice_: Slice) -> tuple[list[str], Pixels]:
    """Read and decode the indexed rows of one slice.

    Args:
        corpus: the corpus.
        config: the configuration.
        index: the artifact of Index.
        slice_: the slice.

    Returns:
        The image ids and x_NCHW, in the order of the index.

    Raises:
        LedgerError: the corpus no longer holds what was indexed.
    """
    ids, wanted = _indexed(index, slice_)
    x_NCHW = np.empty((len(ids), *_shape(config)), np.uint8)
    for i, data in enumerate(_stored(corpus, slice_, wanted)):
        x_NCHW[i] = decode_indexed(data, config)
    return ids, x_NCHW


def read_views(
    corpus: Corpus, config: Config, index: Folder, slice_: Slice
) -> tuple[list[str], Pixels, SecondViews]:
    """As `read_slice`, with the second views of the images that have one."""
    ids, wanted = _indexed(index, slice_)
    x_NCHW = np.empty((len(ids), *_shape(config)), np.uint8)
    rows, others = [], []
    for i, data in enumerate(_stored(corpus, slice_, wanted)):
        x_NCHW[i], other = views_indexed(data, config)
        if other is not None:
            rows.append(i)
            others.append(other)
    x_MCHW = np.stack(others) if others else np.empty((0, *_shape(config)), np.uint8)
    return ids, x_NCHW, SecondViews(np.array(rows, np.int32), x_MCHW)


def _shape(config: Config) -> tuple[int, int, int]:
    return 3, config.encoder.image_size, config.encoder.image_size


def _indexed(index: Folder, slice_: Slice) -> tuple[list[str], dict[str, str | None]]:
    """The ids of the indexed rows, and the digest of each; None in a shard."""
    indexed = index.read_table(part_name(slice_.index), ["image_id", *digest_columns(slice_)])
    ids, *digests = (column.to_pylist() for column in indexed.columns)
    return ids, dict(zip(ids, *digests, strict=True)) if digests else dict.fromkeys(ids)


def _stored(corpus: Corpus, slice_: Slice, wanted: dict[str, str | None]) -> Iterator[bytes | None]:
    """The bytes of the indexed rows, in order.

    Raises:
        LedgerError: the corpus no longer holds them all.
    """
    found: list[str] = []
    for row in corpus.read(slice_):
        if row.image_id in wanted:
            if row.error:
                raise LedgerError(f"{row.image_id} could be read when it was indexed: {row.error[1]}")
            digest = wanted[row.image_id]
            if digest and hashlib.sha256(row.data or b"").hexdigest() != digest:
                raise LedgerError(f"{row.image_id} changed since it was indexed: use a new output folder")
            found.append(row.image_id)
            yield row.data
    if found != list(wanted):
        raise LedgerError(f"{slice_.source} changed since it was indexed: use a new output folder")


def digest_columns(slice_: Slice) -> list[str]:
    """The index's column with the digest of each image, for a slice of an image folder; none for a slice of a
    shard, whose version is checked when the shard is opened."""
    return ["sha256"] if slice_.files else []


def fetch_images(corpus: Corpus, config: Config, ids: list[str]) -> Pixels:
    """Pixels x_NCHW of images anywhere in the corpus, in the order of `ids`."""
    x_NCHW = np.empty((len(ids), *_shape(config)), np.uint8)
    for first in range(0, len(ids), FETCHED_AT_ONCE):
        for i, data in enumerate(corpus.fetch(ids[first : first + FETCHED_AT_ONCE]), first):
            x_NCHW[i] = decode_indexed(data, config)
    return x_NCHW


def decode_indexed(data: bytes | None, config: Config) -> Pixels:
    """x_CHW of one encoded image at the encoder's size.

    Raises:
        DecodeError: the bytes are no image, or exceed the limits of the configuration.
    """
    limits = config.corpus
    return decode(data or b"", config.encoder.image_size, limits.max_pixels, limits.max_bytes)


def views_indexed(data: bytes | None, config: Config) -> tuple[Pixels, Pixels | None]:
    """x_CHW of one encoded image at the encoder's size, and its second view; None where it has none.

    Raises:
        DecodeError: as `decode_indexed`.
    """
    limits = config.corpus
    return views(data or b"", config.encoder.image_size, limits.max_pixels, limits.max_bytes)


def as_pixels(data: bytes, size: int) -> Pixels:
    """x_NCHW from the bytes that travel between processes; a copy, since torch needs writable memory."""
    return np.frombuffer(bytearray(data), np.uint8).reshape(-1, 3, size, size)
