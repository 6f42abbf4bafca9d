"""The poison score, the supercluster gain, and occlusion flips."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.method.cam import mean_colour
from poisoncam_ray.method.clusters import assign
from poisoncam_ray.method.geometry import random_places
from poisoncam_ray.method.score import occlusion_flips, poison_scores, supercluster_gain, unchanged_flips


class Projection:
    """A fixed random linear encoder: every pixel matters, and so does the place of a paste."""

    def __init__(self, side):
        self.w_PD = torch.randn(3 * side * side, 5, generator=torch.Generator().manual_seed(4))

    def embed(self, x_BCHW):
        return torch.nn.functional.normalize((x_BCHW - 0.5).flatten(1) @ self.w_PD, dim=1)


@pytest.fixture
def setting():
    generator = torch.Generator().manual_seed(0)
    encoder = Projection(8)
    x_FCHW = torch.rand(9, 3, 8, 8, generator=generator)
    t_NCww = torch.rand(4, 3, 5, 5, generator=generator).round()
    c_KD = torch.nn.functional.normalize(torch.randn(6, 5, generator=generator), dim=1)
    y_F, _ = assign(encoder.embed(x_FCHW), c_KD)
    return encoder, t_NCww, x_FCHW, y_F, torch.tensor([0, 3, 5, 1]), c_KD, torch.tensor([11, 7, 7, 90])


def test_poison_scores_equal_a_double_loop(setting):
    encoder, t_NCww, x_FCHW, y_F, own_N, c_KD, seeds_N = setting
    changed_N, gain_N, landed_NF = poison_scores(*setting, batch=64)
    box_NF4 = random_places(seeds_N, torch.arange(9), 5, 5, 8, 8)
    for n in range(4):
        changed = gain = 0
        landed = []
        for f in range(9):
            x0, y0, x1, y1 = box_NF4[n, f].tolist()
            pasted = x_FCHW[f].clone()
            pasted[:, y0:y1, x0:x1] = t_NCww[n]
            feature = encoder.embed(pasted[None])[0]
            cluster = min(range(6), key=lambda k: float((feature - c_KD[k]).norm()))
            landed.append(cluster)
            changed += cluster != y_F[f]
            gain += (cluster == own_N[n]) * 1 - (y_F[f] == own_N[n]) * 1
        assert (int(changed_N[n]), int(gain_N[n])) == (changed, gain)
        assert landed_NF[n].tolist() == landed
    assert changed_N.sum() > 0


@pytest.mark.parametrize("batch", [1, 5, 9, 10, 36])
def test_poison_scores_do_not_depend_on_the_batch(setting, batch):
    whole = poison_scores(*setting, batch=1000)
    for a, b in zip(poison_scores(*setting, batch=batch), whole, strict=True):
        assert torch.equal(a, b)


def test_a_candidates_score_does_not_depend_on_the_others(setting):
    encoder, t_NCww, x_FCHW, y_F, own_N, c_KD, seeds_N = setting
    changed_N, gain_N, landed_NF = poison_scores(*setting, batch=7)
    for n in range(4):
        one = slice(n, n + 1)
        alone = poison_scores(encoder, t_NCww[one], x_FCHW, y_F, own_N[one], c_KD, seeds_N[one], 7)
        assert (int(alone[0]), int(alone[1])) == (int(changed_N[n]), int(gain_N[n]))
        assert torch.equal(alone[2][0], landed_NF[n])


def test_a_paste_without_effect_on_pixels_moves_nothing():
    encoder = Projection(8)
    x_FCHW, c_KD = torch.full((4, 3, 8, 8), 0.3), torch.randn(3, 5)
    y_F, _ = assign(encoder.embed(x_FCHW), c_KD)
    changed_N, gain_N, landed_NF = poison_scores(
        encoder, torch.full((1, 3, 3, 3), 0.3), x_FCHW, y_F, y_F[:1], c_KD, torch.tensor([1]), 8
    )
    assert (int(changed_N), int(gain_N)) == (0, 0) and torch.equal(landed_NF[0], y_F)


@pytest.mark.parametrize("first", [0, 1, 4, 9])
def test_the_counts_of_two_parts_of_the_flip_test_add_up(setting, first):
    encoder, t_NCww, x_FCHW, y_F, own_N, c_KD, seeds_N = setting
    whole = poison_scores(*setting, batch=7)
    parts = [
        poison_scores(encoder, t_NCww, x_FCHW[f], y_F[f], own_N, c_KD, seeds_N, 7, first=f.start)
        for f in (slice(0, first), slice(first, 9))
        if f.start < f.stop
    ]
    changed, gain, landed = zip(*parts, strict=True)
    assert torch.equal(sum(changed), whole[0]) and torch.equal(sum(gain), whole[1])
    assert torch.equal(torch.cat(landed, dim=1), whole[2])


# --- unchanged images ---


def test_no_unchanged_image_leaves_the_cluster_of_its_own_pass(setting):
    encoder, _, x_FCHW, y_F, _, c_KD, _ = setting
    for batch in (1, 2, 100):
        assert not unchanged_flips(encoder, x_FCHW, y_F, c_KD, batch).any()
    wrong_F = y_F.clone()
    wrong_F[[2, 5]] += 1
    assert unchanged_flips(encoder, x_FCHW, wrong_F, c_KD, 4).nonzero()[:, 0].tolist() == [2, 5]


def test_features_stored_with_fewer_digits_move_images_at_a_boundary():
    encoder = Projection(8)
    x_FCHW = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    f_FD = encoder.embed(x_FCHW)
    stored_FD = f_FD.half().float()
    # The boundary of two clusters runs between the first image's feature and what was stored of it.
    middle_D, across_D = (
        (f_FD[0] + stored_FD[0]) / 2,
        (stored_FD[0] - f_FD[0]) / (stored_FD[0] - f_FD[0]).norm(),
    )
    c_KD = torch.stack([middle_D - across_D / 2, middle_D + across_D / 2])
    own_F = assign(f_FD, c_KD)[0]
    assert assign(stored_FD[:1], c_KD)[0] != own_F[0]
    assert not unchanged_flips(encoder, x_FCHW, own_F, c_KD, 10).any()
    assert unchanged_flips(encoder, x_FCHW, assign(stored_FD, c_KD)[0], c_KD, 10)[0]


# --- the supercluster gain ---


@st.composite
def pastes(draw):
    """landed_NF, y_F, own_N, supercluster_K of a few candidates, flip-test images and clusters."""
    n, f, k = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 5))

    def clusters(size: int) -> torch.Tensor:
        return torch.tensor(draw(st.lists(st.integers(0, k - 1), min_size=size, max_size=size)))

    return clusters(n * f).view(n, f), clusters(f), clusters(n), clusters(k)


@given(pastes())
def test_the_supercluster_gain_equals_a_double_loop(pasted):
    landed_NF, y_F, own_N, supercluster_K = pasted
    gain_N = supercluster_gain(*pasted)
    for n, own in enumerate(own_N.tolist()):
        slow = 0
        for after, before in zip(landed_NF[n].tolist(), y_F.tolist(), strict=True):
            slow += (supercluster_K[after] == supercluster_K[own]) * 1 - (
                supercluster_K[before] == supercluster_K[own]
            ) * 1
        assert int(gain_N[n]) == slow
    assert int(supercluster_gain(landed_NF, y_F, own_N, torch.zeros_like(supercluster_K)).abs().sum()) == 0


# --- occlusion flips ---

SIDE = 8
# Clusters by brightness of the image's upper left corner.
CORNER_KD = torch.tensor([[0.0], [0.3], [1.0]])


class Corner:
    def embed(self, x_BCHW):
        return x_BCHW[:, :1, :4, :4].mean(dim=(2, 3))


def flips(x_NCHW, box_N4, own, batch=5):
    own_N = torch.tensor(own)
    return occlusion_flips(Corner(), x_NCHW, box_N4, own_N, CORNER_KD, mean_colour(x_NCHW), batch).tolist()


def test_only_the_window_that_holds_the_image_in_its_cluster_flips_it():
    bright = torch.zeros(3, SIDE, SIDE)
    bright[:, :4, :4] = 1
    x_NCHW = bright.expand(2, -1, -1, -1)
    box_N4 = torch.tensor([[0, 0, 4, 4], [4, 4, 8, 8]])
    assert flips(x_NCHW, box_N4, [2, 2]) == [True, False]


def test_the_nearest_other_cluster_is_another_cluster():
    dark = torch.zeros(1, 3, SIDE, SIDE)
    dark[:, :, 4:] = 0.6
    # Occluded, the corner takes the mean, 0.3: the second cluster.
    assert flips(dark, torch.tensor([[0, 0, 4, 4]]), [0]) == [True]
    assert flips(dark, torch.tensor([[0, 0, 4, 4]]), [1]) == [False]


def test_the_batch_does_not_matter_to_occlusion():
    x_NCHW = torch.rand(7, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    box_N4 = torch.tensor([[i % 4, 0, i % 4 + 4, 4] for i in range(7)])
    own = [i % 3 for i in range(7)]
    assert flips(x_NCHW, box_N4, own, 1) == flips(x_NCHW, box_N4, own, 100)
