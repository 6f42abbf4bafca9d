"""The order of the training's batches: which image lies where in which global batch.

It depends on the seed, the epoch and the rows of the slices, and not on the number of ranks: each rank takes
a run of positions of every global batch. It is arithmetic on row numbers, so a training goes on at any step
without reading what came before.

An epoch is a random order of the slices, joined to one circle of rows. From a random row on, it is cut into
equally long lanes, so every row is as likely as others to be left over. Each lane is shuffled in blocks of
steps and gives the same number of images to every batch.

B images of a batch   S steps of a block   P positions of a batch, of one rank in one lane   R rows of a piece
2 crops of an image   C channels   H = W image side
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, tee

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST_LANES = 64
"""A rank holds a block of each of its lanes. More lanes mix a batch from more places of the corpus."""

Rows = NDArray[np.int64]


def drawn_by(*numbers: int) -> torch.Generator:
    """A random generator that depends on all of the numbers.

    The numbers are hashed, because torch's generator uses only the lower 32 bits of a seed.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


@dataclass(frozen=True)
class Piece:
    """Rows of one slice that a rank needs together.

    Attributes:
        epoch: whose crops are drawn.
        slice: the index of the slice.
        rows_R: row numbers in the slice, ascending, among the rows that are counted.
    """

    epoch: int
    slice: int
    rows_R: Rows


@dataclass(frozen=True)
class Block:
    """What a rank holds of one lane during some steps.

    Attributes:
        first: the first of these steps, counted through all epochs.
        lane: the number of the lane.
        pieces: its rows.
        order_SP: for each step and position, the place of the row in the joined pieces.
    """

    first: int
    lane: int
    pieces: list[Piece]
    order_SP: Rows


Read = Callable[[Iterator[Piece]], Iterator[NDArray[np.uint8]]]
"""Gives x_R2CHW of each piece, in order."""


