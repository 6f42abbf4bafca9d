"""Training data: the order depends only on (seed, epoch, rank), and a resumed stream is its tail."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from poisoncam_ray import artifact
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.folder import Folder
from poisoncam_ray.progress import Progress
from poisoncam_ray.runner import Runner
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.index import Index
from poisoncam_ray.stages.training_data import Epochs

SIDE = 16
ROWS = [0, 7, 9, 0, 12, 5]


@st.composite
def some_epochs(draw) -> Epochs:
    workers = draw(st.integers(1, 4))
    return Epochs(
        slice_rows=draw(st.lists(st.integers(0, 30), min_size=1, max_size=12)),
        epochs=3,
        batch_size=workers * draw(st.integers(1, 6)),
        workers=workers,
        seed=draw(st.integers(0, 2**31 - 1)),
        shuffle_rows=draw(st.integers(1, 60)),
    )


@given(some_epochs(), st.integers(0, 2))
def test_a_plan_holds_the_rows_its_batches_need_and_no_slice_too_many(epochs, epoch):
    needed = epochs.steps_per_epoch * epochs.batch_size // epochs.workers
    for rank in range(epochs.workers):
        plan = epochs.plan(epoch, rank)
        rows = [epochs.slice_rows[i] for i in plan]
        assert plan == epochs.plan(epoch, rank)
        assert all(rows)
        assert sum(rows) >= needed
        assert sum(rows[:-1]) < needed or not plan


@given(some_epochs(), st.integers(0, 2))
def test_no_slice_is_read_again_before_all_of_the_ranks_own_were(epochs, epoch):
    filled = {i for i, n in enumerate(epochs.slice_rows) if n}
    plans = [epochs.plan(epoch, rank) for rank in range(epochs.workers)]
    if len(filled) >= epochs.workers:
        owned = [set(plan) for plan in plans]
        assert sum(map(len, owned)) == len(set().union(*owned)), "ranks are disjoint"
    for plan in plans:
        first = plan[: len(set(plan))]
        assert len(set(first)) == len(first)
    if epochs.workers == 1 and epochs.steps_per_epoch:
        left_out = sum(epochs.slice_rows[i] for i in filled - set(plans[0]))
        assert left_out < epochs.batch_size, "one worker reads every slice but the dropped remainder"


def test_epochs_and_seeds_have_orders_of_their_own():
    epochs = Epochs([4] * 20, 5, 8, 1, 0, 1000)
    orders = {tuple(epochs.plan(epoch, 0)) for epoch in range(5)}
    assert len(orders) == 5
    assert tuple(Epochs([4] * 20, 5, 8, 1, 1, 1000).plan(0, 0)) not in orders


@given(some_epochs(), st.integers(0, 2))
def test_an_epoch_has_exactly_its_steps_and_no_row_twice_in_a_window(epochs, epoch):
    """Whatever the window's size against batch and slices."""
    for rank in range(epochs.workers):
        plan = epochs.plan(epoch, rank)
        images = [torch.arange(epochs.slice_rows[i]) + 1000 * turn for turn, i in enumerate(plan)]
        batches = list(epochs._shuffled(iter(images), epoch, rank)) if plan else []
        assert [len(b) for b in batches] == [epochs.batch_size // epochs.workers] * (
            epochs.steps_per_epoch if plan else 0
        )
        seen = torch.cat(batches).tolist() if batches else []
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(torch.cat(images).tolist() if images else [])


def test_a_window_is_shuffled():
    epochs = Epochs([64], 1, 8, 1, 0, 64)
    (first, again) = (torch.cat(list(epochs._shuffled(iter([torch.arange(64)]), e, 0))) for e in (0, 1))
    assert not torch.equal(first, torch.arange(64)) and not torch.equal(first, again)
    assert torch.equal(first.sort().values, torch.arange(64))


# --------------------------------------------------------------- on a real Ray


def png(value: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), value, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def indexed(ray_cluster, tmp_path_factory):
    """A corpus whose image i is of shade i throughout, in slices of ROWS rows that decode."""
    folder = tmp_path_factory.mktemp("training_data")
    shade = iter(range(256))
    (folder / "corpus").mkdir()
    for shard, n in enumerate(ROWS):
        images = [png(next(shade)) for _ in range(n)]
        # A shard of broken rows only is a slice without any; elsewhere one breaks the numbering of rows.
        images.insert(n // 2, b"broken")
        pq.write_table(
            pa.table({"image": pa.array(images, pa.binary())}), folder / "corpus" / f"{shard}.parquet"
        )
    config = load_config(overrides=[f"encoder.image_size={SIDE}", "pretrain.batch_size=8"])
    runner = Runner(str(folder / "corpus"), str(folder / "run"), config, [Index()])
    runner.run(Progress())
    index = Folder(str(folder / "run")) / artifact.INDEX
    assert index.read_table(artifact.SLICES)["rows"].to_pylist() == ROWS
    return open_corpus(str(folder / "corpus")), config, index


def shades(batches) -> list[list[int]]:
    return [x_B2CHW[:, 0, 0, 0, 0].tolist() for x_B2CHW in batches]


@pytest.mark.cluster
def test_batches_cover_the_corpus_and_a_resumed_stream_is_the_tail(indexed):
    epochs = Epochs(ROWS, 2, 8, 1, 0, 20)
    assert epochs.steps_per_epoch == 4
    stream = list(epochs.batches(*indexed, rank=0, start=0))
    assert all(x.shape == (8, 2, 3, SIDE, SIDE) and x.dtype == torch.uint8 for x in stream)
    assert all(bool((x == x[:, :1, :1, :1, :1]).all()) for x in stream), "both crops are of one image"
    everything = shades(stream)
    assert len(everything) == epochs.total == 8
    for epoch in (everything[:4], everything[4:]):
        seen = [s for batch in epoch for s in batch]
        assert len(set(seen)) == 32 and set(seen) <= set(range(33))
    assert everything[:4] != everything[4:]
    for step in (3, 4, 6):
        assert shades(epochs.batches(*indexed, rank=0, start=step)) == everything[step:]
    assert shades(epochs.batches(*indexed, rank=0, start=8)) == []


@pytest.mark.cluster
def test_ranks_share_the_corpus(indexed):
    epochs = Epochs(ROWS, 1, 8, 2, 0, 20)
    ranks = [shades(epochs.batches(*indexed, rank=rank, start=0)) for rank in (0, 1)]
    assert [[len(batch) for batch in rank] for rank in ranks] == [[4] * 4] * 2
    first, second = ({s for batch in rank for s in batch} for rank in ranks)
    assert not first & second
