"""Is there anything? The best groups of clusters against a null from the same corpus and encoder.

The null are the windows that the same masks chose in images of the other groups of clusters: benign ones,
picked as hard as the suspects were. Windows at random places are an easier null, and random colourful patches
none at all: a poisoned encoder takes them for its trigger (40 to 66 of 100 images moved into the poison's
clusters, photographs, tuning classes).

N candidates   G groups of clusters
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor

LEAST_GROUPS = 5
"""Fewer benign groups tell nothing of how groups differ."""
SUSPECT_SHARE = 0.5
"""At most this share of the groups may be suspects: the others are the null."""
SPOKEN = 0.75
"""A group speaks with this quantile of its windows' scores; a window that its own image does not need scores
nothing. A natural place has a few windows that pull images, and images that stay without them; a trigger lies
in most windows of its place. The upper quartile was 0.12 to 0.72 in the groups that most poison lay in, and
at most 0.04 in benign ones (photographs, ten attacks and a clean corpus of the tuning classes, and the demo);
of all windows, needed or not, up to 0.13 in benign ones; the second best window up to 0.29. The median loses
groups that hold as many natural images as poison."""
LEAST_WINDOWS = 8
"""Groups of fewer windows say nothing."""
CAUTION = 2.0
"""The fitted scale is (1 + CAUTION/√G) times the sample's: a few groups may look more alike than groups are,
and natural places pull images differently. With it, and a rate of 0.05, drawn groups whose means differed
log-normally with σ = 0.3 were an alarm in at most 2 of 100 corpora of 8 to 60 groups, with σ = 0.5 in 2 to 7,
with σ = 0.75 in 13 to 23."""


@dataclass(frozen=True)
class Null:
    """How high a benign group scores: a Gumbel distribution (its right tail is heavier than a normal one's)
    with `mode` and `scale` in scores, from `n` groups."""

    mode: float
    scale: float
    n: int

    def p_value(self, score: float) -> float:
        """The chance that a benign group reaches `score`."""
        return -math.expm1(-math.exp((self.mode - score) / self.scale))

    def threshold(self, false_alarm_rate: float, n_groups: int) -> float:
        """The score that the best of `n_groups` benign groups reaches with this chance."""
        return self.mode - self.scale * math.log(-math.log1p(-false_alarm_rate) / n_groups)


@dataclass(frozen=True)
class Evidence:
    """`score_G`: each group's score, by its number. `suspect_N`: candidates beyond the threshold, in the
    groups that stand out; none: no evidence. `null_G`: the groups that do not. `null` is None, and nobody is
    of it, where there are too few groups (threshold ∞) or no evidence was asked for (threshold 0)."""

    null: Null | None
    threshold: float
    score_G: dict[int, float]
    suspect_N: Tensor
    null_G: list[int]


def weigh(
    score_N: Tensor, needed_N: Tensor, group_N: Tensor, false_alarm_rate: float, step: float
) -> Evidence:
    """Which groups' candidates score higher than benign windows do.

    The m-th best group must pass the threshold that the groups after it set; the largest such m counts, so
    that several attackers, or one in several groups, do not hide one another. Groups are compared, not
    windows: those of one group are no independent draws, and a second group of the same poison among the
    null's windows would lift their tail far above itself. `needed_N`: as `need.needed` says; `group_N`: the
    group of each candidate's own cluster; `step`: the least difference between two scores, one flip-test
    image. A false alarm rate of 1 asks for no evidence: then every candidate is a suspect, as in the paper.
    """
    group_N = group_N.cpu()
    score_N = torch.where(needed_N.cpu(), score_N.double().cpu(), 0.0)
    heard = {g: group_score(score_N[group_N == g]) for g in group_N.unique().tolist()}
    score_G = {g: score for g, score in heard.items() if score is not None}
    if false_alarm_rate >= 1:
        return Evidence(None, 0.0, score_G, torch.ones(len(score_N), dtype=torch.bool), [])
    ranked = sorted(score_G, key=lambda g: (-score_G[g], g))
    none_N = torch.zeros(len(score_N), dtype=torch.bool)
    found = Evidence(None, math.inf, score_G, none_N, [])
    for m in range(1, max(1, math.floor(SUSPECT_SHARE * len(ranked))) + 1):
        null = fit_null([score_G[g] for g in ranked[m:]], step)
        if null is None:
            break
        threshold = null.threshold(false_alarm_rate, len(ranked))
        if score_G[ranked[m - 1]] >= threshold:
            suspect_N = torch.isin(group_N, torch.tensor(ranked[:m])) & (score_N >= threshold)
            found = Evidence(null, threshold, score_G, suspect_N, ranked[m:])
        elif m == 1:
            found = Evidence(null, threshold, score_G, none_N, ranked[m:])
    return found


def fit_null(score_G: Sequence[float], step: float) -> Null | None:
    """By moments; None of fewer than LEAST_GROUPS. The scale is at least one step: scores are counts."""
    n = len(score_G)
    if n < LEAST_GROUPS:
        return None
    scale = max(step, stdev(score_G) * math.sqrt(6) / math.pi) * (1 + CAUTION / math.sqrt(n))
    # Euler's constant times the scale is how far a Gumbel's mean lies above its mode.
    return Null(fmean(score_G) - 0.5772156649 * scale, scale, n)


def group_score(score_M: Tensor) -> float | None:
    """SPOKEN quantile of a group's windows; None of fewer than LEAST_WINDOWS."""
    return float(torch.quantile(score_M.double(), SPOKEN)) if len(score_M) >= LEAST_WINDOWS else None
