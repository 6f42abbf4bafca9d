"""Window groups: patterns, flip gains, concentration and near-duplicates."""

from dataclasses import replace
from itertools import combinations
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from poisoncam_ray.method import verdict
from poisoncam_ray.method.similarity import gradient_ncc, shifted_ncc, thumbnail
from poisoncam_ray.method.verdict import (
    Candidates,
    VerdictRules,
    concentration,
    find_patterns,
    flip_gains,
    member_clusters,
    near_duplicates,
    window_groups,
)

RULES = VerdictRules()
SIDE = RULES.thumbnail_side
LEAST = RULES.min_pattern_windows
few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 10_000)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int, seed: int) -> torch.Tensor:
    """Windows that look like no other."""
    return torch.rand(n, 3, SIDE, SIDE, generator=drawn(seed))


def alike(n: int, seed: int, noisy: float = 0.05) -> torch.Tensor:
    """One smooth colourful picture, n times, not quite the same."""
    one_1C55 = torch.rand(1, 3, 5, 5, generator=drawn(seed)).round()
    return F.interpolate(one_1C55, (SIDE, SIDE), mode="bilinear") + noisy * noise(n, seed + 1)


# --- window groups and patterns ---


@few
@given(st.integers(0, 1000), st.integers(LEAST, 30))
def test_windows_that_look_alike_are_one_group_whatever_their_superclusters(seed, n):
    thumbnail_NCss = torch.cat([noise(20, seed), alike(n, seed)])
    super_N = torch.arange(20 + n) % 4
    group_N = window_groups(thumbnail_NCss, super_N, RULES)
    assert group_N[:20].tolist() == super_N[:20].tolist()
    (pattern,) = group_N[20:].unique().tolist()
    assert pattern > 3


def test_two_patterns_are_two_groups():
    thumbnail_NCss = torch.cat([alike(LEAST, 3), alike(LEAST + 5, 8)])
    ncc = shifted_ncc(thumbnail_NCss[:1], thumbnail_NCss[-1:], RULES.max_shift)
    assert float(ncc) < RULES.min_pattern_ncc
    super_N = torch.zeros(len(thumbnail_NCss), dtype=torch.int64)
    first_N, second_N = window_groups(thumbnail_NCss, super_N, RULES).split([LEAST, LEAST + 5])
    assert len(first_N.unique()) == len(second_N.unique()) == 1 and first_N[0] != second_N[0]
    # The larger one is found first.
    assert second_N[0] == 1 and first_N[0] == 2


def test_too_few_windows_that_look_alike_stay_with_their_superclusters():
    thumbnail_NCss = torch.cat([alike(LEAST - 1, 3), noise(30, 0)])
    super_N = torch.arange(len(thumbnail_NCss)) % 3
    assert torch.equal(window_groups(thumbnail_NCss, super_N, RULES), super_N)
    assert len(find_patterns(thumbnail_NCss, RULES)) == 0


@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_windows(n):
    super_N = torch.zeros(n, dtype=torch.int64)
    assert torch.equal(window_groups(noise(n, 0), super_N, RULES), super_N)


def test_windows_after_the_best_join_the_patterns_that_they_look_like():
    thumbnail_NCss = torch.cat([alike(20, 3), alike(10, 8), noise(60, 0), alike(40, 8), alike(40, 3)])
    super_N = torch.arange(len(thumbnail_NCss)) % 5
    whole_N = window_groups(thumbnail_NCss, super_N, RULES)
    assert len(set(whole_N.tolist()) - set(range(5))) == 2
    of_the_best_N = window_groups(thumbnail_NCss, super_N, replace(RULES, max_pattern_search=50))
    assert members(of_the_best_N) == members(whole_N)


def test_windows_compared_some_at_a_time_are_grouped_as_all_at_once(monkeypatch):
    thumbnail_NCss = torch.cat([alike(20, 3), alike(10, 8), noise(60, 0), alike(40, 8)])
    super_N = torch.arange(len(thumbnail_NCss)) % 5
    whole_N = window_groups(thumbnail_NCss, super_N, RULES)
    monkeypatch.setattr(verdict, "AT_ONCE", 50)
    assert torch.equal(window_groups(thumbnail_NCss, super_N, RULES), whole_N)


def members(group_N: torch.Tensor) -> list[list[int]]:
    """The groups, whatever their numbers."""
    return sorted((group_N == u).nonzero()[:, 0].tolist() for u in group_N.unique().tolist())


def test_the_superclusters_are_left_as_they_were():
    super_N = torch.zeros(LEAST, dtype=torch.int64)
    window_groups(alike(LEAST, 1), super_N, RULES)
    assert super_N.tolist() == [0] * LEAST


# --- flip gains ---


