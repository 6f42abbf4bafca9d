"""Training batches through Ray Data in an order that depends on (seed, epoch, rank) alone.

Ray's own splitting gives each worker whatever is ready, so no two runs see the same batches. Here every
worker streams its own slices, decoded by cluster tasks, and shuffles them itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus
from poisoncam_ray.corpus.slices import slices_of
from poisoncam_ray.folder import Folder
from poisoncam_ray.stages.dataflow import stream_pixels

LOOK_AHEAD = 256


def drawn_by(*numbers: int) -> torch.Generator:
    """A random generator that depends on all of the numbers.

    The numbers are hashed, because torch's generator uses only the lower 32 bits of a seed.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


@dataclass(frozen=True)
class Epochs:
    """`slice_rows`: indexed rows of each slice; `batch_size`: of all workers together; rows left over at an
    epoch's end are dropped, as in the reference."""

    slice_rows: list[int]
    epochs: int
    batch_size: int
    workers: int
    seed: int
    shuffle_rows: int

    @property
    def steps_per_epoch(self) -> int:
        return sum(self.slice_rows) // self.batch_size

    @property
    def total(self) -> int:
        return self.epochs * self.steps_per_epoch

    def plan(self, epoch: int, rank: int) -> list[int]:
        """Slice indices that this rank reads in this epoch, in order; as many rows as its batches need.

        Ranks take turns along one permutation; a rank whose slices are short reads its first ones again.
        """
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.slice_rows)).tolist()
        filled = [i for i in order if self.slice_rows[i]]
        own = filled[rank :: self.workers] or filled
        needed, rows = self.steps_per_epoch * self.batch_size // self.workers, 0
        chosen: list[int] = []
        while rows < needed:
            chosen.append(own[len(chosen) % len(own)])
            rows += self.slice_rows[chosen[-1]]
        return chosen

    def batches(
        self, corpus: Corpus, config: Config, index: Folder, rank: int, start: int
    ) -> Iterator[Tensor]:
        """x_BCHW (uint8) of every step from `start` on, B = batch_size / workers."""
        first = start // max(1, self.steps_per_epoch)
        table = index.read_table(artifact.SLICES)
        every = chain.from_iterable(self.plan(epoch, rank) for epoch in range(first, self.epochs))
        # Slices become objects as they are due: of a large corpus all of them are half a gigabyte.
        order = chain.from_iterable(slices_of(table.take(part)) for part in _runs(every))
        pixels = stream_pixels(order, corpus, config, index)
        skip = start % max(1, self.steps_per_epoch)
        for epoch in range(first, self.epochs):
            pieces = (torch.from_numpy(next(pixels)) for _ in self.plan(epoch, rank))
            for step, x_BCHW in enumerate(self._shuffled(pieces, epoch, rank)):
                if epoch > first or step >= skip:
                    yield x_BCHW

    def _shuffled(self, pieces: Iterator[Tensor], epoch: int, rank: int) -> Iterator[Tensor]:
        """Batches from windows of `shuffle_rows` rows, each window in random order."""
        generator = drawn_by(self.seed, epoch, rank)
        size, left = self.batch_size // self.workers, self.steps_per_epoch
        held: list[Tensor] = []
        for piece in pieces:
            held.append(piece)
            if sum(len(p) for p in held) >= max(size, self.shuffle_rows):
                window_NCHW = _permuted(held, generator)
                n = min(left, len(window_NCHW) // size)
                yield from window_NCHW[: n * size].split(size)
                held, left = [window_NCHW[n * size :]], left - n
        if left:
            yield from _permuted(held, generator)[: left * size].split(size)


def _permuted(held: list[Tensor], generator: torch.Generator) -> Tensor:
    x_NCHW = torch.cat(held)
    return x_NCHW[torch.randperm(len(x_NCHW), generator=generator)]


def _runs(order: Iterator[int]) -> Iterator[list[int]]:
    while run := list(islice(order, LOOK_AHEAD)):
        yield run
