"""Pixels of indexed images, read from the corpus and decoded to the encoder's size.

Torch is not imported here: reading and decoding tasks run in many processes, and it would cost each of them
seconds.

N images   R chosen images   2 crops of an image   M images with a second view
C channels   H = W encoder image side
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, Slice
from poisoncam_ray.decode import MAX_BYTES, cut_out, decode, header, views
from poisoncam_ray.errors import LedgerError
from poisoncam_ray.folder import Folder, part_name
from poisoncam_ray.method.crops import MOST_PARTS, draw_pair, in_sample, number, own_part, parts
from poisoncam_ray.stages.shrunk import Copies, Encoded

# Of `fetch_images`: so many encoded images lie in memory beside the pixels.
FETCHED_AT_ONCE = 256

# Of `read_views`: so many bytes of parts of long images travel with a slice, or one part of each.
PARTS_BYTES = 2**30

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""[x0, y0, x1, y1) in pixels of the stored image."""
FloatBox = tuple[float, float, float, float]


@dataclass(frozen=True)
class SecondViews:
    """Further views of images of a slice: as a viewer shows them, where that differs from what a training
    loader reads; and the parts of long images.

    Attributes:
        rows_M: the place of each view's image in the slice's x_NCHW, ascending.
        x_MCHW: the views.
        part_M4: what they show, [x0, y0, x1, y1) in pixels of the stored image.
    """

    rows_M: NDArray[np.int32]
    x_MCHW: Pixels
    part_M4: NDArray[np.int32]