@st.composite
def pastes(draw):
    """Candidates with clusters, groups, occlusion flips and landings; their groups."""
    n, f, k = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 6))

    def numbers(size: int, below: int) -> torch.Tensor:
        return torch.tensor(draw(st.lists(st.integers(0, below - 1), min_size=size, max_size=size)))

    tried = Candidates(
        cluster_N=numbers(n, k),
        score_N=torch.zeros(n),
        flips_N=numbers(n, 2).bool(),
        landed_NF=numbers(n * f, k).view(n, f).int(),
        thumbnail_NCss=torch.zeros(n, 3, SIDE, SIDE),
        y_F=numbers(f, k),
        supercluster_K=torch.zeros(k, dtype=torch.int64),
    )
    return tried, numbers(n, 3)


def moved_in(tried: Candidates, i: int, into: set[int]) -> int:
    """Images that window i moves into some clusters minus those that it moves out of them, by a slow loop."""
    landed, before = tried.landed_NF[i].tolist(), tried.y_F.tolist()
    return sum(cluster in into for cluster in landed) - sum(cluster in into for cluster in before)


@given(pastes())
def test_flip_gains_equal_a_slow_loop(given):
    """Without patterns a group counts all its member clusters. What leaves them enters the others."""
    tried, group_N = given
    n_groups = int(group_N.max()) + 1
    member_UK = member_clusters(group_N, tried.cluster_N, len(tried.supercluster_K))
    in_N = flip_gains(tried, group_N, member_UK, n_groups)
    out_N = flip_gains(tried, group_N, ~member_UK, n_groups)
    assert in_N.dtype == torch.float64
    for i, group in enumerate(group_N.tolist()):
        pairs = zip(tried.cluster_N.tolist(), group_N.tolist(), strict=True)
        slow = moved_in(tried, i, {own for own, other in pairs if other == group})
        assert float(in_N[i]) == max(0, slow) * (1 / len(tried.y_F))
        assert float(out_N[i]) == max(0, -slow) * (1 / len(tried.y_F))


@given(pastes(), st.integers(0, 3), st.integers(1, 4))
def test_flip_gains_leave_out_what_patterns_explain_by_what_flipping_windows_gain(given, n_super, at_once):
    tried, group_N = given
    n_super = min(n_super, int(group_N.max()) + 1)
    member_UK = member_clusters(group_N, tried.cluster_N, len(tried.supercluster_K))
    arrived_UK = torch.zeros(member_UK.shape)
    for i in tried.flips_N.nonzero()[:, 0].tolist():
        for after, before in zip(tried.landed_NF[i].tolist(), tried.y_F.tolist(), strict=True):
            arrived_UK[group_N[i], after] += 1
            arrived_UK[group_N[i], before] -= 1
    counted_UK = verdict._unexplained(member_UK, arrived_UK, torch.bincount(group_N), n_super)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdict, "AT_ONCE", at_once)
        gain_N = flip_gains(tried, group_N, member_UK, n_super)
    for i, group in enumerate(group_N.tolist()):
        slow = moved_in(tried, i, set(counted_UK[group].nonzero()[:, 0].tolist()))
        assert float(gain_N[i]) == max(0, slow) * (1 / len(tried.y_F))


def test_a_group_s_members_are_not_its_neighbour_s():
    member_UK = member_clusters(torch.tensor([0, 2, 2]), torch.tensor([1, 0, 3]), 4)
    assert member_UK.int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]


def test_a_supercluster_keeps_what_no_stronger_pattern_gains():
    """Two superclusters and two patterns over five clusters. The first pattern gains more than either
    supercluster, the second less than the first supercluster."""
    arrived_UK = torch.tensor(
        [[4.0, 4, 4, 0, 6], [1, 0, 0, 1, 0], [27, 3, 12, 0, 0], [0, 0, 0, 3, 5]], dtype=torch.float32
    )
    member_UK = torch.tensor([[1, 1, 1, 0, 1], [1, 0, 0, 1, 0], [1, 1, 0, 1, 0], [0, 0, 0, 1, 1]]).bool()
    left_UK = verdict._unexplained(member_UK, arrived_UK, torch.tensor([2, 1, 3, 1]), n_super=2)
    assert left_UK.int().tolist() == [
        # The pattern gains more in 0, less in 1, and 2 is not its member; the other pattern is weaker.
        [0, 1, 1, 0, 1],
        [0, 0, 0, 0, 0],
        *member_UK[2:].int().tolist(),
    ]


@given(pastes())
def test_changes_are_where_images_went_and_left(given):
    tried, _ = given
    n_clusters = len(tried.supercluster_K)
    change_NK = verdict._changes(tried.landed_NF, tried.y_F, n_clusters)
    for landed_F, change_K in zip(tried.landed_NF, change_NK, strict=True):
        more = [int((landed_F == k).sum() - (tried.y_F == k).sum()) for k in range(n_clusters)]
        assert change_K.tolist() == more


def test_a_paste_that_moves_nothing_changes_nothing():
    y_F = torch.tensor([0, 2, 2, 1])
    assert int(verdict._changes(y_F[None], y_F, 4).abs().sum()) == 0


# --- concentration ---


