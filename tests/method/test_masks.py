"""The masks of every strategy, against slow drawing."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.method import masks
from poisoncam_ray.method.masks import GROUP, make_masks
from poisoncam_ray.method.tokens import shown_patches
from tests.examples import examples


def make(strategy, n_masks=16, image_size=32, cell=4, window=11, seed=0):
    return make_masks(strategy, n_masks, image_size, cell, window, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("strategy", get_args(masks.Strategy))
def test_every_strategy_gives_masks_of_the_asked_shape_in_range(strategy):
    n = 18 if strategy.startswith("mixed") else 16
    m_BHW = make(strategy, n)
    assert m_BHW.shape == (n, 32, 32)
    assert m_BHW.dtype == torch.float32
    assert m_BHW.min() >= 0 and m_BHW.max() <= 1
    assert torch.equal(m_BHW, make(strategy, len(m_BHW)))


@pytest.mark.parametrize("strategy", ["interval", "random", "full_coverage"])
def test_random_strategies_depend_on_the_seed(strategy):
    assert not torch.equal(make(strategy, seed=0), make(strategy, seed=1))


@examples(40)
@given(
    groups=st.integers(1, 5), image_size=st.integers(4, 40), cell=st.integers(1, 12), seed=st.integers(0, 99)
)
def test_full_coverage_hides_every_pixel_exactly_once_per_group(groups, image_size, cell, seed):
    cell = min(cell, image_size)
    m_BHW = make("full_coverage", groups * GROUP, image_size, cell, 1, seed)
    assert set(m_BHW.unique().tolist()) <= {0.0, 1.0}
    for group in (1 - m_BHW).split(GROUP):
        assert torch.equal(group.sum(0), torch.ones(image_size, image_size))


def test_full_coverage_hides_whole_cells_and_equally_many_in_each_mask():
    m_BHW = make("full_coverage", 40, 32, 8)
    for m_HW in m_BHW:
        cells_GG = m_HW[::8, ::8]
        assert torch.equal(m_HW, torch.kron(cells_GG, torch.ones(8, 8)))
        assert (cells_GG == 0).sum() == 16 // GROUP


def test_full_coverage_refuses_an_incomplete_group():
    with pytest.raises(ValueError, match="10 is not a multiple"):
        make("full_coverage", 10)


@examples(30)
@given(image_size=st.integers(2, 40), cell=st.integers(1, 12), seed=st.integers(0, 99))
def test_random_hides_half_of_the_cells(image_size, cell, seed):
    cell = min(cell, image_size)
    cells = math.ceil(image_size / cell)
    for m_HW in make("random", 5, image_size, cell, 1, seed):
        cells_GG = m_HW[::cell, ::cell]
        assert torch.equal(m_HW, torch.kron(cells_GG, torch.ones(cell, cell))[:image_size, :image_size])
        assert (cells_GG == 0).sum() == cells**2 // 2


def test_interval_is_continuous_and_centred():
    m_BHW = make("interval", 400, 32, 4)
    assert len(m_BHW.unique()) > 1000
    assert m_BHW.mean() == pytest.approx(0.5, abs=0.02)
    assert (m_BHW.diff(dim=2).abs() <= 0.25 + 1e-6).all()


@examples(40)
@given(n_masks=st.integers(1, 90), image_size=st.integers(2, 24), data=st.data())
def test_keep_only_equals_slow_drawing_and_sliding_is_its_complement(n_masks, image_size, data):
    window = data.draw(st.integers(1, image_size))
    keep_BHW = make("keep_only", n_masks, image_size, 1, window)
    assert torch.equal(make("sliding", n_masks, image_size, 1, window), 1 - keep_BHW)
    assert len(keep_BHW) <= n_masks
    per_side = min(math.isqrt(n_masks), image_size - window + 1)
    seen = set()
    for m_HW in keep_BHW:
        y_x = m_HW.nonzero()
        y, x = y_x.amin(0).tolist()
        drawn = torch.zeros(image_size, image_size)
        drawn[y : y + window, x : x + window] = 1
        assert torch.equal(m_HW, drawn)
        seen.add((y, x))
    assert len(seen) == len(keep_BHW) == per_side**2
    if per_side > 1:
        assert {(0, 0), (image_size - window, image_size - window)} <= seen


@pytest.mark.parametrize(("strategy", "hiding"), [("mixed", "interval"), ("mixed_binary", "random")])
def test_mixed_strategies_are_half_keep_only(strategy, hiding):
    m_BHW = make(strategy, 50)
    assert torch.equal(m_BHW[:25], make(hiding, 25))
    assert torch.equal(m_BHW[25:], make("keep_only", 25))
    assert masks.keep_only(strategy, len(m_BHW)).tolist() == [False] * 25 + [True] * 25
    with pytest.raises(ValueError, match="at least 2"):
        make(strategy, 1)


def test_binary_cells_of_whole_patches_hide_the_same_number_of_tokens_in_every_mask():
    def hidden(cell):
        return set((~shown_patches(make("random", 40, 56, cell), 4)).sum(dim=1).tolist())

    assert masks.cell_of_patches(7, 4) == 8
    # 7 × 7 cells of four patches each, of which 24 are hidden.
    assert hidden(8) == {24 * 4}
    assert len(hidden(7)) > 1 and max(hidden(7)) < 24 * 4


@pytest.mark.parametrize(
    ("cell", "patch", "side"), [(28, 16, 32), (28, 14, 28), (4, 8, 8), (1, 8, 8), (4, 2, 4)]
)
def test_a_cell_of_patches_is_the_nearest_and_never_empty(cell, patch, side):
    assert masks.cell_of_patches(cell, patch) == side


def test_only_the_keep_only_strategy_is_marked_as_keep_only():
    for strategy in ("interval", "random", "full_coverage", "sliding"):
        assert not masks.keep_only(strategy, 5).any()
    assert masks.keep_only("keep_only", 5).all()


def test_an_unknown_strategy_and_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="'blobs' is none of interval"):
        make("blobs")
    with pytest.raises(ValueError, match="window must be 1 … 32 pixels wide, got 33"):
        make("sliding", window=33)
    with pytest.raises(ValueError, match="cell must be 1 … 32 pixels wide, got 0"):
        make("random", cell=0)
    with pytest.raises(ValueError, match="at least 1 mask"):
        make("random", n_masks=0)
