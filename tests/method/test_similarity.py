"""Thumbnails and their normalised cross-correlation."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from poisoncam_ray.method.similarity import shifted_ncc, thumbnail
from poisoncam_ray.method.verdict import VerdictRules

SIDE, SHIFTS = VerdictRules().thumbnail_side, VerdictRules().max_shift

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 10_000)


def ncc(t_NCss: torch.Tensor, t_MCss: torch.Tensor) -> torch.Tensor:
    return shifted_ncc(t_NCss, t_MCss, SHIFTS)


def noise(n: int, seed: int) -> torch.Tensor:
    return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def pictures(n: int, seed: int) -> torch.Tensor:
    """n smooth colourful pictures, as triggers are."""
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(n, 3, 5, 5, generator=generator).round(), (SIDE, SIDE), mode="bilinear")


@few
@given(seeds, st.integers(0, SHIFTS), st.integers(-SHIFTS, SHIFTS))
def test_shifted_ncc_equals_the_best_correlation_over_shifts(seed, dy, dx):
    t_NCss = torch.cat([pictures(1, seed), noise(1, seed), pictures(2, seed)[1:].roll((dy, dx), (2, 3))])
    table_NN = ncc(t_NCss, t_NCss)
    for i, j in ((0, 1), (0, 2), (2, 1), (0, 0)):
        slow = max(correlation(t_NCss[i], t_NCss[j], y, x) for y in SHIFTED for x in SHIFTED)
        assert float(table_NN[i, j]) == pytest.approx(slow, abs=1e-4)
    assert torch.allclose(table_NN, table_NN.T, atol=1e-5)


SHIFTED = range(-SHIFTS, SHIFTS + 1)


def correlation(a_Css: torch.Tensor, b_Css: torch.Tensor, dy: int, dx: int) -> float:
    """Of pixel (y + dy, x + dx) of one with (y, x) of the other, each colour centred by itself."""
    a, b = (part_Css.permute(1, 2, 0).double() for part_Css in (a_Css, b_Css))
    a = a[max(0, dy) : SIDE + min(0, dy), max(0, dx) : SIDE + min(0, dx)]
    b = b[max(0, -dy) : SIDE + min(0, -dy), max(0, -dx) : SIDE + min(0, -dx)]
    a, b = a - a.mean((0, 1)), b - b.mean((0, 1))
    return float((a * b).sum() / (a.norm() * b.norm()))


@few
@given(seeds)
def test_a_part_of_the_table_is_that_part(seed):
    t_NCss = torch.cat([pictures(3, seed), noise(2, seed)])
    whole_NN = ncc(t_NCss, t_NCss)
    assert torch.allclose(ncc(t_NCss[1:3], t_NCss), whole_NN[1:3], atol=1e-5)
    assert torch.allclose(ncc(t_NCss, t_NCss[4:]), whole_NN[:, 4:], atol=1e-5)


@few
@given(seeds, st.floats(0.2, 1), st.floats(-0.5, 0.5))
def test_brightness_and_contrast_do_not_matter(seed, contrast, brightness):
    one_1Css = pictures(1, seed)
    assert float(ncc(one_1Css, contrast * one_1Css + brightness)) > 0.99


def test_a_flat_window_correlates_with_nothing():
    flat_1Css, other_1Css = torch.full((1, 3, SIDE, SIDE), 0.4), pictures(1, 1)
    assert abs(float(ncc(flat_1Css, other_1Css))) < 0.01 and abs(float(ncc(flat_1Css, flat_1Css))) < 0.01


@pytest.mark.parametrize("size", [(11, 11), (64, 64), (7, 30)])
def test_windows_of_any_size_have_a_thumbnail(size):
    small_Css = thumbnail(torch.rand(3, *size), SIDE)
    assert small_Css.shape == (3, SIDE, SIDE) and bool(small_Css.isfinite().all())
    assert torch.allclose(thumbnail(torch.full((3, *size), 0.3), SIDE), torch.tensor(0.3))
