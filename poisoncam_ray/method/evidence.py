"""Is there anything? The best bundles of windows against a null from the same corpus and encoder.

The null are the windows that the same masks chose in the other bundles: benign ones, picked as hard as the
suspects were. Windows at random places are an easier null, and random colourful patches none at all: a
poisoned encoder takes them for its trigger (40 to 66 of 100 images moved into the poison's clusters,
photographs, tuning classes).

N candidates   M those of one bundle   U bundles
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor

LEAST_BUNDLES = 5
"""Fewer benign bundles tell nothing of how bundles differ."""
SUSPECT_SHARE = 0.5
"""At most this share of the bundles may be suspects: the others are the null."""
SURE = 2.0
"""A bundle speaks with its windows' mean score less so many standard errors; a window that its own image
does not need scores nothing. A natural place has a few windows that pull images, and images that stay without
them; a trigger lies in most windows of its bundle. Groups of clusters alone, with the upper quartile of their
windows, missed two weak backdoors (attack success 0.24 and 0.38); bundles with this found them (photographs,
tuning)."""
LEAST_WINDOWS = 8
"""Bundles of fewer windows say nothing."""
FLOOR = 0.25
LEAST_STEP = 0.01
"""Benign bundles whose means differ by less than FLOOR of a step are not told apart, nor with more flip-test
images than 100 by less than FLOOR of LEAST_STEP: most natural bundles score next to nothing, and those that
do not would be outliers among them. Drawn bundles of 16 windows (30 of them, σ = 0.3, one window in five
needed) were an alarm in 62 of 100 corpora with 1,000 images and without it, in none of 200 with it."""
CAUTION = 2.0
"""The fitted scale is (1 + CAUTION/√n) times the sample's: a few bundles may look more alike than bundles
are, and natural places pull images differently. With it, and a rate of 0.05, drawn bundles (10 to 60, means
of 0.006 and 0.03) whose means differed log-normally with σ = 0.3 were an alarm in at most 5 of 100 corpora,
with σ = 0.5 in 0 to 11, with σ = 0.75 in 2 to 28."""


@dataclass(frozen=True)
class Null:
    """How high a benign bundle scores: a Gumbel distribution (its right tail is heavier than a normal one's)
    with `mode` and `scale` in scores, from `n` bundles."""

    mode: float
    scale: float
    n: int

    def p_value(self, score: float) -> float:
        """The chance that a benign bundle reaches `score`."""
        return -math.expm1(-math.exp((self.mode - score) / self.scale))

    def threshold(self, false_alarm_rate: float, n_bundles: int) -> float:
        """The score that the best of `n_bundles` benign bundles reaches with this chance."""
        return self.mode - self.scale * math.log(-math.log1p(-false_alarm_rate) / n_bundles)


@dataclass(frozen=True)
class Weighing:
    """`score_U`: each bundle's score, by its number, times its weight. `suspect_N`: the windows that speak
    for the bundles that stand out; none: no evidence. `null_U`: what those that do not score, without
    weights. `null` is None, and nobody is of it, where there are too few bundles (threshold ∞) or no evidence
    was asked for (threshold 0)."""

    null: Null | None
    threshold: float
    score_U: dict[int, float]
    suspect_N: Tensor
    null_U: dict[int, float]


def weigh(
    score_N: Tensor,
    needed_N: Tensor,
    bundle_N: Tensor,
    weight_U: Tensor,
    false_alarm_rate: float,
    step: float,
) -> Weighing:
    """Which bundles' candidates score higher than benign windows do.

    The m-th best bundle must pass the threshold that the bundles after it set; the largest such m counts, so
    that several attackers, or one in several bundles, do not hide one another. Bundles are compared, not
    windows: those of one bundle are no independent draws, and a second bundle of the same poison among the
    null's windows would lift their tail far above itself.

    A bundle is accused of its score times its weight, at most 1, but is of the null with its score as it is:
    windows cut from everywhere weigh little (`pull.gathered`), for they are no attacker's, and show how hard
    natural ones pull; copies of one picture weigh more (`copies.copied`), for they are seldom natural.
    Without the former six such looks of 50,000 photographs, 500 of them poisoned, passed with the poison, and
    the best bundles of 20 clean corpora lay at 0.28 … 0.82 of the threshold; with it none (0.3), and at
    0.17 … 0.51 (tuning).

    `score_N`: as `pull.pulls` says, of all flip-test images, at least 0; `needed_N`: as `need.needed` says;
    `bundle_N`: as `bundles.bundles` does; `step`: the least difference between two scores, one flip-test
    image. A false alarm rate of 1 asks for no evidence: then every candidate is a suspect, as in the paper.
    """
    bundle_N = bundle_N.cpu()
    score_N = torch.where(needed_N.cpu(), score_N.double().cpu(), 0.0)
    heard = {u: bundle_score(score_N[bundle_N == u]) for u in bundle_N.unique().tolist()}
    pulled_U = {u: score for u, score in heard.items() if score is not None}
    score_U = {u: min(1.0, score * float(weight_U[u])) for u, score in pulled_U.items()}
    if false_alarm_rate >= 1:
        return Weighing(None, 0.0, score_U, torch.ones(len(score_N), dtype=torch.bool), {})
    ranked = sorted(score_U, key=lambda u: (-score_U[u], u))
    none_N = torch.zeros(len(score_N), dtype=torch.bool)
    found = Weighing(None, math.inf, score_U, none_N, {})
    for m in range(1, max(1, math.floor(SUSPECT_SHARE * len(ranked))) + 1):
        null_U = {u: pulled_U[u] for u in ranked[m:]}
        null = fit_null(list(null_U.values()), step)
        if null is None:
            break
        threshold = null.threshold(false_alarm_rate, len(ranked))
        if score_U[ranked[m - 1]] >= threshold:
            found = Weighing(null, threshold, score_U, _speakers(score_N, bundle_N, ranked[:m]), null_U)
        elif m == 1:
            found = Weighing(null, threshold, score_U, none_N, null_U)
    return found


def _speakers(score_N: Tensor, bundle_N: Tensor, accused: Sequence[int]) -> Tensor:
    """suspect_N: of each accused bundle the needed windows that score at least its mean. A group of clusters
    holds natural images beside the poison: 90 to 93 % of its windows past the threshold were poison, of these
    99 to 100 (photographs, tuning)."""
    suspect_N = torch.zeros(len(score_N), dtype=torch.bool)
    for bundle in accused:
        own_N = bundle_N == bundle
        # Where all score the same, their mean may lie above them by its last digit.
        suspect_N |= own_N & (score_N > 0) & (score_N >= score_N[own_N].mean() - 1e-9)
    return suspect_N


def fit_null(score_U: Sequence[float], step: float) -> Null | None:
    """By moments; None of fewer than LEAST_BUNDLES. The scale is at least FLOOR of a step, or LEAST_STEP."""
    n = len(score_U)
    if n < LEAST_BUNDLES:
        return None
    scale = max(FLOOR * max(step, LEAST_STEP), stdev(score_U) * math.sqrt(6) / math.pi) * (
        1 + CAUTION / math.sqrt(n)
    )
    # Euler's constant times the scale is how far a Gumbel's mean lies above its mode.
    return Null(fmean(score_U) - 0.5772156649 * scale, scale, n)


def bundle_score(score_M: Tensor) -> float | None:
    """What the bundle's windows surely score on average, at least 0; None of fewer than LEAST_WINDOWS."""
    if len(score_M) < LEAST_WINDOWS:
        return None
    return max(0.0, float(score_M.mean() - SURE * score_M.std() / math.sqrt(len(score_M))))