@dataclass(frozen=True)
class Epochs:
    """The order of a training's batches. Rows left over at an epoch's end are dropped, as in the reference.

    Attributes:
        slice_rows: rows of each slice that the training may use.
        epochs: the number of epochs.
        batch_size: B, images of a batch, of all ranks together.
        seed: of the order.
        shuffle_rows: rows that are shuffled together, in all lanes.
        max_images: images shown at most, repeats counted; None: those of all epochs.
    """

    slice_rows: list[int]
    epochs: int
    batch_size: int
    seed: int
    shuffle_rows: int
    max_images: int | None = None

    @cached_property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch. Every step asks for it, and a large corpus has a million slices."""
        return sum(self.slice_rows) // self.batch_size

    @property
    def total(self) -> int:
        """Batches of the training."""
        every = self.epochs * self.steps_per_epoch
        return every if self.max_images is None else min(every, self.max_images // self.batch_size)

    @property
    def seen(self) -> int:
        """Different images that the training shows, at most: rows that one epoch leaves over, others show."""
        return min(self.total * self.batch_size, sum(self.slice_rows))

    @cached_property
    def lanes(self) -> int:
        """The number of lanes: divides the batch. A lane has at least about a slice of rows, and so has a
        block, or each slice would be read for many of them."""
        filled = [n for n in self.slice_rows if n]
        most = min(MOST_LANES, len(filled), self.shuffle_rows // max(filled, default=1))
        return max((n for n in range(1, most + 1) if self.batch_size % n == 0), default=1)

    def positions(self, rank: int, workers: int) -> slice:
        """The positions of each global batch that a rank serves: the rank-th of `workers` equal runs.

        Args:
            rank: from 0.
            workers: divides the batch size.
        """
        share = self.batch_size // workers
        return slice(rank * share, (rank + 1) * share)

    def batches(self, read: Read, positions: slice, start: int = 0) -> Iterator[Tensor]:
        """Some positions of every batch.

        Args:
            read: gives the pixels of pieces. It may ask for pieces long before their use.
            positions: of a global batch.
            start: the first step, counted through all epochs.

        Yields:
            x_B2CHW, uint8, of every step from `start` on; B = the number of positions.
        """
        due, ahead = tee(self.blocks(positions, start))
        pixels = read(piece for block in ahead for piece in block.pieces)
        held: dict[int, tuple[Block, NDArray[np.uint8]]] = {}
        block = next(due, None)
        for step in range(start, self.total):
            while block is not None and block.first == step:
                # The lane's last block is done: its memory is for the next.
                held.pop(block.lane, None)
                held[block.lane] = block, _joined(pixels, block.pieces)
                block = next(due, None)
            parts = (held[lane] for lane in sorted(held))
            # By numpy, in one thread: torch would take threads from the training step.
            taken = [x_R2CHW.take(of.order_SP[step - of.first], axis=0) for of, x_R2CHW in parts]
            yield torch.from_numpy(np.concatenate(taken))

    def blocks(self, positions: slice, start: int = 0) -> Iterator[Block]:
        """What is needed for some positions of every batch from a step on, in the order in which it is due.

        Args:
            positions: of a global batch.
            start: the first step, counted through all epochs.
        """
        steps, width = self.steps_per_epoch, self.batch_size // self.lanes
        lanes = range(positions.start // width, -(-positions.stop // width))
        for epoch in range(start // max(1, steps), self.epochs):
            begun = epoch * steps
            after, until = max(0, start - begun), min(steps, self.total - begun)
            stream = _Stream(self.slice_rows, self.seed, epoch)
            cuts = ((max(cut, after), lane, cut, end) for lane in lanes for cut, end in self._cuts(lane))
            for first, lane, cut, end in sorted(one for one in cuts if one[0] < min(one[3], until)):
                rng = np.random.default_rng([self.seed, epoch, lane, cut])
                order = rng.permutation((end - cut) * width).reshape(end - cut, width)
                from_, to = (min(max(0, p - lane * width), width) for p in (positions.start, positions.stop))
                wanted = order[first - cut : until - cut, from_:to]
                places, order_SP = np.unique(wanted, return_inverse=True)
                pieces = stream.pieces(places + (lane * steps + cut) * width)
                yield Block(begun + first, lane, pieces, order_SP.reshape(wanted.shape))

    def _cuts(self, lane: int) -> Iterator[tuple[int, int]]:
        """First step of each block of a lane in an epoch, and the step after its last. Lanes are cut at
        different steps, so that their blocks are not all due at once."""
        steps, length = self.steps_per_epoch, max(1, self.shuffle_rows // self.batch_size)
        cut, end = 0, length - lane * length // self.lanes
        while cut < steps:
            yield cut, min(end, steps)
            cut, end = end, end + length


def _joined(pixels: Iterator[NDArray[np.uint8]], pieces: list[Piece]) -> NDArray[np.uint8]:
    """The pixels of the pieces, which come next. Each leaves the object store at once."""
    ends = np.cumsum([len(piece.rows_R) for piece in pieces])
    first = next(pixels)
    joined = np.empty((ends[-1], *first.shape[1:]), first.dtype)
    joined[: ends[0]] = first
    for start, end in pairwise(ends):
        joined[start:end] = next(pixels)
    return joined


class _Stream:
    """The rows of an epoch: slice after slice in a random order, round about from a random row on."""

    def __init__(self, slice_rows: list[int], seed: int, epoch: int) -> None:
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(slice_rows))
        rows = np.array(slice_rows, np.int64)[order]
        self.epoch, self.order, self.ends = epoch, order[rows > 0], np.cumsum(rows[rows > 0])
        self.starts = self.ends - rows[rows > 0]
        self.total = sum(slice_rows)
        self.first = int(rng.integers(max(1, self.total)))

    def pieces(self, places: Rows) -> list[Piece]:
        """The rows at ascending places of the stream, as pieces in order."""
        places = (places + self.first) % self.total
        in_N = np.searchsorted(self.ends, places, side="right")
        # Where places fall, the circle has closed, perhaps in the slice in which it began.
        cuts = np.flatnonzero((np.diff(in_N) != 0) | (np.diff(places) < 0)) + 1
        parts = np.split(np.arange(len(places)), cuts) if len(places) else []
        numbers = [int(in_N[part[0]]) for part in parts]
        return [
            Piece(self.epoch, int(self.order[i]), places[part] - self.starts[i])
            for i, part in zip(numbers, parts, strict=True)
        ]
