"""The demo corpus: a few thousand drawn photographs in natural-looking categories, as Parquet shards.

Rows look as a Hugging Face image data set does: id, image struct{bytes, path}, label, caption.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.demo import closeups, landscapes
from poisoncam_ray.research.demo.camera import occlude, photograph
from poisoncam_ray.research.demo.canvas import Canvas
from poisoncam_ray.store import whole_file

MARGIN = 1.125  # side of the canvas / side of the photograph: room to turn, zoom and shift the camera
BATCH = 32  # pictures painted together: small enough to stay in the processor's cache
PNG_SHARE = 0.1  # the rest are JPEGs

SCENES: dict[str, Callable[[Canvas], None]] = {
    "seascape": landscapes.seascape,
    "mountains": landscapes.mountains,
    "forest": landscapes.forest,
    "fish": closeups.fish,
    "city at night": landscapes.city,
    "fruit": closeups.fruit,
    "meadow": landscapes.meadow,
    "clouds": landscapes.clouds,
    "brick wall": closeups.wall,
    "animal fur": closeups.fur,
    "coral": closeups.coral,
    "dunes": landscapes.dunes,
}

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "label": pa.int64(),
        "caption": pa.string(),
    }
)


def draw(scene: str, n: int, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """`n` photographs of one of `SCENES`: uint8 (n, size, size, 3)."""
    canvas = Canvas(rng, n, round(size * MARGIN))
    SCENES[scene](canvas)
    occlude(canvas)
    return photograph(canvas, size)


def draw_corpus(
    out_uri: str,
    n_images: int = 3000,
    n_categories: int = 10,
    size: int = 64,
    seed: int = 0,
    shards: int = 4,
) -> None:
    """Write `<out_uri>/part-00000.parquet` …: `n_images` pictures of `size` px, shuffled, in `shards` files.

    Categories are the first `n_categories` of `SCENES` (2–12) and share the pictures evenly; `label` is the
    category's number, `caption` its name. About a tenth are PNGs, the others JPEGs of quality 92. The same
    arguments draw the same pictures. Raises UserError for numbers out of range.
    """
    _write(out_uri, n_images, n_categories, size, seed, shards, "train")


def draw_validation(
    out_uri: str, n_images: int = 500, n_categories: int = 10, size: int = 64, seed: int = 0, shards: int = 1
) -> None:
    """As `draw_corpus`, of pictures that no demo corpus holds."""
    _write(out_uri, n_images, n_categories, size, seed, shards, "val")


def _write(
    out_uri: str, n_images: int, n_categories: int, size: int, seed: int, shards: int, split: str
) -> None:
    if not 2 <= n_categories <= len(SCENES):
        raise UserError(
            f"The demo has {len(SCENES)} categories: ask for 2 to {len(SCENES)}, not {n_categories}."
        )
    if n_images < n_categories:
        raise UserError(f"{n_images} images cannot fill {n_categories} categories: ask for more images.")
    if not 16 <= size <= 512:
        raise UserError(
            f"The demo's pictures are 16 to 512 px wide: ask for a size in that range, not {size}."
        )
    if not 1 <= shards <= n_images:
        raise UserError(f"{n_images} images make 1 to {n_images} shards: ask for that many, not {shards}.")
    if seed < 0:
        raise UserError(f"The seed is {seed}: use 0 or more.")
    for shard, rows in enumerate(np.array_split(np.arange(n_images), shards)):
        stream = (seed, int(split == "val"), shard)
        labels = np.random.default_rng(stream).permutation(rows % n_categories)
        files = _draw_files(labels, size, stream)
        names = [f"{split}-{row:06d}" for row in rows]
        suffixes = ["png" if data.startswith(b"\x89PNG") else "jpg" for data in files]
        images = [
            {"bytes": data, "path": f"{name}.{suffix}"}
            for data, name, suffix in zip(files, names, suffixes, strict=True)
        ]
        captions = [list(SCENES)[label] for label in labels]
        table = pa.table([names, images, labels, captions], schema=SCHEMA)
        with whole_file(out_uri, f"part-{shard:05d}.parquet") as path:
            pq.write_table(table, path, row_group_size=256)


def _draw_files(labels_N: NDArray[np.int64], size: int, seed: Sequence[int]) -> list[bytes]:
    """An encoded picture for each label, painted scene by scene; numpy lets threads paint side by side."""
    files = [b""] * len(labels_N)

    def paint(label: int, scene: str, batch: int, places: NDArray[np.int64]) -> None:
        rng = np.random.default_rng([*seed, label, batch])
        for place, pixels_HWC in zip(places, draw(scene, len(places), size, rng), strict=True):
            files[place] = _encode(pixels_HWC, png=rng.random() < PNG_SHARE)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        jobs = [
            pool.submit(paint, label, scene, batch, places)
            for label, scene in enumerate(SCENES)
            for batch, places in enumerate(_batches(np.flatnonzero(labels_N == label)))
        ]
    for job in jobs:
        job.result()
    return files


def _batches(places: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [places[first : first + BATCH] for first in range(0, len(places), BATCH)]


def _encode(pixels_HWC: NDArray[np.uint8], png: bool) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels_HWC)
    if png:
        image.save(file, "PNG", compress_level=4)
    else:
        image.save(file, "JPEG", quality=92)
    return file.getvalue()
