"""Group scores, the null, and the suspects. Statistical tests of the rate of false alarms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.method.verdict import (
    Null,
    Suspects,
    VerdictRules,
    find_suspects,
    fit_null,
    group_score,
)

RULES = VerdictRules()
STEP = 0.01
RATE = 0.05


def suspects(
    gain_N: torch.Tensor,
    group_N: torch.Tensor,
    rate: float = RATE,
    step: float = STEP,
    flips_N: torch.Tensor | None = None,
    weight_U: torch.Tensor | None = None,
) -> Suspects:
    """Every window flips and every group has the weight 1, where nothing else is said."""
    if flips_N is None:
        flips_N = torch.ones(len(gain_N), dtype=torch.bool)
    if weight_U is None:
        weight_U = torch.ones(100, dtype=torch.float64)
    return find_suspects(gain_N, flips_N, group_N, weight_U, rate, step, RULES)


def exponential(n: int, generator: torch.Generator) -> torch.Tensor:
    """Counts of 100, a twentieth on average."""
    return (torch.empty(n).exponential_(20, generator=generator) / STEP).floor() * STEP


def geometric(n: int, generator: torch.Generator) -> torch.Tensor:
    return (torch.empty(n).geometric_(0.3, generator=generator) - 1) * STEP


def log_normal(n: int, generator: torch.Generator) -> torch.Tensor:
    """Heavier than the null that is fitted."""
    return (3 * torch.randn(n, generator=generator).exp()).floor() * STEP


def benign(n_groups: int, per_group: int, seed: int, draw=exponential) -> tuple[torch.Tensor, torch.Tensor]:
    """gain_N and group_N of windows that are all alike."""
    group_N = torch.arange(n_groups).repeat_interleave(per_group)
    return draw(len(group_N), torch.Generator().manual_seed(seed)), group_N


# Seven groups are the hardest: the null is small, and one group in two may be a suspect.
@pytest.mark.parametrize("draw", [exponential, geometric, log_normal])
@pytest.mark.parametrize(("n_groups", "per_group"), [(7, 20), (12, 10), (40, 10)])
def test_false_alarms_are_at_most_as_frequent_as_the_rate(draw, n_groups, per_group):
    n = 200
    for rate in (RATE, 0.4):
        alarms = sum(
            bool(suspects(*benign(n_groups, per_group, seed, draw), rate, STEP).suspect_N.any())
            for seed in range(n)
        )
        # A tail heavier than the null's: up to three times as often. Two standard errors of a share.
        most = min(1.0, 3 * rate) if draw is log_normal else rate
        assert alarms / n <= most + 2 * math.sqrt(rate * (1 - rate) / n)


def test_groups_that_differ_somewhat_keep_the_rate():
    n, alarms = 200, 0
    for seed in range(n):
        generator = torch.Generator().manual_seed(seed)
        group_N = torch.arange(20).repeat_interleave(12)
        mean_N = 3 * (0.3 * torch.randn(20, generator=generator)).exp()[group_N]
        count_N = torch.poisson(mean_N * torch.empty(240).exponential_(1, generator=generator), generator)
        alarms += bool(suspects(count_N.clamp(max=100) * STEP, group_N).suspect_N.any())
    # Two standard errors of a share.
    assert alarms / n <= RATE + 2 * math.sqrt(RATE * (1 - RATE) / n)


def test_false_alarms_do_happen():
    alarms = [bool(suspects(*benign(7, 20, seed), 0.5, STEP).suspect_N.any()) for seed in range(60)]
    assert 0 < sum(alarms) < 40


@pytest.mark.parametrize("n_attackers", [1, 2, 3, 4])
@pytest.mark.parametrize("n_groups", [10, 30])
def test_planted_groups_are_all_found(n_attackers, n_groups):
    exact = 0
    for seed in range(15):
        gain_N, group_N = benign(n_groups, 24, seed)
        # Half of a poisoned group's windows hit the trigger.
        hit_N = (group_N < n_attackers) & (torch.arange(len(group_N)) % 2 == 0)
        gain_N[hit_N] = 0.55 + 0.03 * group_N[hit_N]
        found = suspects(gain_N, group_N)
        assert bool(found.suspect_N[hit_N].all())
        exact += set(group_N[found.suspect_N].tolist()) == set(range(n_attackers))
        assert not set(found.null_U) & set(range(n_attackers))
        assert found.threshold < 0.55 and found.null is not None
    # A benign group beside them is a false alarm like any other.
    assert exact >= 13


def test_suspects_gain_their_group_s_mean_and_are_not_in_the_null():
    for seed in range(20):
        gain_N, group_N = benign(10, 10, seed, log_normal)
        gain_N[:7] = 0.9
        found = suspects(gain_N, group_N)
        assert bool(found.suspect_N[:7].all())
        for own_N in (group_N == u for u in group_N[found.suspect_N].unique().tolist()):
            assert float(gain_N[own_N & found.suspect_N].min()) >= float(gain_N[own_N].mean())
        assert not set(group_N[found.suspect_N].tolist()) & set(found.null_U)
        assert found.null is not None and found.null.n == len(found.null_U)


def test_a_few_high_windows_are_no_evidence_and_a_quarter_of_a_group_is():
    gain_N, group_N = benign(12, 12, 0)
    gain_N[:2] = 1.0
    assert not bool(suspects(gain_N, group_N).suspect_N.any())
    elsewhere_N = gain_N.clone()
    elsewhere_N[60:62] = 1.0
    assert not bool(suspects(elsewhere_N, group_N).suspect_N.any())
    gain_N[2:4] = 0.99
    assert suspects(gain_N, group_N).suspect_N.nonzero()[:, 0].tolist() == [0, 1, 2, 3]


def test_windows_that_do_not_flip_when_occluded_are_no_evidence():
    gain_N, group_N = benign(12, 12, 0)
    gain_N[:6] = 0.8
    flips_N = torch.ones(len(gain_N), dtype=torch.bool)
    assert suspects(gain_N, group_N, flips_N=flips_N).suspect_N[:6].all()
    flips_N[0] = False
    # Five of twelve are still more than a quarter, and the sixth is no suspect.
    found = suspects(gain_N, group_N, flips_N=flips_N)
    assert found.suspect_N.nonzero()[:, 0].tolist() == [1, 2, 3, 4, 5]
    flips_N[:4] = False
    assert not bool(suspects(gain_N, group_N, flips_N=flips_N).suspect_N.any())


def test_a_group_of_small_weight_is_no_suspect_but_widens_the_null():
    gain_N, group_N = benign(12, 12, 0)
    gain_N[group_N == 0], gain_N[group_N == 1] = 0.8, 0.6
    weight_U = torch.ones(12)

    def found() -> Suspects:
        return suspects(gain_N, group_N, weight_U=weight_U)

    assert set(group_N[found().suspect_N].tolist()) == {0, 1}
    weight_U[1] = 0.01
    assert set(group_N[found().suspect_N].tolist()) == set()
    assert found().score_U[1] == pytest.approx(0.006) and found().null_U[1] == pytest.approx(0.6)
    # Where that group gains less, the other stands out.
    gain_N[group_N == 1] = 0.1
    assert set(group_N[found().suspect_N].tolist()) == {0}


def test_a_group_of_large_weight_is_a_suspect_for_less_and_scores_at_most_one():
    gain_N, group_N = benign(12, 12, 0)
    weight_U = torch.ones(12)
    threshold = suspects(gain_N, group_N, weight_U=weight_U).threshold
    gain_N[group_N == 3] = threshold / 2
    assert not bool(suspects(gain_N, group_N, weight_U=weight_U).suspect_N.any())
    weight_U[3] = 3
    found = suspects(gain_N, group_N, weight_U=weight_U)
    assert set(group_N[found.suspect_N].tolist()) == {3} and 3 not in found.null_U
    assert found.score_U[3] == pytest.approx(1.5 * threshold)
    weight_U[4], gain_N[group_N == 4] = 50, 0.05
    assert suspects(gain_N, group_N, weight_U=weight_U).score_U[4] == 1


def test_one_poison_in_two_groups_of_different_strength_is_found_in_both():
    """A fifth of all candidates lie in the poison's groups, and the second group scores half as high."""
    for seed in range(10):
        gain_N, group_N = benign(18, 54, seed)
        strong_N = 0.2 + 0.23 * torch.linspace(0, 1, 149)
        weak_N = 0.22 * torch.linspace(0, 1, 100) ** 2
        gain_N = torch.cat([gain_N / 3, strong_N, weak_N])
        group_N = torch.cat([group_N, torch.full((149,), 18), torch.full((100,), 19)])
        found = suspects(gain_N, group_N)
        assert set(group_N[found.suspect_N].tolist()) == {18, 19}


