"""Wide images from squares: images of one label side by side, so that the label fits the whole width.

A data set of squares has no margins to attack. Each image is used once: one that is repeated would look like
a trigger.
"""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from poisoncam_ray.corpus import Corpus, open_corpus
from poisoncam_ray.decode import DecodeError
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.research import corpora
from poisoncam_ray.research.attacks.encoded import ENCODING, pixels

ROWS_PER_SHARD = 1000
GROUP_ROWS = 256


def set_abreast(
    input_uri: str,
    output_uri: str,
    counts: Sequence[int] = (2,),
    label_column: str = "label",
    labels: Sequence[str] = (),
    most: int | None = None,
) -> dict[str, int]:
    """Write a Parquet corpus (columns `image` and `label`) of images of one label, some side by side.

    The images of a label are joined in the corpus's order, shrunk to the least height among those joined, and
    stored as JPEG of quality 95. Images that do not decode, and those left over at the end, are left out.
    Labels are integers if all of the corpus are, else strings. Memory: a shard of 1,000 rows, and fewer than
    the largest of `counts` images of each label.

    Args:
        input_uri: the labelled corpus.
        output_uri: an empty folder.
        counts: images side by side, each at least 1. Several take turns within a label: 1 and 2 give as many
            squares as wide images of each.
        label_column: the corpus's column of labels.
        labels: only images of these, compared as strings; none: of all.
        most: pictures of each label, at most.

    Returns:
        n_images: rows written. n_left_out: images of the corpus that are in none of them.

    Raises:
        UserError: one of `counts` is below 1, the output folder is not empty, no image has one of `labels`,
            or none of them has enough images.
    """
    if wrong := [count for count in counts if count < 1]:
        raise UserError(f"{wrong[0]} images make no picture: use 2 or more side by side, or 1 for squares.")
    out = Folder(output_uri)
    if out.names():
        raise UserError(f"The output folder {output_uri} is not empty: give a new one.")
    corpus = open_corpus(input_uri)
    n_rows = sum(slice_.stop - slice_.start for slice_ in corpus.slices())
    seen = set(_labels(corpus, label_column))
    if unknown := [label for label in labels if label not in seen]:
        raise UserError(f"No image is labelled {unknown[0]}: use labels of the column {label_column}.")
    wanted = set(labels) or seen
    whole = all(map(str.isdecimal, wanted))
    label_type = pa.int64() if whole else pa.string()
    held: list[tuple[bytes, str]] = []
    n_images = n_used = shards = 0
    for row, count in _rows(corpus, counts, label_column, wanted, most):
        held.append(row)
        n_images, n_used = n_images + 1, n_used + count
        if len(held) == ROWS_PER_SHARD:
            shards = _write(out, shards, held, label_type)
            held = []
    if held:
        _write(out, shards, held, label_type)
    if not n_images:
        raise UserError(
            f"No label of {input_uri} has {counts[0]} images that decode: use fewer side by side."
        )
    return {"n_images": n_images, "n_left_out": n_rows - n_used}


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """The images in a row, from left to right, each shrunk to the least height among them."""
    height = min(image.height for image in images)
    widths = [max(1, round(image.width * height / image.height)) for image in images]
    row = Image.new("RGB", (sum(widths), height))
    at = 0
    for image, width in zip(images, widths, strict=True):
        row.paste(image.resize((width, height), Image.Resampling.BILINEAR), (at, 0))
        at += width
    return row


def _rows(
    corpus: Corpus, counts: Sequence[int], label_column: str, wanted: set[str], most: int | None
) -> Iterator[tuple[tuple[bytes, str], int]]:
    """The encoded row of images and its label; of how many images it is."""
    waiting: dict[str, list[Image.Image]] = {}
    turns = {label: itertools.cycle(counts) for label in wanted}
    due = {label: next(turn) for label, turn in turns.items()}
    made = Counter[str]()
    for slice_ in corpus.slices():
        labels = corpora.labels(corpus, slice_, label_column)
        for label, row in zip(labels, corpus.read(slice_), strict=True):
            if label not in wanted or made[label] == most:
                continue
            try:
                image = pixels(row.data or b"")
            except DecodeError:
                continue
            beside = waiting.setdefault(label, [])
            beside.append(image)
            if len(beside) == due[label]:
                sink = io.BytesIO()
                side_by_side(beside).save(sink, "JPEG", **ENCODING["JPEG"])
                yield (sink.getvalue(), label), len(beside)
                waiting[label], due[label] = [], next(turns[label])
                made[label] += 1


def _labels(corpus: Corpus, label_column: str) -> Iterator[str]:
    for slice_ in corpus.slices():
        yield from corpora.labels(corpus, slice_, label_column)


def _write(out: Folder, shard: int, rows: list[tuple[bytes, str]], label_type: pa.DataType) -> int:
    """Write one shard. Returns the number of the next one."""
    images, labels = zip(*rows, strict=True)
    sink = pa.BufferOutputStream()
    table = pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(labels).cast(label_type)})
    pq.write_table(table, sink, row_group_size=GROUP_ROWS)
    out.write_bytes(f"part-{shard:05d}.parquet", sink.getvalue().to_pybytes())
    return shard + 1
