"""The images that are measured on: a few pictures of the demo's painter, repeated, as JPEG.

Time does not depend on what a picture shows, only on its size and its bytes. So few are painted, and a number
after the end of each stored picture makes all bytes different.

N images   C channels   H = W encoder image side
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from poisoncam_ray.config import CorpusSettings
from poisoncam_ray.decode import decode
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.demo import SCENES, draw
from poisoncam_ray.store import whole_file

PAINTED = 20
QUALITY = 92
GROUP_ROWS = 256
MAX_PIXELS = CorpusSettings().max_pixels


@cache
def pictures(width: int, height: int) -> tuple[bytes, ...]:
    """Painted pictures of this size, as JPEG."""
    scenes, found = list(SCENES), []
    for number in range(PAINTED):
        side = max(width, height)
        painted_HWC = draw(scenes[number % len(scenes)], side, np.random.default_rng(number))
        sink = io.BytesIO()
        Image.fromarray(painted_HWC[:height, :width]).save(sink, "JPEG", quality=QUALITY)
        found.append(sink.getvalue())
    return tuple(found)


def pixels(n: int, size: int) -> Tensor:
    """x_NCHW, uint8: pictures of this side, repeated."""
    x_NCHW = np.stack([decode(data, size, MAX_PIXELS) for data in pictures(size, size)])
    return torch.from_numpy(x_NCHW)[torch.arange(n) % PAINTED]


def draw_images(folder: Folder, n: int, width: int, height: int, shards: int) -> Folder:
    """Write a Parquet corpus: image (bytes), and beside it an id and a caption. A corpus of these arguments
    that an earlier call wrote is used.

    Args:
        folder: where corpora lie.
        n: number of images.
        width: of each, in pixels.
        height: of each, in pixels.
        shards: number of files.

    Returns:
        The corpus.
    """
    corpus = folder / f"{n}-of-{width}x{height}-in-{shards}"
    if not corpus.exists(_shard(shards - 1)):
        painted = pictures(width, height)
        for shard, numbers in enumerate(np.array_split(np.arange(n), shards)):
            rows = [
                {"id": f"{i:08d}", "image": painted[i % PAINTED] + str(i).encode(), "caption": f"picture {i}"}
                for i in numbers.tolist()
            ]
            with whole_file(corpus.uri, _shard(shard)) as path:
                pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=GROUP_ROWS)
    return corpus


def megabytes(corpus: Folder) -> float:
    """The size of a corpus's shards, in MB."""
    return sum(corpus.filesystem.size(f"{corpus.path}/{name}") for name in corpus.parts()) / 1e6


def _shard(number: int) -> str:
    return f"part-{number:05d}.parquet"
