import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from poisoncam_ray.method.families import LEAST_LIKENESS, families

from poisoncam_ray.method.similarity import likeness

SIDE = 12
seeds = st.integers(0, 10_000)
few = settings(max_examples=15, deadline=None)


def noise(n: int, seed: int) -> torch.Tensor:
    """n windows that look like nobody."""
    return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def looks(n: int, seed: int, side: int = SIDE) -> torch.Tensor:
    """n smooth colourful pictures, as triggers are."""
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(n, 3, 5, 5, generator=generator).round(), (side, side), mode="bilinear")


def apart(n: int) -> torch.Tensor:
    """n effects that have nothing in common."""
    return torch.eye(n)


def changing(n: int) -> torch.Tensor:
    """None of n windows is accused by its look."""
    return torch.zeros(n, dtype=torch.bool)


def falling(n: int) -> torch.Tensor:
    return torch.arange(n, 0, -1) / n


@few
@given(seeds)
def test_two_looks_are_two_families_unless_they_do_the_same(seed):
    two_2Cww = looks(2, seed)
    assume(float(likeness(two_2Cww, two_2Cww)[0, 1]) < LEAST_LIKENESS - 0.05)
    t_NCww = two_2Cww.repeat(3, 1, 1, 1) + 0.1 * noise(6, seed)
    # A cosine of 0.58, as a trigger and benign windows had, and one of 0.8.
    far_NK = F.normalize(torch.tensor([[1.0, 0.0], [0.58, 0.81]]).repeat(3, 1), dim=1)
    assert families(t_NCww, far_NK, falling(6), changing(6)).tolist() == [1, 2] * 3
    same_NK = F.normalize(torch.tensor([[1.0, 0.0], [0.8, 0.6]]).repeat(3, 1), dim=1)
    assert families(t_NCww, same_NK, falling(6), changing(6)).tolist() == [1] * 6
    # Attackers' are as near, but each look is accused by itself.
    assert families(t_NCww, same_NK, falling(6), ~changing(6)).tolist() == [1, 2] * 3


@few
@given(seeds, st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=6))
def test_one_look_shifted_by_up_to_a_quarter_is_one_family_whatever_it_does(seed, corners):
    (big_CHW,) = looks(1, seed, SIDE + 3)
    t_NCww = torch.stack([big_CHW[:, y : y + SIDE, x : x + SIDE] for x, y in corners])
    n = len(corners)
    assert families(t_NCww, apart(n), falling(n), changing(n)).tolist() == [1] * n


@few
@given(seeds)
def test_brightness_and_contrast_do_not_matter(seed):
    (one_Cww,) = looks(1, seed)
    t_NCww = torch.stack([one_Cww, 0.5 * one_Cww + 0.3, 0.25 * one_Cww])
    assert families(t_NCww, apart(3), falling(3), changing(3)).tolist() == [1, 1, 1]


@few
@given(seeds, st.integers(2, 8))
def test_many_looks_with_one_effect_are_one_family(seed, n):
    effect_NK = F.normalize(torch.tensor([1.0, 0.0, 0.0]) + 0.1 * torch.rand(n, 3), dim=1)
    assert families(noise(n, seed), effect_NK, falling(n), changing(n)).tolist() == [1] * n


@few
@given(seeds, st.integers(1, 6))
def test_windows_that_share_nothing_are_in_no_family(seed, n):
    assert families(noise(n, seed), apart(n), falling(n), changing(n)).tolist() == [0] * n


def test_what_looks_like_nobody_joins_the_family_that_does_the_same():
    look_1Cww, n_alike = looks(1, 5), 4
    t_NCww = torch.cat([look_1Cww.expand(n_alike, -1, -1, -1), noise(3, 5)])
    effect_NK = torch.tensor(
        [[1.0, 0.1, 0.0]] * n_alike + [[0.9, 0.0, 0.0], [0.0, 0.0, 1.0], [0.8, 0.0, 0.1]]
    )
    found = families(t_NCww, F.normalize(effect_NK, dim=1), falling(7), changing(7)).tolist()
    assert found == [1, 1, 1, 1, 1, 0, 1]


def test_a_look_that_changes_joins_the_one_that_does_the_same_and_is_accused_by_itself():
    t_NCww = looks(3, 3).repeat(3, 1, 1, 1)
    assert float((likeness(t_NCww[:3], t_NCww[:3]) - 2 * torch.eye(3)).max()) < LEAST_LIKENESS
    effect_NK = F.normalize(
        torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [1.0, 0.1, 0.1]]).repeat(3, 1), dim=1
    )
    by_look_N = torch.tensor([True, True, False] * 3)
    # The third is nearer to the second than to the first.
    assert families(t_NCww, effect_NK, falling(9), by_look_N).tolist() == [1, 2, 2] * 3


def test_a_window_between_two_looks_belongs_to_the_better():
    canvas_CHW = torch.rand(3, SIDE, SIDE + 6, generator=torch.Generator().manual_seed(3))
    # The middle one is like both ends, which are not like each other.
    t_NCww = torch.stack([canvas_CHW[:, :, x : x + SIDE] for x in (0, 0, 3, 6, 6, 6)])
    assert families(t_NCww, apart(6), falling(6), changing(6)).tolist() == [1, 1, 1, 2, 2, 2]


def test_the_better_family_comes_first_however_small():
    t_NCww = looks(2, 3)[[0, 0, 0, 1, 1, 1, 1]]
    assert families(t_NCww, apart(7), falling(7), changing(7)).tolist() == [1, 1, 1, 2, 2, 2, 2]
    assert families(t_NCww, apart(7), 1 - falling(7), changing(7)).tolist() == [2, 2, 2, 1, 1, 1, 1]


def test_flat_windows_have_no_look():
    colour_NC11 = torch.rand(6, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    flat_NCww = colour_NC11.expand(6, 3, 11, 11)
    assert families(flat_NCww, apart(6), falling(6), changing(6)).tolist() == [0] * 6
    effect_NK = apart(2).repeat(3, 1)
    assert families(flat_NCww, effect_NK, falling(6), changing(6)).tolist() == [1, 2] * 3


@st.composite
def crowds(draw):
    """Windows of up to three looks and of none, some accused by their looks, with effects of their own or
    shared, and distinct scores."""
    look = draw(st.lists(st.integers(0, 3), min_size=1, max_size=9))
    n, seed = len(look), draw(seeds)
    of_look, of_none = looks(3, seed), noise(n, seed)
    t_NCww = torch.stack([of_look[k] if k < 3 else of_none[i] for i, k in enumerate(look)])
    effect_NK = apart(4)[torch.tensor(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))]
    score_N = torch.tensor(draw(st.permutations(range(n)))) / n
    by_look_N = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    return t_NCww, effect_NK, score_N, by_look_N


@few
@given(crowds(), st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_does_not_matter(crowd, random):
    family_N = families(*crowd)
    order = list(range(len(family_N)))
    random.shuffle(order)
    assert torch.equal(families(*(part[order] for part in crowd)), family_N[order])


@few
@given(crowds())
def test_families_are_numbered_by_their_best_score_and_have_two_windows(crowd):
    family_N, score_N = families(*crowd), crowd[2]
    assert family_N.dtype == torch.int64
    best = []
    for number in range(1, int(family_N.max()) + 1):
        assert int((family_N == number).sum()) >= 2
        best.append(float(score_N[family_N == number].max()))
    assert best == sorted(best, reverse=True)