def read_slice(corpus: Corpus, config: Config, index: Folder, slice_: Slice) -> tuple[list[str], Pixels]:
    """Read and decode the indexed rows of one slice: all of an image, or of a long one its `own_part`.

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
    ids, wanted, _ = _indexed(index, slice_)
    x_NCHW = np.empty((len(ids), *_shape(config)), np.uint8)
    for i, image in enumerate(_encoded(corpus, config, index, slice_, wanted)):
        x_NCHW[i] = decode_part(image, config, ids[i])
    return ids, x_NCHW


def read_views(
    corpus: Corpus, config: Config, index: Folder, slice_: Slice
) -> tuple[list[str], Pixels, SecondViews]:
    """As `read_slice`, but all of each image, and the second views of those that have some."""
    ids, wanted, _ = _indexed(index, slice_)
    x_NCHW = np.empty((len(ids), *_shape(config)), np.uint8)
    found: list[tuple[int, Pixels, Box]] = []
    looks = zip(
        _encoded(corpus, config, index, slice_, wanted),
        parts_of(index, part_name(slice_.index), config),
        strict=True,
    )
    for i, (image, boxes) in enumerate(looks):
        (first, _), *others = all_views(image, config, boxes)
        x_NCHW[i] = first
        found += [(i, x_CHW, box) for x_CHW, box in others]
    x_MCHW = np.stack([x_CHW for _, x_CHW, _ in found]) if found else np.empty((0, *_shape(config)), np.uint8)
    part_M4 = np.array([box for *_, box in found], np.int32).reshape(-1, 4)
    return ids, x_NCHW, SecondViews(np.array([i for i, *_ in found], np.int32), x_MCHW, part_M4)


def read_crops(
    corpus: Corpus,
    config: Config,
    index: Folder,
    slice_: Slice,
    epoch: int,
    share: float = 1.0,
    rows_R: NDArray[np.int64] | None = None,
) -> Pixels:
    """Read indexed rows of one slice, and cut two random crops out of each stored image, at its own
    resolution.

    Where they lie depends on the seed, the epoch and the image's id alone.

    Args:
        corpus: the corpus.
        config: the configuration.
        index: the artifact of Index.
        slice_: the slice.
        epoch: the epoch.
        share: of the rows, as `in_sample` draws them.
        rows_R: which of the drawn rows are wanted, ascending; None: all of them.

    Returns:
        x_R2CHW.

    Raises:
        LedgerError: the corpus no longer holds what was indexed.
    """
    ids, wanted, size_N = _indexed(index, slice_)
    drawn = [i for i, image_id in enumerate(ids) if in_sample(config.seed, share, image_id)]
    chosen = drawn if rows_R is None else [drawn[row] for row in rows_R]
    if slice_.files:
        # Each image is a file: the others are not read.
        slice_ = replace(slice_, files=tuple(ids[i] for i in chosen))
        wanted = {ids[i]: wanted[ids[i]] for i in chosen}
    x_R2CHW = np.empty((len(chosen), 2, *_shape(config)), np.uint8)
    least, shape = config.pretrain.crop_min, config.pretrain.crop_shape
    for r, image in enumerate(_encoded(corpus, config, index, slice_, wanted, {i: ids[i] for i in chosen})):
        image_id = ids[chosen[r]]
        rng = np.random.default_rng([config.seed, epoch, number(image_id)])
        pair = draw_pair(*size_N[chosen[r]], least, rng, shape)
        boxes = [crop.box for crop in pair]
        x_R2CHW[r] = _cut_out(image, config, boxes)
        for view, crop in enumerate(pair):
            if crop.mirrored:
                x_R2CHW[r, view] = x_R2CHW[r, view, :, :, ::-1].copy()
    return x_R2CHW


def _shape(config: Config) -> tuple[int, int, int]:
    return 3, config.encoder.image_size, config.encoder.image_size


def _indexed(index: Folder, slice_: Slice) -> tuple[list[str], dict[str, str | None], list[tuple[int, int]]]:
    """The ids of the indexed rows; the digest of each, None in a shard; the width and height of each."""
    columns = ["image_id", "width", "height", *digest_columns(slice_)]
    indexed = index.read_table(part_name(slice_.index), columns)
    ids, width_N, height_N, *digests = (indexed[name].to_pylist() for name in columns)
    wanted = dict(zip(ids, *digests, strict=True)) if digests else dict.fromkeys(ids)
    return ids, wanted, list(zip(width_N, height_N, strict=True))


def parts_of(index: Folder, part: str, config: Config) -> list[list[Box]]:
    """What Judge looks at of each image of one part of the index, in pixels of the stored image: the whole,
    and the parts of a long image.

    The latter are fewer for each where a slice of many long images would exceed PARTS_BYTES, even if all of
    them are judged as a viewer shows them, too: at last the `own_part` alone, as the search has seen it. For
    that the configuration leaves room in any case (`corpus.rows_per_slice`).
    """
    table = index.read_table(part, ["image_id", "width", "height"])
    sizes = list(zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True))
    for most in range(MOST_PARTS, 1, -1):
        found = [parts(width, height, most) for width, height in sizes]
        if sum(map(len, found)) * 2 * 3 * config.encoder.image_size**2 <= PARTS_BYTES:
            break
    else:
        ids = table["image_id"].to_pylist()
        found = [
            [own_part(config.seed, one, *size)] if of else []
            for one, size, of in zip(ids, sizes, found, strict=True)
        ]
    return [[(0, 0, *size), *boxes] for size, boxes in zip(sizes, found, strict=True)]


def all_views(image: Encoded, config: Config, boxes: list[Box]) -> list[tuple[Pixels, Box]]:
    """The views of one encoded image that are judged, each with what it shows: the whole as a training loader
    reads it comes first.

    Args:
        image: the encoded image.
        config: the configuration.
        boxes: the whole, and the parts, from `parts_of`.
    """
    first, other = views_indexed(image, config)
    whole, *rest = boxes
    found = [(first, whole)] if other is None else [(first, whole), (other, whole)]
    for shown in (False,) if other is None else (False, True):
        if rest:
            found += zip(_cut_out(image, config, rest, shown), rest, strict=True)
    return found


def _encoded(
    corpus: Corpus,
    config: Config,
    index: Folder,
    slice_: Slice,
    wanted: dict[str, str | None],
    chosen: Mapping[int, str] | None = None,
) -> Iterator[Encoded]:
    """The indexed images of a slice, in order, from the copies if the run keeps some. `chosen`: the ids that
    are asked for, by their places in the index; None: all.

    Raises:
        LedgerError: the corpus no longer holds what was indexed, or the copies are gone.
    """
    if config.corpus.shrink_to is not None:
        every = dict(enumerate(wanted)) if chosen is None else chosen
        yield from Copies(index).read(part_name(slice_.index), every)
        return
    asked = None if chosen is None else set(chosen.values())
    for image_id, data in zip(wanted, _stored(corpus, slice_, wanted), strict=True):
        if asked is None or image_id in asked:
            yield Encoded(data)


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


def images_of(corpus: Corpus, config: Config, index: Folder) -> Corpus | Copies:
    """Where to fetch the images of a run from: its copies if it keeps some, else the corpus."""
    return corpus if config.corpus.shrink_to is None else Copies(index)


def fetch_images(images: Corpus | Copies, config: Config, ids: list[str]) -> Pixels:
    """Pixels x_NCHW of images anywhere in the corpus, in the order of `ids`. `images`: from `images_of`."""
    x_NCHW = np.empty((len(ids), *_shape(config)), np.uint8)
    for i, image in enumerate(_fetched(images, ids)):
        x_NCHW[i] = decode_part(image, config, ids[i])
    return x_NCHW


def fetch_with_aspects(images: Corpus | Copies, config: Config, ids: list[str]) -> tuple[Pixels, list[float]]:
    """As `fetch_images`; and width over height, in stored pixels, of what it shows of each image."""
    limits = config.corpus
    x_NCHW, aspects = np.empty((len(ids), *_shape(config)), np.uint8), []
    for i, image in enumerate(_fetched(images, ids)):
        x_NCHW[i] = decode_part(image, config, ids[i])
        width, height = image.size or header(image.data or b"", limits.max_pixels, limits.max_bytes)[:2]
        x0, y0, x1, y1 = own_part(config.seed, ids[i], width, height)
        aspects.append((x1 - x0) / (y1 - y0))
    return x_NCHW, aspects


def _fetched(images: Corpus | Copies, ids: list[str]) -> Iterator[Encoded]:
    """The encoded images in the order of `ids`, a bounded number at once."""
    for first in range(0, len(ids), FETCHED_AT_ONCE):
        found: Sequence[bytes | Encoded] = images.fetch(ids[first : first + FETCHED_AT_ONCE])
        yield from (image if isinstance(image, Encoded) else Encoded(image) for image in found)


def decode_part(image: Encoded, config: Config, image_id: str) -> Pixels:
    """x_CHW of one encoded image, or of its `own_part`, at the encoder's size."""
    part_of = partial(own_part, config.seed, image_id)
    return decode(image.data or b"", *_limits(image, config), part_of, image.size)


