"""The whole benchmark: its images, its comparisons, and its files.

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
"""Shards of the drawn corpus."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        candidates: candidates that are masked and scored in a round.
        steps: training steps in a round.
        rounds: rounds of each way.
        threads: torch threads of this process; None: as many as the machine has cores.
    """

    candidates: int = 16
    steps: int = 10
    rounds: int = 5
    threads: int | None = None


def measure(
    uri: str, config: Config, out: Folder, sizes: Sizes, peak: tuple[float, float] | None, use_ray: bool
) -> str:
    """Compare the ways of searching, of training and, with Ray, of embedding.

    Writes benchmark.json and benchmark.md. On CPUs, the search is also compared with freed memory returned.

    Args:
        uri: the corpus.
        config: the configuration.
        out: the folder of the results.
        sizes: how much is measured.
        peak: the GPU's TFLOP/s in float32 and in bfloat16, as its maker states them; None: no share of the
            peak is reported.
        use_ray: with the Embed stage on Ray.

    Returns:
        The text of benchmark.md.

    Raises:
        UserError: the corpus is too small.
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
        # Ray takes seconds to load, and --no-ray does without it.
        from poisoncam_ray.research.benchmark.embed import compare_embed

        yield from compare_embed(uri, config, out, sizes.rounds)


def first_images(uri: str, config: Config, n: int) -> Tensor:
    """x_NCHW, uint8: the first images of the corpus that decode.

    Args:
        uri: the corpus.
        config: the configuration.
        n: how many.

    Raises:
        UserError: there are fewer.
    """
    limits, size = config.corpus, config.encoder.image_size
    corpus = open_corpus(uri, limits.format, limits.image_column, limits.rows_per_slice)
    found: list[np.ndarray] = []
    for row in (row for slice_ in corpus.slices() for row in corpus.read(slice_)):
        try:
            found.append(decode(row.data or b"", size, limits.max_pixels, limits.max_bytes))
        except DecodeError:
            continue
        if len(found) == n:
            return torch.from_numpy(np.stack(found))
    raise UserError(f"{uri} holds {len(found)} images that decode and {n} are needed: give a larger one.")


def draw_long_corpus(folder: Folder, seed: int, copies: int) -> None:
    """Write the demo's 3,000 pictures and copies of their shards: a long corpus that is quickly made.

    Shards that an earlier call wrote are used.

    Args:
        folder: where the shards lie.
        seed: seed of the pictures.
        copies: how often each shard is there.
    """
    # The painter is not needed for a corpus of the user's.
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
