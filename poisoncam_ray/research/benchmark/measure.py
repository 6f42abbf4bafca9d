"""The benchmark as a whole: which images, which comparisons, what is written.

N images   C channels   H = W encoder image side
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from poisoncam_ray.config import Config
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.decode import DecodeError, decode
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.benchmark.allocator import compare_allocator
from poisoncam_ray.research.benchmark.compare import Comparison, machine, markdown
from poisoncam_ray.research.benchmark.search import compare_search
from poisoncam_ray.research.benchmark.training import compare_training
from poisoncam_ray.stages.compute import device, keep_freed_memory

SHARDS = 4
"""Of the drawn corpus, the last one written when all are."""


@dataclass(frozen=True)
class Sizes:
    """`candidates` scored and `steps` trained in a round; `rounds` of each way; torch `threads` of this
    process (None: the machine's cores)."""

    candidates: int = 16
    steps: int = 10
    rounds: int = 5
    threads: int | None = None


def measure(
    uri: str, config: Config, out: Folder, sizes: Sizes, peak: tuple[float, float] | None, use_ray: bool
) -> str:
    """Compare search, on CPUs also with freed memory returned, training and, with Ray, Embed; write
    benchmark.json and benchmark.md into `out` and return the Markdown.

    `peak`: the GPU's TFLOP/s in float32 and in bfloat16, as its maker states them; without it no share of the
    peak is told. Raises UserError when the corpus at `uri` is too small.
    """
    torch.set_num_threads(sizes.threads or os.cpu_count() or 1)
    keep_freed_memory()
    facts, found = machine(), []
    for compared in _comparisons(uri, config, out, sizes, use_ray):
        found.append(compared.with_share(peak))
        rows = [asdict(c) | {"ratios": c.ratios} for c in found]
        out.write_json("benchmark.json", {"machine": facts, "sizes": asdict(sizes), "comparisons": rows})
        out.write_bytes("benchmark.md", markdown(found, facts).encode())
    return markdown(found, facts)


def _comparisons(uri: str, config: Config, out: Folder, sizes: Sizes, use_ray: bool) -> Iterator[Comparison]:
    batch = config.pretrain.batch_size // config.pretrain.workers
    n_search = sizes.candidates + config.search.flip_images
    x_NCHW = first_images(uri, config, max(batch, n_search)).to(device())
    yield compare_search(x_NCHW, config, sizes.candidates, sizes.rounds)
    if device().type == "cpu":
        yield compare_allocator(x_NCHW, config, sizes.candidates, sizes.rounds)
    yield compare_training(x_NCHW[:batch], config, sizes.steps, sizes.rounds)
    if use_ray:
        # Ray takes seconds to import and is not wanted everywhere.
        from poisoncam_ray.research.benchmark.embed import compare_embed

        yield from compare_embed(uri, config, out, sizes.rounds)


def first_images(uri: str, config: Config, n: int) -> Tensor:
    """x_NCHW uint8, the first `n` images of the corpus that decode. UserError when there are fewer."""
    limits, size = config.corpus, config.encoder.image_size
    corpus = open_corpus(uri, limits.format, limits.image_column, limits.rows_per_slice)
    found: list[np.ndarray] = []
    for row in (row for piece in corpus.slices() for row in corpus.read(piece)):
        try:
            found.append(decode(row.data or b"", size, limits.max_pixels, limits.max_bytes))
        except DecodeError:
            continue
        if len(found) == n:
            return torch.from_numpy(np.stack(found))
    raise UserError(f"{uri} holds {len(found)} images that decode and {n} are needed: give a larger one.")


def draw_long_corpus(folder: Folder, seed: int, copies: int) -> None:
    """The demo's 3,000 pictures in `copies` copies of their shards: long without the time to draw it. What an
    earlier call drew there is used."""
    from poisoncam_ray.research.demo import draw_corpus

    originals = [f"part-{shard:05d}.parquet" for shard in range(SHARDS)]
    if not folder.exists(originals[-1]):
        draw_corpus(folder.uri, seed=seed, shards=SHARDS)
    wanted = {
        name.replace(".parquet", f"-copy{copy:03d}.parquet"): name
        for name in originals
        for copy in range(1, copies)
    }
    there = set(folder.parts())
    for surplus in there - wanted.keys() - set(originals):
        folder.delete(surplus)
    for target in wanted.keys() - there:
        folder.write_bytes(target, folder.read_bytes(wanted[target]))
