"""The plot of the evidence: the scores of all window groups against those of the null distribution."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from poisoncam_ray.report.plot import Bar, Plot, Tick, round_values

MOST_BINS, LEAST_BINS = 40, 8


def against_null(scores: Sequence[float], null: Sequence[float], threshold: float | None) -> Plot | None:
    """Two histograms of window groups back to back, counts on one logarithmic scale.

    The threshold is an edge of a bin: no bar lies on both sides of it.

    Args:
        scores: of all window groups, drawn upwards.
        null: of the groups that the null distribution was fitted to, drawn downwards.
        threshold: the score from which a group is suspected; None without a null distribution.

    Returns:
        None where there is no score at all.
    """
    both = [*scores, *null]
    if not both:
        return None
    edge = threshold or 0.0
    width = _width(min(0.0, edge, *both), max(0.05, edge, *both), both)
    up, down = (_counts(values, edge, width, threshold) for values in (scores, null))
    first = min(*up, *down, math.floor(-edge / width), -1)
    n = max(*up, *down, 0) - first + 1
    up_decades, down_decades = (math.log10(1 + max(bins.values(), default=9)) for bins in (up, down))
    unit = 100 / (up_decades + down_decades)
    zero = up_decades * unit

    def at(score: float) -> float:
        return 100 * ((score - edge) / width - first) / n

    def height(count: int) -> float:
        # One group is still a visible bar: log(1 + n).
        return unit * math.log10(1 + count)

    bars = []
    for i in range(first, first + n):
        around = f"score {100 * (edge + i * width):.3g} to {100 * (edge + (i + 1) * width):.3g} %"
        x, wide = 100 * (i - first) / n, 85 / n
        if up[i]:
            kind = "chosen" if threshold is not None and i >= 0 else "other"
            label = f"{around}: {up[i]:,} window groups"
            bars.append(Bar(x, zero - height(up[i]), wide, height(up[i]), kind, label))
        if down[i]:
            label = f"{around}: {down[i]:,} benign window groups"
            bars.append(Bar(x, zero, wide, height(down[i]), "benign", label))
    ticks = [
        Tick(zero + way * height(10**d), f"{10**d:,}")
        for way, decades in ((-1, up_decades), (1, down_decades))
        for d in range(1, math.floor(decades) + 1)
    ]
    return Plot(
        x_ticks=[
            Tick(at(value), f"{100 * value:.3g} %")
            for value in round_values(edge + first * width, edge + (first + n) * width, 5)
        ],
        y_ticks=[Tick(zero, "0"), *(tick for tick in ticks if 0 <= tick.at <= 100)],
        bars=bars,
        mark=None if threshold is None else Tick(at(threshold), f"threshold {100 * threshold:.3g} %"),
    )


def _width(low: float, high: float, scores: Sequence[float]) -> float:
    """The width of a bin. Bins narrower than the least difference of two scores would leave gaps."""
    places = sorted({round(score, 6) for score in scores})
    step = min((b - a for a, b in pairwise(places)), default=0.0)
    return max((high - low) / MOST_BINS, min(step, (high - low) / LEAST_BINS))


def _counts(scores: Sequence[float], edge: float, width: float, threshold: float | None) -> Counter[int]:
    """The number of scores in each bin, by the bin's place counted from the edge."""
    bins: Counter[int] = Counter()
    for score in scores:
        # A score on the edge of a bin must not fall to either side by its last digit.
        i = math.floor((score - edge) / width + 0.05)
        # A score equal to the threshold belongs above it, whatever the division rounds to.
        if threshold is not None:
            i = max(i, 0) if score >= threshold else min(i, -1)
        bins[i] += 1
    return bins
