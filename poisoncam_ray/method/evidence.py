"""Is there anything? The best candidates against a null distribution from the same corpus and encoder.

The null are the windows that the same masks chose in images of the other groups of clusters: benign ones,
picked as hard as the suspects were. Windows at random places are an easier null, and random colourful patches
none at all: a poisoned encoder takes them for its trigger (40 to 66 of 100 images moved into the poison's
clusters, photographs, tuning classes).

N candidates   G groups of clusters
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_NULL = 40
"""Fewer benign windows tell nothing of their tail."""
TAIL = 0.1
"""The share of the null that its tail is read from."""
SUSPECT_SHARE = 0.5
"""At most this share of the groups may be suspects: the others are the null."""
WITNESSES = 2
"""So many windows, of different images, must pass: one is an anecdote."""


@dataclass(frozen=True)
class Tail:
    """The null's upper tail: exponential above `start`, with mean excess `scale` (both in scores)."""

    start: float
    scale: float
    n: int

    def p_value(self, score: float) -> float:
        """The chance that a benign window scores at least so much; TAIL for all below the tail's start."""
        return TAIL * math.exp(-max(0.0, score - self.start) / self.scale)

    def threshold(self, false_alarm_rate: float, n_candidates: int) -> float:
        """The score that the best of `n_candidates` benign windows reaches with this chance."""
        # 1 − (1 − rate)^(1/n), exact for tiny rates too.
        single = -math.expm1(math.log1p(-false_alarm_rate) / n_candidates)
        return self.start + self.scale * math.log(max(1.0, TAIL / single))


@dataclass(frozen=True)
class Evidence:
    """`suspect_N`: candidates beyond the threshold, in the groups that stand out; none: no evidence.
    `null_N`: candidates of all other groups. `tail` is None, and nobody is of the null, where there are too
    few candidates (threshold ∞) or no evidence was asked for (threshold 0)."""

    tail: Tail | None
    threshold: float
    suspect_N: Tensor
    null_N: Tensor


def weigh(score_N: Tensor, group_N: Tensor, false_alarm_rate: float, step: float) -> Evidence:
    """Which groups' candidates score higher than benign windows do.

    The m best groups, each by its second best window, must all pass the threshold that the remaining groups'
    windows set; the largest such m counts, so that several attackers do not hide one another. `group_N`: the
    group of each candidate's own cluster; `step`: the least difference between two scores, one flip-test
    image. A false alarm rate of 1 asks for no evidence: then every candidate is a suspect, as in the paper.

    The rate is kept where benign windows score alike in all groups. Of drawn scores whose group means
    differed log-normally with σ = 0.6 one corpus in 20 was an alarm at a rate of 0.05, with σ = 1 one in 4: a
    natural place that pulls images stands out, too. `need` asks whether its own images hang on the window.
    """
    if false_alarm_rate >= 1:
        everyone_N = torch.ones(len(score_N), dtype=torch.bool)
        return Evidence(None, 0.0, everyone_N, ~everyone_N)
    score_N, group_N = score_N.double().cpu(), group_N.cpu()
    witness = {g: _witness(score_N[group_N == g]) for g in group_N.unique().tolist()}
    ranked = sorted(witness, key=lambda g: (-witness[g], g))
    none_N = torch.zeros(len(score_N), dtype=torch.bool)
    found = Evidence(None, math.inf, none_N, none_N)
    for m in range(1, max(1, math.floor(SUSPECT_SHARE * len(ranked))) + 1):
        accused_N = torch.isin(group_N, torch.tensor(ranked[:m]))
        tail = fit_tail(score_N[~accused_N], step)
        if tail is None:
            break
        threshold = tail.threshold(false_alarm_rate, len(score_N))
        if witness[ranked[m - 1]] >= threshold:
            found = Evidence(tail, threshold, accused_N & (score_N >= threshold), ~accused_N)
        elif m == 1:
            found = Evidence(tail, threshold, none_N, ~accused_N)
    return found


def fit_tail(score_M: Tensor, step: float) -> Tail | None:
    """None of fewer than LEAST_NULL scores. The scale is at least one step: scores are counts."""
    if len(score_M) < LEAST_NULL:
        return None
    start = float(torch.quantile(score_M.double(), 1 - TAIL))
    excess = score_M[score_M > start].double() - start
    scale = float(excess.mean()) if len(excess) else 0.0
    return Tail(start, max(step, scale), len(score_M))


def _witness(score_M: Tensor) -> float:
    """The score of the last window that must pass."""
    return float(score_M.topk(WITNESSES).values[-1]) if len(score_M) >= WITNESSES else -math.inf