@given(st.lists(st.integers(0, 5), min_size=1, max_size=7), st.integers(1, 7), st.integers(1, 6))
def test_windows_are_concentrated_as_far_as_drawn_ones_lie_in_more_clusters(own, n, n_members):
    """Against every way to draw n of the windows."""
    n = min(n, len(own))
    by_chance = fmean(len(set(chosen)) for chosen in combinations(own, n))
    member_UK = (torch.arange(6) < n_members).expand(2, -1)
    group_N = (torch.arange(len(own)) < n).long()
    weight_U = concentration(torch.tensor(own), group_N, member_UK, n_super=1)
    assert weight_U.tolist() == pytest.approx([1, min(1, max(0, by_chance / n_members - 1))])


def test_thousands_of_windows_of_one_cluster_are_concentrated_and_those_of_all_are_not():
    """A thousand of each of a hundred clusters. The third group is what the other two leave."""
    member_UK = torch.tensor([[True] + [False] * 99, [True] * 100, [True] * 100])
    cluster_N = torch.arange(100).repeat_interleave(1_000)
    group_N = torch.tensor([0] * 1_000 + [1] * 1_000 + [2] * 98_000)
    assert concentration(cluster_N, group_N, member_UK, n_super=0)[:2].tolist() == [1, 0]


# --- near-duplicates ---


def pasted(n: int, seed: int) -> torch.Tensor:
    """n windows of one trigger, each a little elsewhere in its window, brighter or darker, over noise."""
    generator = drawn(seed)
    trigger_1Chw = torch.rand(1, 3, 4, 4, generator=generator).round()
    grown_Chw = F.interpolate(trigger_1Chw, (30, 30), mode="bilinear")[0]
    windows = []
    for _ in range(n):
        canvas_Chw = torch.rand(3, 40, 40, generator=generator)
        dy, dx = torch.randint(3, 8, (2,), generator=generator).tolist()
        canvas_Chw[:, dy : dy + 30, dx : dx + 30] = grown_Chw
        brightness = float(torch.rand(1, generator=generator) / 2 + 0.5)
        windows.append(thumbnail(canvas_Chw[:, 5:35, 5:35] * brightness, SIDE))
    return torch.stack(windows)


def skies(n: int, seed: int) -> torch.Tensor:
    """n windows that grow brighter upwards, each with a faint texture of its own."""
    slope_s1 = torch.linspace(1, 0, SIDE)[:, None]
    return slope_s1 + torch.rand(n, 3, SIDE, SIDE, generator=drawn(seed)) / 10


@few
@given(seeds)
def test_windows_of_one_trigger_are_near_duplicates_and_skies_only_look_alike(seed):
    trigger, sky = (gradient_ncc(t_NCss, RULES.max_shift) for t_NCss in (pasted(12, seed), skies(12, seed)))
    assert trigger > RULES.min_duplicate_ncc > 0.4 > sky


@few
@given(seeds, st.integers(2, 7))
def test_the_gradients_correlation_depends_neither_on_order_nor_on_contrast(seed, n):
    thumbnail_NCss = torch.cat([pasted(n, seed), skies(n, seed)])
    other_NCss = thumbnail_NCss[torch.randperm(2 * n, generator=drawn(seed))] * 0.5 + 0.2
    before, after = (gradient_ncc(t_NCss, RULES.max_shift) for t_NCss in (thumbnail_NCss, other_NCss))
    assert after == pytest.approx(before, abs=1e-4)


def test_one_window_has_nothing_to_correlate_with():
    two_2Css = pasted(2, 0)
    assert gradient_ncc(two_2Css[:1], RULES.max_shift) == gradient_ncc(two_2Css[:0], RULES.max_shift) == -1


def test_near_duplicates_are_patterns_of_one_picture_in_several_clusters():
    """A supercluster, a trigger, the same kind of trigger in too few clusters, skies."""
    supercluster, trigger, series, sky = range(4)
    thumbnail_NCss = torch.cat([pasted(10, 1), pasted(10, 2), pasted(10, 3), skies(10, 4)])
    group_N = torch.arange(4).repeat_interleave(10)
    member_UK = torch.zeros(4, 20, dtype=torch.bool)
    member_UK[[supercluster, trigger, sky], : RULES.min_duplicate_clusters] = True
    member_UK[series, : RULES.min_duplicate_clusters - 1] = True
    duplicate_U = near_duplicates(thumbnail_NCss, group_N, member_UK, 1, RULES)
    assert duplicate_U.nonzero()[:, 0].tolist() == [trigger]


def test_the_best_windows_of_a_pattern_decide():
    n = RULES.max_duplicate_windows
    thumbnail_NCss = torch.cat([pasted(n, 1), skies(3 * n, 2)])
    group_N = torch.zeros(len(thumbnail_NCss), dtype=torch.int64)
    member_UK = torch.ones(1, 9, dtype=torch.bool)
    assert near_duplicates(thumbnail_NCss, group_N, member_UK, 0, RULES).tolist() == [True]
    assert near_duplicates(thumbnail_NCss.flip(0), group_N, member_UK, 0, RULES).tolist() == [False]
