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
WITNESSES = 2
"""A group speaks with its second best window: one is an anecdote."""
CAUTION = 2.0
"""The fitted scale is (1 + CAUTION/√G) times the sample's: a few groups may look more alike than groups are,
and natural places pull images differently. With it, and a rate of 0.05, drawn groups whose means differed
log-normally with σ = 0.3 were an alarm in 2 to 6 corpora of 100, for 6 to 60 groups; with σ = 0.5 in 7 to 12,
with σ = 0.75 in 20 to 27; windows with log-normal scores (σ = 1) in 9 to 12. `need` asks whether the own
images of a natural place hang on the window, too."""


@dataclass(frozen=True)
class Null:
    """How high a benign group's witness scores: a Gumbel distribution, that of maxima, with `mode` and
    `scale` in scores, from `n` groups."""

    mode: float
    scale: float
    n: int

    def p_value(self, score: float) -> float:
        """The chance that a benign group's witness reaches `score`."""
        return -math.expm1(-math.exp((self.mode - score) / self.scale))

    def threshold(self, false_alarm_rate: float, n_groups: int) -> float:
        """The score that the best witness of `n_groups` benign groups reaches with this chance."""
        return self.mode - self.scale * math.log(-math.log1p(-false_alarm_rate) / n_groups)


@dataclass(frozen=True)
class Evidence:
    """`suspect_N`: candidates beyond the threshold, in the groups that stand out; none: no evidence.
    `null_N`: candidates of all other groups. `null` is None, and nobody is of it, where there are too few
    groups (threshold ∞) or no evidence was asked for (threshold 0). `witness`: the best group's; p-values are
    of witnesses."""

    null: Null | None
    threshold: float
    witness: float
    suspect_N: Tensor
    null_N: Tensor


def weigh(score_N: Tensor, group_N: Tensor, false_alarm_rate: float, step: float) -> Evidence:
    """Which groups' candidates score higher than benign windows do.

    The m-th best group must pass the threshold that the groups after it set; the largest such m counts, so
    that several attackers, or one in several groups, do not hide one another. Groups are compared, not
    windows: those of one group are no independent draws, and another group of the same poison among the
    null's windows would lift their tail far above itself. `group_N`: the group of each candidate's own
    cluster; `step`: the least difference between two scores, one flip-test image. A false alarm rate of 1
    asks for no evidence: then every candidate is a suspect, as in the paper.
    """
    if false_alarm_rate >= 1:
        everyone_N = torch.ones(len(score_N), dtype=torch.bool)
        return Evidence(None, 0.0, 0.0, everyone_N, ~everyone_N)
    score_N, group_N = score_N.double().cpu(), group_N.cpu()
    witness = {g: witness_of(score_N[group_N == g]) for g in group_N.unique().tolist()}
    ranked = sorted((g for g in witness if witness[g] > -math.inf), key=lambda g: (-witness[g], g))
    none_N = torch.zeros(len(score_N), dtype=torch.bool)
    best = witness[ranked[0]] if ranked else -math.inf
    found = Evidence(None, math.inf, best, none_N, none_N)
    for m in range(1, max(1, math.floor(SUSPECT_SHARE * len(ranked))) + 1):
        null = fit_null([witness[g] for g in ranked[m:]], step)
        if null is None:
            break
        accused_N = torch.isin(group_N, torch.tensor(ranked[:m]))
        threshold = null.threshold(false_alarm_rate, len(ranked))
        if witness[ranked[m - 1]] >= threshold:
            found = Evidence(null, threshold, best, accused_N & (score_N >= threshold), ~accused_N)
        elif m == 1:
            found = Evidence(null, threshold, best, none_N, ~accused_N)
    return found


def fit_null(witness_G: Sequence[float], step: float) -> Null | None:
    """By moments; None of fewer than LEAST_GROUPS. The scale is at least one step: scores are counts."""
    n = len(witness_G)
    if n < LEAST_GROUPS:
        return None
    scale = max(step, stdev(witness_G) * math.sqrt(6) / math.pi) * (1 + CAUTION / math.sqrt(n))
    # Euler's constant times the scale is how far a Gumbel's mean lies above its mode.
    return Null(fmean(witness_G) - 0.5772156649 * scale, scale, n)


def witness_of(score_M: Tensor) -> float:
    """The score of the last window that must pass; −∞ where there are too few."""
    return float(score_M.topk(WITNESSES).values[-1]) if len(score_M) >= WITNESSES else -math.inf
