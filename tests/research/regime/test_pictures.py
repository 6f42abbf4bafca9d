"""Pictures in memory, their crops, and the order of batches."""

from __future__ import annotations

import io
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.regime.pictures import batches, hold


def png(width: int, height: int, left: int, right: int) -> bytes:
    """The left half and the right half have one shade each."""
    x_HWC = np.full((height, width, 3), left, np.uint8)
    x_HWC[:, width // 2 :] = right
    sink = io.BytesIO()
    Image.fromarray(x_HWC).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def corpus(tmp_path) -> str:
    cells = [png(64, 64, 10, 10), png(80, 40, 20, 220), b"\x89PNG broken", png(64, 64, 30, 30)]
    pq.write_table(pa.table({"image": cells, "kind": ["a", "b", "c", "a"]}), tmp_path / "0.parquet")
    return str(tmp_path)


def test_pictures_keep_their_aspect_and_order_and_broken_ones_are_left_out(corpus):
    held = hold(corpus, "kind", 20)
    assert held.labels == ["a", "b", "a"] and [i.split("#")[1] for i in held.ids] == ["0", "1", "3"]
    shapes = [tuple(held.x_NCHW[held.size_N[i]][held.row_N[i]].shape) for i in range(3)]
    assert shapes == [(3, 20, 20), (3, 20, 40), (3, 20, 20)]


def test_crops_are_of_the_pictures_that_were_asked_for(corpus):
    held = hold(corpus, "kind", 20)
    i_B = torch.tensor([2, 1, 0, 2])
    x_BVChw = held.crops(i_B, 8, 0.3, torch.Generator().manual_seed(0), views=2)
    assert x_BVChw.shape == (4, 2, 3, 8, 8) and x_BVChw.dtype == torch.uint8
    assert (x_BVChw[0] == 30).all() and (x_BVChw[3] == 30).all() and (x_BVChw[2] == 10).all()
    assert x_BVChw[1].min() >= 20 and x_BVChw[1].max() <= 220
    assert not torch.equal(x_BVChw[1, 0], x_BVChw[1, 1])


def test_a_square_shows_the_whole_picture(corpus):
    x_NChw = hold(corpus, "kind", 20).squares(10)
    assert (x_NChw[1, :, :, :4] == 20).all() and (x_NChw[1, :, :, 6:] == 220).all()
    assert (x_NChw[0] == 10).all() and (x_NChw[2] == 30).all()


def test_a_corpus_without_pictures_is_refused(tmp_path):
    pq.write_table(pa.table({"image": [b"no image"], "kind": ["a"]}), tmp_path / "0.parquet")
    with pytest.raises(UserError, match="No image of"):
        hold(str(tmp_path), "kind", 20)


@given(n=st.integers(2, 40), size=st.integers(1, 8), seed=st.integers(0, 5), start=st.integers(0, 30))
def test_every_picture_is_shown_once_an_epoch_wherever_a_training_begins(n, size, seed, start):
    if n < size:
        with pytest.raises(UserError, match="smaller batches"):
            next(batches(n, size, seed))
        return
    a_epoch = n // size
    whole = list(islice(batches(n, size, seed), 3 * a_epoch + start))
    for epoch in range(3):
        shown = torch.cat([i_B for _, i_B in whole[epoch * a_epoch : (epoch + 1) * a_epoch]])
        assert len(shown.unique()) == len(shown) == a_epoch * size
    step, i_B = next(batches(n, size, seed, start))
    assert step == start and (start >= len(whole) or torch.equal(i_B, whole[start][1]))