def test_too_few_groups_are_no_evidence():
    group_N = torch.arange(RULES.min_null_groups).repeat_interleave(20)
    gain_N = torch.where(group_N == 0, 1.0, 0.0)
    found = suspects(gain_N, group_N)
    assert found.null is None and found.threshold == math.inf
    assert not bool(found.suspect_N.any()) and found.null_U == {}
    group_N = torch.arange(RULES.min_null_groups + 1).repeat_interleave(20)
    assert bool(suspects(torch.where(group_N == 0, 1.0, 0.0), group_N).suspect_N.any())


def test_groups_of_few_windows_are_not_scored():
    group_N = torch.arange(RULES.min_null_groups + 2).repeat_interleave(RULES.min_group_windows - 1)
    found = suspects(torch.rand(len(group_N)), group_N)
    assert found.null is None and found.score_U == {}
    assert group_score(torch.ones(RULES.min_group_windows - 1), RULES) is None


@given(st.integers(RULES.min_group_windows, 200), st.integers(0, 99))
def test_a_group_scores_less_than_its_mean_and_more_with_more_windows(n, seed):
    gain_M = torch.rand(n, generator=torch.Generator().manual_seed(seed)).double()
    score, twice = group_score(gain_M, RULES), group_score(gain_M.repeat(2), RULES)
    assert score is not None and twice is not None
    assert 0 <= score < float(gain_M.mean()) and score < twice < float(gain_M.mean())


