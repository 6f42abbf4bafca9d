"""Trigger families: windows that look alike, or else move images to the same clusters."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from poisoncam_ray.method.similarity import shifted_ncc, thumbnail
from poisoncam_ray.method.verdict import Candidates, VerdictRules, trigger_families

RULES = VerdictRules()
SIDE = RULES.thumbnail_side
seeds = st.integers(0, 10_000)
few = settings(max_examples=15, deadline=None)


def families(
    thumbnail_NCss: torch.Tensor, effect_NK: torch.Tensor, score_N: torch.Tensor, by_pattern_N: torch.Tensor
) -> torch.Tensor:
    """The families of suspects whose effects are `effect_NK`, in steps of a thousandth of its largest number:
    so many images are moved from a further cluster into each cluster."""
    count_NK = (1000 * effect_NK / effect_NK.max()).round().long()
    n, k = count_NK.shape
    n_flip = int(count_NK.sum(dim=1).max())
    landed = [torch.arange(k).repeat_interleave(count_K) for count_K in count_NK]
    tried = Candidates(
        cluster_N=torch.zeros(n, dtype=torch.int64),
        score_N=score_N,
        flips_N=torch.ones(n, dtype=torch.bool),
        landed_NF=torch.stack([F.pad(row, (0, n_flip - len(row)), value=k) for row in landed]),
        thumbnail_NCss=thumbnail_NCss,
        y_F=torch.full((n_flip,), k),
        supercluster_K=torch.zeros(k + 1, dtype=torch.int64),
    )
    super_N = torch.zeros(n, dtype=torch.int64)
    return trigger_families(tried, torch.ones(n, dtype=torch.bool), by_pattern_N.long(), super_N, RULES)


def ncc(t_NCss: torch.Tensor) -> torch.Tensor:
    return shifted_ncc(t_NCss, t_NCss, RULES.max_shift)


def noise(n: int, seed: int) -> torch.Tensor:
    """n windows that look like no other."""
    return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def pictures(n: int, seed: int, side: int = SIDE) -> torch.Tensor:
    """n smooth colourful pictures, as triggers are."""
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(n, 3, 5, 5, generator=generator).round(), (side, side), mode="bilinear")


def apart(n: int) -> torch.Tensor:
    """n effects that have nothing in common."""
    return torch.eye(n)


def by_supercluster(n: int) -> torch.Tensor:
    """None of n windows is suspected by its pattern."""
    return torch.zeros(n, dtype=torch.bool)


def falling(n: int) -> torch.Tensor:
    return torch.arange(n, 0, -1) / n


@few
@given(seeds)
def test_two_pictures_are_two_families_unless_they_do_the_same(seed):
    two_2Css = pictures(2, seed)
    assume(float(ncc(two_2Css)[0, 1]) < RULES.min_family_ncc - 0.05)
    t_NCss = two_2Css.repeat(3, 1, 1, 1) + 0.1 * noise(6, seed)
    # A cosine of 0.58, as between a trigger and benign windows, and one of 0.8.
    far_NK = torch.tensor([[1.0, 0.0], [0.58, 0.81]]).repeat(3, 1)
    assert families(t_NCss, far_NK, falling(6), by_supercluster(6)).tolist() == [1, 2] * 3
    same_NK = torch.tensor([[1.0, 0.0], [0.8, 0.6]]).repeat(3, 1)
    assert families(t_NCss, same_NK, falling(6), by_supercluster(6)).tolist() == [1] * 6
    # Two attackers' effects are as near, but each picture is suspected by itself.
    assert families(t_NCss, same_NK, falling(6), ~by_supercluster(6)).tolist() == [1, 2] * 3


@few
@given(seeds, st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=6))
def test_one_picture_shifted_by_up_to_a_quarter_is_one_family_whatever_it_does(seed, corners):
    (big_CHW,) = pictures(1, seed, SIDE + 3)
    t_NCss = torch.stack([big_CHW[:, y : y + SIDE, x : x + SIDE] for x, y in corners])
    n = len(corners)
    assert families(t_NCss, apart(n), falling(n), by_supercluster(n)).tolist() == [1] * n


@few
@given(seeds)
def test_brightness_and_contrast_do_not_matter(seed):
    (one_Css,) = pictures(1, seed)
    t_NCss = torch.stack([one_Css, 0.5 * one_Css + 0.3, 0.25 * one_Css])
    assert families(t_NCss, apart(3), falling(3), by_supercluster(3)).tolist() == [1, 1, 1]


@few
@given(seeds, st.integers(2, 8))
def test_many_pictures_with_one_effect_are_one_family(seed, n):
    effect_NK = torch.tensor([1.0, 0.0, 0.0]) + 0.1 * torch.rand(n, 3)
    assert families(noise(n, seed), effect_NK, falling(n), by_supercluster(n)).tolist() == [1] * n


def test_effects_on_few_and_on_many_images_count_alike():
    """The first of four look-alikes moves ten times as many images as the others, and elsewhere. One more
    window moves images where the others do. The sum of the directions is (1, 3), that of the images (1, 0.3);
    their cosines to that window's effect are 0.95 and 0.29."""
    effect_NK = torch.tensor([[1.0, 0.0], [0.0, 0.1], [0.0, 0.1], [0.0, 0.1], [0.0, 0.1]])
    t_NCss = torch.cat([pictures(1, 3).expand(4, -1, -1, -1), noise(1, 3)])
    assert families(t_NCss, effect_NK, falling(5), by_supercluster(5)).tolist() == [1] * 5


