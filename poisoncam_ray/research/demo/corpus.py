"""The demo's corpus: a few thousand drawn pictures of ten kinds, as Parquet shards.

Rows look as a Hugging Face image data set does: id, image struct{bytes, path}, label, caption.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.demo.painter import SCENES, draw
from poisoncam_ray.store import whole_file

PNG_SHARE = 0.1  # the rest are JPEGs
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
SCHEMA = pa.schema({"id": pa.string(), "image": IMAGE, "label": pa.int64(), "caption": pa.string()})


def draw_corpus(
    out_uri: str, n_images: int = 3000, n_categories: int = 10, size: int = 64, seed: int = 0, shards: int = 4
) -> None:
    """Write `<out_uri>/part-00000.parquet` …. The same arguments draw the same pictures.

    Args:
        out_uri: The folder.
        n_images: Pictures, in equal shares of the categories.
        n_categories: 2 to 10, the first of `SCENES`; `label` is a category's number, `caption` its name.
        size: Side of a picture, 16 to 512 px.
        seed: 0 or more. A picture is a function of it, the picture's number and its category.
        shards: Number of files.

    Raises:
        UserError: A number is out of range.
    """
    _write(out_uri, n_images, n_categories, size, seed, shards, "train")


def draw_validation(
    out_uri: str, n_images: int = 500, n_categories: int = 10, size: int = 64, seed: int = 0, shards: int = 1
) -> None:
    """As `draw_corpus`, of pictures that no demo corpus holds."""
    _write(out_uri, n_images, n_categories, size, seed, shards, "val")


def _write(uri: str, n_images: int, n_categories: int, size: int, seed: int, shards: int, split: str) -> None:
    if not 2 <= n_categories <= len(SCENES):
        raise UserError(f"The demo has {len(SCENES)} categories: ask for 2 to that many, not {n_categories}.")
    if n_images < n_categories:
        raise UserError(f"{n_images} images cannot fill {n_categories} categories: ask for more images.")
    if not 16 <= size <= 512:
        raise UserError(f"The demo's pictures have a size of 16 to 512 px: ask for one of these, not {size}.")
    if not 1 <= shards <= n_images:
        raise UserError(f"{n_images} images make 1 to {n_images} shards: ask for that many, not {shards}.")
    if seed < 0:
        raise UserError(f"The seed is {seed}: use 0 or more.")
    for shard, numbers in enumerate(np.array_split(np.arange(n_images), shards)):
        rows = [_row(split, int(number), int(number) % n_categories, size, seed) for number in numbers]
        with whole_file(uri, f"part-{shard:05d}.parquet") as path:
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, row_group_size=256)


def _row(split: str, number: int, label: int, size: int, seed: int) -> dict[str, Any]:
    rng, scene, file = (
        np.random.default_rng((seed, split == "val", number)),
        list(SCENES)[label],
        io.BytesIO(),
    )
    kind, suffix = ("PNG", ".png") if rng.random() < PNG_SHARE else ("JPEG", ".jpg")
    Image.fromarray(draw(scene, size, rng)).save(file, kind, quality=92)
    name = f"{split}-{number:06d}"
    image = {"bytes": file.getvalue(), "path": name + suffix}
    return {"id": name, "image": image, "label": label, "caption": scene}