def decode_indexed(image: Encoded, config: Config) -> Pixels:
    """x_CHW of one encoded image, all of it, at the encoder's size.

    Raises:
        DecodeError: the bytes are no image, or exceed the limits of the configuration.
    """
    return decode(image.data or b"", *_limits(image, config))


def views_indexed(image: Encoded, config: Config) -> tuple[Pixels, Pixels | None]:
    """x_CHW of one encoded image at the encoder's size, and its second view; None where it has none.

    Raises:
        DecodeError: as `decode_indexed`.
    """
    first, second = views(image.data or b"", *_limits(image, config))
    return first, second if image.shown is None else decode(image.shown, *_limits(image, config))


def _cut_out(image: Encoded, config: Config, boxes: Sequence[Box | FloatBox], shown: bool = False) -> Pixels:
    """Parts of one encoded image, as a viewer shows them if asked, at the encoder's size."""
    copy = image.shown if shown else None
    data = copy or image.data or b""
    return cut_out(data, boxes, *_limits(image, config), shown and copy is None, image.size)


def _limits(image: Encoded, config: Config) -> tuple[int, int, int]:
    """The encoder's size, and the most pixels and bytes of this image. The copy of a small
    image may exceed `corpus.max_bytes`."""
    limits = config.corpus
    most = limits.max_bytes if image.size is None else MAX_BYTES
    return config.encoder.image_size, limits.max_pixels, most


def as_pixels(data: bytes, size: int) -> Pixels:
    """x_NCHW from the bytes that travel between processes; a copy, since torch needs writable memory."""
    return np.frombuffer(bytearray(data), np.uint8).reshape(-1, 3, size, size)
