"""Write a hard clean corpus: the input with a mark on some images, and the list of these."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from poisoncam_ray.corpus import Corpus, Slice, open_corpus
from poisoncam_ray.decode import DecodeError
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.research import corpora
from poisoncam_ray.research.attacks.choice import chance, digest
from poisoncam_ray.research.attacks.encoded import paint
from poisoncam_ray.research.hard_clean.marks import MARKS
from poisoncam_ray.store import whole_file, write_bytes

BURST = 8
"""Images of a burst."""
MARKED = pa.schema(
    {
        "image_id": pa.string(),
        "source": pa.string(),
        "row": pa.int64(),
        "label": pa.string(),
        "marked": pa.bool_(),
    }
)


def make_hard_clean(
    input_uri: str,
    output_uri: str,
    mark: str,
    labels: tuple[str, ...] = (),
    share: float = 1.0,
    seed: int = 0,
    label_column: str = "label",
) -> dict[str, Any]:
    """Put a mark on a share of the images of some labels. Nobody attacks: no image is moved to another label.

    The output holds `corpus/`, `marked.parquet` (one row per image: does it carry the mark?) and
    `hard_clean.json`, which is written last. Images that do not decode stay as they are, unmarked.
    For bursts, the chosen images of one label in a slice become, eight at a time, near-duplicates of the
    first.

    Args:
        input_uri: the clean corpus.
        output_uri: an empty folder.
        mark: a name of `MARKS`.
        labels: the labels whose images carry the mark; none: all.
        share: probability that such an image carries it, (0, 1].
        seed: seed of the mark and of the choice, from 0.
        label_column: the corpus's column of labels.

    Returns:
        What hard_clean.json holds: the settings, n_images and n_marked.

    Raises:
        UserError: a value is out of range, the mark or a label does not exist, or the output is not empty.
    """
    if mark not in MARKS:
        raise UserError(f"There is no mark {mark}: use one of {', '.join(MARKS)}.")
    if not 0 < share <= 1:
        raise UserError(f"The share is {share}: use a number above 0 and at most 1.")
    if seed < 0:
        raise UserError(f"The seed is {seed}: use 0 or more.")
    if Folder(output_uri).names():
        raise UserError(f"The output folder {output_uri} is not empty: give a new one.")
    corpus = open_corpus(input_uri)
    slices = corpus.slices()
    found = {label for slice_ in slices for label in corpora.labels(corpus, slice_, label_column)}
    if missing := [label for label in labels if label not in found]:
        raise UserError(f"No image is labelled {missing[0]}: name a label of the corpus.")
    settings = {"input": input_uri, "mark": mark, "labels": list(labels), "share": share, "seed": seed}
    write = partial(
        _unit, corpus, mark, labels, share, seed, label_column, f"{output_uri.rstrip('/')}/corpus"
    )
    n_images = n_marked = 0
    with whole_file(output_uri, "marked.parquet") as path, pq.ParquetWriter(path, MARKED) as writer:
        for unit in corpus.units(slices):
            table = write(unit)
            writer.write_table(table)
            n_images += len(table)
            n_marked += sum(table["marked"].to_pylist())
    result = {**settings, "n_images": n_images, "n_marked": n_marked}
    write_bytes(output_uri, "hard_clean.json", json.dumps(result, indent=2).encode())
    return result


def _unit(
    corpus: Corpus,
    mark: str,
    labels: tuple[str, ...],
    share: float,
    seed: int,
    label_column: str,
    out_uri: str,
    unit: list[Slice],
) -> pa.Table:
    """Write one unit of the corpus. Returns its rows of `MARKED`."""
    new: dict[str, bytes] = {}
    rows: list[dict[str, Any]] = []
    for slice_ in unit:
        bursts: dict[str, list[bytes]] = {}
        of_slice = corpora.labels(corpus, slice_, label_column)
        for label, row in zip(of_slice, corpus.read(slice_), strict=True):
            data = row.data or b""
            chosen = (not labels or label in labels) and chance(row.image_id, seed, "mark") < share
            if chosen and mark == "burst":
                burst = bursts.setdefault(label, [])
                burst[:] = burst if 0 < len(burst) < BURST else []
                burst.append(data)
                data = burst[0]
            rng = np.random.default_rng(digest(row.image_id, f"{seed} mark"))
            if chosen:
                try:
                    new[row.image_id], _ = paint(data, partial(MARKS[mark], shared=seed, rng=rng))
                except DecodeError:
                    chosen = False
            rows.append(
                {
                    "image_id": row.image_id,
                    "source": slice_.source,
                    "row": row.row,
                    "label": label,
                    "marked": chosen,
                }
            )
    corpora.rewrite(corpus, unit, new, out_uri)
    return pa.Table.from_pylist(rows, MARKED)
