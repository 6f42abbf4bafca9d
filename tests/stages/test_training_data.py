"""The order of training batches: the same for any number of workers, and exact from any step. No Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.stages.training_data import MOST_LANES, Epochs, Piece

ROW = 1000
"""An image is known as slice × ROW + row."""


def read(pieces: Iterator[Piece]) -> Iterator[np.ndarray]:
    """The images' names in the place of their pixels."""
    return (piece.slice * ROW + piece.rows_R for piece in pieces)


def batches(epochs: Epochs, workers: int = 1, start: int = 0) -> list[list[int]]:
    """The global batches, joined from what the ranks read."""
    ranks = [epochs.batches(read, epochs.positions(rank, workers), start) for rank in range(workers)]
    return [torch.cat(parts).tolist() for parts in zip(*ranks, strict=True)]


def everything(epochs: Epochs) -> set[int]:
    return {i * ROW + row for i, n in enumerate(epochs.slice_rows) for row in range(n)}


@st.composite
def some_epochs(draw) -> Epochs:
    """Tiny corpora among them: one slice, empty ones, fewer slices than workers, less than one batch."""
    return Epochs(
        slice_rows=draw(st.lists(st.integers(0, 40), min_size=1, max_size=14)),
        epochs=draw(st.integers(1, 3)),
        batch_size=8 * draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 2**23 - 1)),
        shuffle_rows=draw(st.integers(1, 300)),
        max_images=draw(st.none() | st.integers(48, 400)),
    )


@given(some_epochs(), st.sampled_from([2, 4, 8]))
def test_any_number_of_workers_trains_the_same_batches(epochs, workers):
    assert batches(epochs, workers) == batches(epochs)


@given(some_epochs(), st.data())
def test_a_training_goes_on_exactly_at_any_step_with_any_number_of_workers(epochs, data):
    step = data.draw(st.integers(0, epochs.total))
    workers = data.draw(st.sampled_from([1, 2, 8]))
    assert batches(epochs, workers, step) == batches(epochs)[step:]


@given(some_epochs())
def test_an_epoch_shows_every_image_once_but_the_dropped_remainder(epochs):
    whole = batches(replace(epochs, max_images=None))
    steps = epochs.steps_per_epoch
    assert len(whole) == epochs.epochs * steps
    assert all(len(batch) == epochs.batch_size for batch in whole)
    for epoch in range(epochs.epochs):
        seen = [image for batch in whole[epoch * steps : (epoch + 1) * steps] for image in batch]
        assert len(set(seen)) == len(seen) == len(everything(epochs)) // epochs.batch_size * epochs.batch_size
        assert set(seen) <= everything(epochs)


@given(some_epochs())
def test_a_budget_ends_the_same_training_early(epochs):
    shown = batches(epochs)
    assert shown == batches(replace(epochs, max_images=None))[: len(shown)]
    assert len(shown) == epochs.total
    assert epochs.max_images is None or len(shown) * epochs.batch_size <= epochs.max_images
    different = {image for batch in shown for image in batch}
    assert len(different) <= epochs.seen <= len(everything(epochs))
    if epochs.total <= epochs.steps_per_epoch:
        assert len(different) == epochs.seen


@given(some_epochs(), st.sampled_from([1, 2, 8]), st.data())
def test_no_row_is_asked_for_twice_nor_without_being_used(epochs, workers, data):
    """Each is decoded once in an epoch, whatever the workers; after a resume only what is left."""
    step = data.draw(st.integers(0, epochs.total))
    asked: Counter[tuple[int, int]] = Counter()
    for rank in range(workers):
        for block in epochs.blocks(epochs.positions(rank, workers), step):
            for piece in block.pieces:
                assert (np.diff(piece.rows_R) > 0).all()
                asked.update((piece.epoch, piece.slice * ROW + int(row)) for row in piece.rows_R)
    assert set(asked.values()) <= {1}
    assert asked.total() == (epochs.total - step) * epochs.batch_size


@pytest.mark.parametrize("rows", [[500], [0, 40, 0], [1] * 9, [300, 200]])
def test_what_one_epoch_leaves_over_another_shows(rows):
    """In a single slice, too: half of it may be left over, and the poison may be its last rows."""
    epochs = Epochs(rows, 30, sum(rows) // 2 + 1, 0, 32_768)
    shown = batches(epochs)
    assert epochs.steps_per_epoch == 1 and len({i for batch in shown for i in batch}) == sum(rows)
    times = Counter(image for batch in shown for image in batch)
    assert min(times.values()) >= 5


def test_a_lane_has_about_a_slice_of_rows_in_a_block():
    assert Epochs([1024] * 1000, 1, 1024, 0, 262_144).lanes == MOST_LANES
    assert Epochs([1024] * 1000, 1, 1024, 0, 32_768).lanes == 32
    assert Epochs([1024] * 3, 1, 128, 0, 32_768).lanes == 2
    assert Epochs([1024] * 1000, 1, 96, 0, 32_768).lanes == 32
    assert Epochs([0, 0, 5], 1, 4, 0, 32_768).lanes == 1
    for rows in ([1024] * 1000, [3, 900] * 20):
        epochs = Epochs(rows, 1, 64, 0, 8192)
        pieces = [piece for block in epochs.blocks(slice(0, 64)) for piece in block.pieces]
        assert len(pieces) < 3 * len(rows)


def test_a_rank_holds_its_part_of_the_shuffled_rows_and_no_more():
    """With every size of the corpus; the blocks of its lanes are not all due at once."""
    epochs = Epochs([64] * 400, 1, 64, 0, 4096)
    for workers in (1, 4, 16):
        held: dict[int, int] = {}
        due: Counter[int] = Counter()
        for block in epochs.blocks(epochs.positions(0, workers)):
            held[block.lane] = block.order_SP.size
            due[block.first] += block.order_SP.size
            assert sum(held.values()) <= 4096 // workers
        del due[0]
        assert max(due.values()) <= 4096 // epochs.lanes


def test_images_that_lie_together_are_not_trained_together():
    """Shards sorted by category: a batch holds images of most of them."""
    epochs = Epochs([64] * 64, 2, 64, 0, 4096)
    first, *_, last = batches(epochs)
    for batch in (first, last):
        assert len({image // ROW for image in batch}) > 24
    assert batches(epochs)[:64] != batches(epochs)[64:]
    assert batches(replace(epochs, seed=1)) != batches(epochs)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 6, 12])
def test_the_positions_of_the_ranks_are_the_batch(workers):
    epochs = Epochs([100], 1, 12, 0, 100)
    positions = [epochs.positions(rank, workers) for rank in range(workers)]
    assert [i for of in positions for i in range(of.start, of.stop)] == list(range(12))
