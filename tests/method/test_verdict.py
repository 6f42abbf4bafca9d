"""The whole decision, and what is kept of it. Its steps have files of their own: test_verdict_*.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from poisoncam_ray.method import verdict
from poisoncam_ray.method.verdict import Candidates, Decision, VerdictRules, decide

RULES = VerdictRules()
SIDE = RULES.thumbnail_side
N_CLUSTERS, N_FLIP = 16, 20


def candidates(strong: int = 10, seed: int = 0) -> Candidates:
    """Eight superclusters of twelve benign windows each, and `strong` windows of one picture that move twelve
    images into cluster 9; best first."""
    generator = torch.Generator().manual_seed(seed)
    picture_1Css = torch.rand(1, 3, SIDE, SIDE, generator=generator).round()
    count_N = torch.tensor([12] * strong + [i // 16 % 3 for i in range(96)])
    cluster_N = torch.tensor([9] * strong + [i % N_CLUSTERS for i in range(96)])
    noise_NCss = torch.rand(96, 3, SIDE, SIDE, generator=generator)
    thumbnail_NCss = torch.cat([picture_1Css.expand(strong, -1, -1, -1), noise_NCss])
    y_F = torch.arange(N_FLIP) % N_CLUSTERS
    first_NF = torch.arange(N_FLIP) < count_N[:, None]
    landed_NF = torch.where(first_NF, cluster_N[:, None], y_F)
    order_N = count_N.argsort(descending=True, stable=True)
    return Candidates(
        cluster_N[order_N],
        count_N[order_N] / N_FLIP,
        torch.ones(len(order_N), dtype=torch.bool),
        landed_NF[order_N],
        thumbnail_NCss[order_N],
        y_F,
        torch.arange(N_CLUSTERS) // 2,
    )


def equal(one: Decision, other: Decision) -> bool:
    tensors = all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("group_N", "family_N", "kept_M")
    )
    return tensors and one.suspects.score_U == other.suspects.score_U


def test_a_planted_trigger_is_a_pattern_a_suspect_and_a_family():
    found = decide(candidates(), 0.05, RULES)
    assert found.family_N.tolist() == [1] * 10 + [0] * 96
    assert set(found.group_N[:10].tolist()) == {8} and int(found.group_N[10:].max()) < 8
    assert found.suspects.suspect_N.nonzero()[:, 0].tolist() == list(range(10))
    assert found.suspects.score_U[8] >= found.suspects.threshold > max(found.suspects.null_U.values())
    assert found.kept_M.tolist() == list(range(106))


def test_benign_windows_alone_are_no_family():
    found = decide(candidates(strong=0), 0.05, RULES)
    assert not bool(found.family_N.any()) and not bool(found.suspects.suspect_N.any())
    assert max(found.suspects.score_U.values()) < found.suspects.threshold


def test_at_a_rate_of_one_every_window_is_of_one_family_and_stays_in_its_supercluster():
    tried = candidates()
    found = decide(tried, 1.0, RULES)
    assert set(found.family_N.tolist()) == {1} and bool(found.suspects.suspect_N.all())
    assert torch.equal(found.group_N, tried.supercluster_K[tried.cluster_N])
    assert found.suspects.null is None and found.suspects.threshold == 0


def test_the_same_candidates_give_the_same_decision_however_many_at_once(monkeypatch):
    tried = candidates()
    whole = decide(tried, 0.05, RULES)
    assert equal(decide(tried, 0.05, RULES), whole)
    monkeypatch.setattr(verdict, "AT_ONCE", 7)
    assert equal(decide(tried, 0.05, RULES), whole)


# A rule, another value, and what of the decision that changes.
@pytest.mark.parametrize(
    ("rule", "value", "changes"),
    [
        ("max_shift", 0, set()),
        ("min_pattern_windows", 11, {"groups"}),
        ("min_pattern_ncc", 1.5, {"groups"}),
        ("max_pattern_search", 5, {"groups"}),
        ("min_group_windows", 11, {"scores", "families"}),
        ("n_standard_errors", 0.0, {"scores"}),
        ("min_null_groups", 20, {"families"}),
        ("scale_inflation", 200.0, {"families"}),
        ("min_scale", 100.0, {"families"}),
        ("min_family_windows", 11, {"families"}),
        ("max_family_windows", 4, {"families"}),
        ("max_kept", 3, {"kept"}),
    ],
)
def test_a_rule_changes_what_its_comment_says(rule, value, changes):
    tried = candidates()
    found, other = decide(tried, 0.05, RULES), decide(tried, 0.05, replace(RULES, **{rule: value}))
    seen = {
        "groups": not torch.equal(found.group_N, other.group_N),
        "scores": found.suspects.score_U != other.suspects.score_U,
        "families": not torch.equal(found.family_N, other.family_N),
        "kept": not torch.equal(found.kept_M, other.kept_M),
    }
    assert all(seen[name] for name in changes)
    if not changes:
        assert not any(seen.values())


def test_a_strong_trigger_leaves_room_for_a_weaker_one():
    """Sixty windows of the best group, then twenty of another: with room for forty each has a half."""
    group_N = torch.tensor([7] * 60 + [3] * 20 + [1] * 20)
    suspect_N, order_N = group_N > 1, torch.arange(100)
    best = verdict._best_suspects(suspect_N, group_N, order_N, RULES.max_family_windows)
    assert best.tolist() == list(range(80))
    assert verdict._best_suspects(suspect_N, group_N, order_N, 40).tolist() == [*range(20), *range(60, 80)]
    last = verdict._best_suspects(suspect_N, group_N, order_N.flip(0), 40)
    assert last.tolist() == [*range(40, 60), *range(60, 80)]


def test_the_best_are_kept_and_the_best_of_every_family():
    family_N = torch.tensor([0, 1, 0, 1, 1, 2, 0, 2, 2, 2])
    assert verdict._kept(family_N, torch.arange(10), 2).tolist() == [0, 1, 3, 5, 7]
    assert verdict._kept(family_N, torch.arange(10), 100).tolist() == list(range(10))
    assert verdict._kept(family_N, torch.arange(10).flip(0), 1).tolist() == [9, 4]
    assert verdict._kept(torch.zeros(3, dtype=torch.int64), torch.arange(3), 2).tolist() == [0, 1]