@few
@given(seeds, st.integers(1, 6))
def test_windows_that_share_nothing_are_in_no_family(seed, n):
    assert families(noise(n, seed), apart(n), falling(n), by_supercluster(n)).tolist() == [0] * n


def test_a_window_that_looks_like_no_other_joins_the_family_that_does_the_same():
    t_1Css, n_alike = pictures(1, 5), 4
    t_NCss = torch.cat([t_1Css.expand(n_alike, -1, -1, -1), noise(3, 5)])
    effect_NK = torch.tensor(
        [[1.0, 0.1, 0.0]] * n_alike + [[0.9, 0.0, 0.0], [0.0, 0.0, 1.0], [0.8, 0.0, 0.1]]
    )
    found = families(t_NCss, effect_NK, falling(7), by_supercluster(7)).tolist()
    assert found == [1, 1, 1, 1, 1, 0, 1]


def test_a_picture_of_a_supercluster_joins_the_pattern_that_does_the_same():
    t_NCss = pictures(3, 3).repeat(3, 1, 1, 1)
    assert float((ncc(t_NCss[:3]) - 2 * torch.eye(3)).max()) < RULES.min_family_ncc
    effect_NK = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [1.0, 0.1, 0.1]]).repeat(3, 1)
    by_pattern_N = torch.tensor([True, True, False] * 3)
    # The third is nearer to the second than to the first.
    assert families(t_NCss, effect_NK, falling(9), by_pattern_N).tolist() == [1, 2, 2] * 3


def test_a_window_between_two_pictures_belongs_to_the_better():
    canvas_CHW = torch.rand(3, SIDE, SIDE + 6, generator=torch.Generator().manual_seed(3))
    # The middle one is like both ends, which are not like each other.
    t_NCss = torch.stack([canvas_CHW[:, :, x : x + SIDE] for x in (0, 0, 3, 6, 6, 6)])
    assert families(t_NCss, apart(6), falling(6), by_supercluster(6)).tolist() == [1, 1, 1, 2, 2, 2]


def test_the_better_family_comes_first_however_small():
    t_NCss = pictures(2, 3)[[0, 0, 0, 1, 1, 1, 1]]
    assert families(t_NCss, apart(7), falling(7), by_supercluster(7)).tolist() == [1, 1, 1, 2, 2, 2, 2]
    assert families(t_NCss, apart(7), 1 - falling(7), by_supercluster(7)).tolist() == [2, 2, 2, 1, 1, 1, 1]


def test_flat_windows_look_like_no_other():
    colour_NC11 = torch.rand(6, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    flat_NCss = torch.stack([thumbnail(t_Chw, SIDE) for t_Chw in colour_NC11.expand(6, 3, 11, 11)])
    assert families(flat_NCss, apart(6), falling(6), by_supercluster(6)).tolist() == [0] * 6
    effect_NK = apart(2).repeat(3, 1)
    assert families(flat_NCss, effect_NK, falling(6), by_supercluster(6)).tolist() == [1, 2] * 3


@st.composite
def crowds(draw):
    """Windows of up to three pictures and of none, some suspected by their pattern, with effects of their own
    or shared, and distinct scores."""
    which = draw(st.lists(st.integers(0, 3), min_size=1, max_size=9))
    n, seed = len(which), draw(seeds)
    shared, own = pictures(3, seed), noise(n, seed)
    t_NCss = torch.stack([shared[k] if k < 3 else own[i] for i, k in enumerate(which)])
    effect_NK = apart(4)[torch.tensor(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))]
    score_N = torch.tensor(draw(st.permutations(range(n)))) / n
    by_pattern_N = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    return t_NCss, effect_NK, score_N, by_pattern_N


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


def test_the_ranking_of_the_race_makes_and_ends_no_family():
    """The second window looks like the first and the third, which do not look alike: the first starts no
    family, the second would start one of three."""
    first, last = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    t_NCss = torch.stack([first, (first + last) / 2, last])
    alike_NN = ncc(t_NCss) >= RULES.min_family_ncc
    assert alike_NN.int().tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    one_N, zero_N = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.int64)
    tried = Candidates(
        cluster_N=torch.tensor([1, 2, 3]),
        score_N=torch.tensor([0.9, 0.8, 0.7]),
        flips_N=one_N,
        landed_NF=torch.tensor([[1], [2], [3]]).expand(-1, 9),
        thumbnail_NCss=t_NCss,
        y_F=torch.zeros(9, dtype=torch.int64),
        supercluster_K=torch.zeros(4, dtype=torch.int64),
    )
    for ranking in (None, [0, 1, 2], [1, 0, 2], [2, 1, 0]):
        raced = replace(tried, ranking_N=None if ranking is None else torch.tensor(ranking))
        assert trigger_families(raced, one_N, zero_N, zero_N, RULES).tolist() == [0, 0, 0], ranking
