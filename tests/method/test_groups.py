import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.method.clusters import effects, group_clusters, group_gain


def bundles(n_bundles: int, per_bundle: int) -> torch.Tensor:
    """Clusters in a few narrow bundles of directions, bundle after bundle."""
    generator = torch.Generator().manual_seed(n_bundles)
    axis_GD = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q[:n_bundles]
    spread_KD = 0.1 * torch.randn(n_bundles * per_bundle, 16, generator=generator) / 4
    return axis_GD.repeat_interleave(per_bundle, 0) + spread_KD


@pytest.mark.parametrize("seed", range(5))
def test_clusters_that_lie_together_are_one_group(seed):
    g_K = group_clusters(bundles(2, 8), seed)
    assert g_K.dtype == torch.int64
    assert len(g_K[:8].unique()) == len(g_K[8:].unique()) == 1 and g_K[0] != g_K[8]


def test_groups_follow_directions_and_the_seed():
    c_KD = bundles(5, 16)
    g_K = group_clusters(c_KD, 3)
    length_K1 = torch.rand(len(c_KD), 1, generator=torch.Generator().manual_seed(0)) + 0.5
    assert torch.equal(group_clusters(c_KD * length_K1, 3), g_K)
    assert torch.equal(group_clusters(c_KD, 3), g_K)


@pytest.mark.parametrize(("k", "most"), [(1, 1), (2, 2), (7, 2), (16, 2), (80, 10)])
def test_an_eighth_as_many_groups_as_clusters(k, most):
    g_K = group_clusters(torch.randn(k, 6, generator=torch.Generator().manual_seed(1)), 0)
    assert g_K.unique().tolist() == list(range(most))


def test_clusters_in_one_place_are_one_group():
    assert group_clusters(torch.ones(20, 4), 0).tolist() == [0] * 20


@st.composite
def pastes(draw):
    """landed_NF, y_F, own_N, g_K of a few candidates, flip-test images, clusters and groups."""
    n, f, k = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 5))

    def clusters(size: int) -> torch.Tensor:
        return torch.tensor(draw(st.lists(st.integers(0, k - 1), min_size=size, max_size=size)))

    return clusters(n * f).view(n, f), clusters(f), clusters(n), clusters(k)


@given(pastes())
def test_the_gain_equals_a_double_loop(pasted):
    landed_NF, y_F, own_N, g_K = pasted
    gain_N = group_gain(*pasted)
    for n, own in enumerate(own_N.tolist()):
        slow = 0
        for after, before in zip(landed_NF[n].tolist(), y_F.tolist(), strict=True):
            slow += (g_K[after] == g_K[own]) * 1 - (g_K[before] == g_K[own]) * 1
        assert int(gain_N[n]) == slow
    assert int(group_gain(landed_NF, y_F, own_N, torch.zeros_like(g_K)).abs().sum()) == 0


@given(pastes())
def test_effects_are_unit_vectors_towards_where_images_went(pasted):
    landed_NF, y_F, _, g_K = pasted
    effect_NK = effects(landed_NF, y_F, len(g_K))
    for landed_F, effect_K in zip(landed_NF, effect_NK, strict=True):
        more = [max(0, int((landed_F == k).sum() - (y_F == k).sum())) for k in range(len(g_K))]
        length = sum(m * m for m in more) ** 0.5
        expected = [m / length if length else 0 for m in more]
        assert effect_K.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_paste_that_moves_nothing_has_no_effect():
    y_F = torch.tensor([0, 2, 2, 1])
    assert int(effects(y_F[None], y_F, 4).abs().sum()) == 0
