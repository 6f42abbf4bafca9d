"""Pixels of indexed images, read from the corpus and decoded to the encoder's size.

Torch is not imported here: reading and decoding tasks run in many processes, and it would cost each of them
seconds.

N images   C channels   H = W encoder image side
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, Slice
from poisoncam_ray.decode import decode
from poisoncam_ray.errors import LedgerError
from poisoncam_ray.folder import Folder, part_name

# Of `fetch_images`: so many encoded images lie in memory beside the pixels.
FETCHED_AT_ONCE = 256

Pixels = NDArray[np.uint8]


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
    indexed = index.read_table(part_name(slice_.index), ["image_id", *digest_columns(slice_)])
    ids, *digests = (column.to_pylist() for column in indexed.columns)
    # The digest of each image; None in a shard.
    wanted = dict(zip(ids, *digests, strict=True)) if digests else dict.fromkeys(ids)
    size = config.encoder.image_size
    x_NCHW = np.empty((len(ids), 3, size, size), np.uint8)
    found: list[str] = []
    for row in corpus.read(slice_):
        if row.image_id in wanted:
            if row.error:
                raise LedgerError(f"{row.image_id} could be read when it was indexed: {row.error[1]}")
            digest = wanted[row.image_id]
            if digest and hashlib.sha256(row.data or b"").hexdigest() != digest:
                raise LedgerError(f"{row.image_id} changed since it was indexed: use a new output folder")
            x_NCHW[len(found)] = decode_indexed(row.data, config)
            found.append(row.image_id)
    if found != ids:
        raise LedgerError(f"{slice_.source} changed since it was indexed: use a new output folder")
    return ids, x_NCHW


def digest_columns(slice_: Slice) -> list[str]:
    """The index's column with the digest of each image, for a slice of an image folder; none for a slice of a
    shard, whose version is checked when the shard is opened."""
    return ["sha256"] if slice_.files else []


def fetch_images(corpus: Corpus, config: Config, ids: list[str]) -> Pixels:
    """Pixels x_NCHW of images anywhere in the corpus, in the order of `ids`."""
    size = config.encoder.image_size
    x_NCHW = np.empty((len(ids), 3, size, size), np.uint8)
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


def as_pixels(data: bytes, size: int) -> Pixels:
    """x_NCHW from the bytes that travel between processes; a copy, since torch needs writable memory."""
    return np.frombuffer(bytearray(data), np.uint8).reshape(-1, 3, size, size)
