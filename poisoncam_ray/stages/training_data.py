"""Training batches through Ray Data, in an order that depends only on (seed, epoch, rank).

Ray Data's own split gives a worker whichever block is ready, so the batches differ from run to run. Here each
worker chooses its slices, streams them through cluster tasks that decode them and cut two crops out of each
image, and shuffles the pairs.

N images   2 crops of an image   B images of a batch, of one rank   C channels   H = W image side
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, Slice
from poisoncam_ray.corpus.slices import slices_of
from poisoncam_ray.folder import Folder
from poisoncam_ray.stages.dataflow import stream_crops

# Slices that are made into objects at once.
SLICES_AHEAD = 256


def drawn_by(*numbers: int) -> torch.Generator:
    """A random generator that depends on all of the numbers.

    The numbers are hashed, because torch's generator uses only the lower 32 bits of a seed.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


@dataclass(frozen=True)
class Epochs:
    """The order of a training's batches. Rows left over at an epoch's end are dropped, as in the reference.

    Attributes:
        slice_rows: indexed rows of each slice.
        epochs: the number of epochs.
        batch_size: images of a batch, of all ranks together.
        workers: the number of ranks.
        seed: of the order.
        shuffle_rows: rows that a rank shuffles together.
    """

    slice_rows: list[int]
    epochs: int
    batch_size: int
    workers: int
    seed: int
    shuffle_rows: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return sum(self.slice_rows) // self.batch_size

    @property
    def total(self) -> int:
        """Batches of the training."""
        return self.epochs * self.steps_per_epoch

    def plan(self, epoch: int, rank: int) -> list[int]:
        """The slices that a rank reads in an epoch: as many as its batches need.

        Ranks take turns along one permutation. A rank whose slices have too few rows reads some again.

        Returns:
            Indices of the slices, in order.
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
        """Read a rank's batches.

        Args:
            corpus: the corpus.
            config: the configuration.
            index: the artifact of Index.
            rank: the rank.
            start: the first step, counted through all epochs.

        Yields:
            x_B2CHW, uint8, of every step from `start` on; B = batch_size / workers.
        """
        first = start // max(1, self.steps_per_epoch)
        table = index.read_table(artifact.SLICES)
        every = ((i, epoch) for epoch in range(first, self.epochs) for i in self.plan(epoch, rank))
        # Slices become objects only when they are due: those of a large corpus would fill the memory.
        order = chain.from_iterable(_made(table, some) for some in _runs(every))
        pixels = stream_crops(order, corpus, config, index)
        skip = start % max(1, self.steps_per_epoch)
        for epoch in range(first, self.epochs):
            images = (torch.from_numpy(next(pixels)) for _ in self.plan(epoch, rank))
            for step, x_B2CHW in enumerate(self._shuffled(images, epoch, rank)):
                if epoch > first or step >= skip:
                    yield x_B2CHW

    def _shuffled(self, images: Iterator[Tensor], epoch: int, rank: int) -> Iterator[Tensor]:
        """Batches of an epoch, from buffers of `shuffle_rows` rows, each in random order.

        Args:
            images: x_N2CHW of each slice, in order.
            epoch: the epoch.
            rank: the rank.
        """
        generator = drawn_by(self.seed, epoch, rank)
        size, left = self.batch_size // self.workers, self.steps_per_epoch
        held: list[Tensor] = []
        for slice_N2CHW in images:
            held.append(slice_N2CHW)
            if sum(len(x_N2CHW) for x_N2CHW in held) >= max(size, self.shuffle_rows):
                buffer_N2CHW = _permuted(held, generator)
                n = min(left, len(buffer_N2CHW) // size)
                yield from buffer_N2CHW[: n * size].split(size)
                held, left = [buffer_N2CHW[n * size :]], left - n
        if left:
            yield from _permuted(held, generator)[: left * size].split(size)


def _permuted(held: list[Tensor], generator: torch.Generator) -> Tensor:
    x_N2CHW = torch.cat(held)
    return x_N2CHW[torch.randperm(len(x_N2CHW), generator=generator)]


def _made(table: pa.Table, some: list[tuple[int, int]]) -> Iterator[tuple[Slice, int]]:
    """Slices by their indices, each with its epoch."""
    return zip(slices_of(table.take([i for i, _ in some])), (epoch for _, epoch in some), strict=True)


def _runs(order: Iterator[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    while run := list(islice(order, SLICES_AHEAD)):
        yield run