def test_many_weak_windows_are_evidence_and_a_handful_are_not():
    gain_N, group_N = benign(15, 40, 0, lambda n, g: (torch.rand(n, generator=g) < 0.3) * STEP)
    for n, alarm in ((6, False), (40, True)):
        weak_N = gain_N.clone()
        weak_N[:n] = torch.tensor([0.02, 0.04]).repeat(n // 2)
        assert bool(suspects(weak_N, group_N).suspect_N.any()) is alarm


@pytest.mark.parametrize("score", [0.0, 0.02, 1.0])
def test_scores_that_are_all_equal_are_no_evidence(score):
    gain_N, group_N = torch.full((120,), score), torch.arange(120) // 10
    found = suspects(gain_N, group_N)
    assert not bool(found.suspect_N.any()) and found.threshold > score


@pytest.mark.parametrize("n", [0, 1, 200])
def test_one_group_has_no_null(n):
    found = suspects(torch.rand(n), torch.zeros(n, dtype=torch.int64))
    assert found.null is None and not bool(found.suspect_N.any())


def test_a_rate_of_one_asks_for_no_evidence():
    found = suspects(torch.zeros(3), torch.zeros(3, dtype=torch.int64), 1.0, STEP)
    assert found.suspect_N.tolist() == [True] * 3 and found.null_U == {}


def test_the_names_of_groups_and_the_order_of_windows_do_not_matter():
    gain_N, group_N = benign(11, 9, 2)
    gain_N[group_N == 4] += 0.5
    order_N = torch.randperm(len(gain_N), generator=torch.Generator().manual_seed(1))
    found, other = (
        suspects(gain_N, group_N),
        suspects(gain_N[order_N], 90 - group_N[order_N]),
    )
    assert bool(found.suspect_N.any())
    assert torch.equal(other.suspect_N, found.suspect_N[order_N])
    assert other.threshold == pytest.approx(found.threshold)


nulls = st.builds(Null, st.floats(0, 1), st.floats(0.01, 1), st.just(20))


@given(nulls, st.floats(-1, 1), st.floats(-1, 1))
def test_p_values_fall_as_scores_rise(null, a, b):
    low, high = sorted((a, b))
    assert 0 <= null.p_value(high) <= null.p_value(low) <= 1


@given(nulls, st.floats(1e-20, 0.999), st.floats(1e-20, 0.999), st.integers(1, 100_000))
def test_the_threshold_falls_as_the_rate_rises_and_rises_with_the_number_of_groups(null, a, b, n):
    low, high = sorted((a, b))
    assert null.threshold(low, n) >= null.threshold(high, n)
    assert null.threshold(low, n + 1) >= null.threshold(low, n)


@given(nulls, st.floats(1e-6, 0.5), st.integers(2, 1000))
def test_the_best_of_n_reaches_the_threshold_as_often_as_the_rate(null, rate, n):
    p = null.p_value(null.threshold(rate, n))
    assert 1 - (1 - p) ** n == pytest.approx(rate, rel=1e-6)


def test_the_null_of_maxima_is_found():
    uniform_G = torch.rand(5_000, generator=torch.Generator().manual_seed(0)).double()
    drawn = (0.05 - 0.02 * (-uniform_G.log()).log()).tolist()
    null = fit_null(drawn, 1e-6, RULES)
    assert null is not None and null.n == 5_000
    assert null.mode == pytest.approx(0.05, rel=0.03)
    assert 0.02 < null.scale < 0.0215


def test_the_scale_is_at_least_a_share_of_a_step():
    null = fit_null([0.0] * RULES.min_null_groups, STEP, RULES)
    assert null is not None and null.scale >= RULES.min_scale * STEP


def test_more_flip_test_images_do_not_make_more_alarms():
    """Most windows do not flip when occluded, so most groups score 0: the few others are no outliers."""
    n, flips, alarms = 100, 1000, 0
    for seed in range(n):
        generator = torch.Generator().manual_seed(seed)
        group_N = torch.arange(30).repeat_interleave(16)
        mean_N = 0.03 * (0.3 * torch.randn(30, generator=generator)).exp()[group_N]
        share_N = (mean_N * torch.empty(480).exponential_(1, generator=generator)).clamp(max=1)
        gain_N = torch.poisson(share_N * flips, generator=generator).clamp(max=flips) / flips
        flips_N = torch.rand(480, generator=generator) < 0.22
        alarms += bool(suspects(gain_N, group_N, RATE, 1 / flips, flips_N).suspect_N.any())
    assert alarms / n <= RATE
