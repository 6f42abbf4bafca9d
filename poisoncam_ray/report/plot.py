"""Plots as plain geometry, in per cent of the plot's width and height. The page's template draws them as SVG.

There are no fixed pixels, so text keeps its size. Colours come from the style sheet and follow the reader's
light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CURVE_POINTS = 300
RANKED_POINTS = 500
BINS = 60


@dataclass(frozen=True)
class Tick:
    """A label on an axis, at a place in per cent."""

    at: float
    label: str


@dataclass(frozen=True)
class Bar:
    """A rectangle in per cent; `kind` is its CSS class, `label` its tooltip."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    label: str


@dataclass(frozen=True)
class Dot:
    """A point in per cent; `kind` is its CSS class."""

    x: float
    y: float
    kind: str


@dataclass(frozen=True)
class Plot:
    """A plot. `x` counts to the right, `y` downwards from the top.

    Attributes:
        line: an SVG list of points in a 100 × 100 square.
        mark: a vertical line.
    """

    x_ticks: Sequence[Tick] = ()
    y_ticks: Sequence[Tick] = ()
    bars: Sequence[Bar] = ()
    dots: Sequence[Dot] = ()
    line: str = ""
    mark: Tick | None = None


def stacked(counts: Mapping[str, int]) -> Plot:
    """One bar from left to right, divided by kind. Every count above zero gets about one per cent at least,
    so that it is visible."""
    total = max(1, sum(counts.values()))
    widths = {kind: max(1.0, 100 * n / total) for kind, n in counts.items() if n}
    scale, x, bars = 100 / max(1.0, sum(widths.values())), 0.0, []
    for kind, width in widths.items():
        bars.append(Bar(x, 0, width * scale, 100, kind, f"{counts[kind]:,} {kind}"))
        x += width * scale
    return Plot(bars=bars)


def histogram(kept: Sequence[int], removed: Sequence[int], threshold: float | None) -> Plot | None:
    """A histogram of the probability of poison, counts on a logarithmic scale.

    Args:
        kept: counts of the kept images in equal bins over 0 … 1.
        removed: the same for the removed images; drawn beside the kept ones.
        threshold: a probability to mark; None for no mark.

    Returns:
        None where all counts are zero.
    """
    top = max([0, *kept, *removed])
    if top == 0:
        return None
    decades = max(1, math.ceil(math.log10(top + 1)))
    width = 100 / len(kept)
    bars = []
    for i, pair in enumerate(zip(kept, removed, strict=True)):
        low, high = i / len(kept), (i + 1) / len(kept)
        present = [(kind, n) for kind, n in zip(("kept", "removed"), pair, strict=True) if n]
        for j, (kind, n) in enumerate(present):
            share = width / len(present)
            # One image is still a visible bar: log(1 + n).
            height = 100 * math.log10(1 + n) / decades
            label = f"p {low:.2f} to {high:.2f}: {n:,} {kind}"
            bars.append(Bar(i * width + j * share, 100 - height, 0.85 * share, height, kind, label))
    return Plot(
        x_ticks=[Tick(100 * p, f"{p:g}") for p in (0, 0.25, 0.5, 0.75, 1)],
        y_ticks=[
            Tick(max(0.0, 100 - 100 * math.log10(1 + 10**d) / decades), f"{10**d:,}")
            for d in range(decades + 1)
        ],
        bars=bars,
        mark=None if threshold is None else Tick(100 * threshold, f"threshold {threshold:.3g}"),
    )


def ranked(scores: Sequence[tuple[float, bool]]) -> Plot | None:
    """One dot for each score over its rank; long lists of unchosen scores are thinned out evenly.

    Args:
        scores: (score, chosen), highest first.

    Returns:
        None where there is no score.
    """
    if not scores:
        return None
    top, bottom = max(0.05, scores[0][0]), min(0.0, scores[-1][0])
    stride = max(1, len(scores) // RANKED_POINTS)
    last = max(1, len(scores) - 1)
    shown = [i for i, (_, chosen) in enumerate(scores) if chosen or i < 50 or i % stride == 0]
    ticks = round_values(bottom, top, 4)
    span = max(top, ticks[-1]) - bottom

    def y(score: float) -> float:
        return 100 - 100 * (score - bottom) / span

    # Chosen dots are drawn last, on top of their neighbours.
    shown.sort(key=lambda i: scores[i][1])
    return Plot(
        x_ticks=[Tick(0, "rank 1"), Tick(100, f"rank {len(scores):,}")],
        y_ticks=[Tick(y(value), f"{100 * value:.3g} %") for value in ticks],
        dots=[Dot(100 * i / last, y(scores[i][0]), "chosen" if scores[i][1] else "other") for i in shown],
    )


def steps(live: Sequence[int]) -> Plot | None:
    """One bar for each search round: the number of live clusters. None without a round."""
    if not live:
        return None
    ticks = round_values(0, max(1, *live), 3)
    top, width = max(ticks[-1], *live), 100 / len(live)
    every = max(1, math.ceil(len(live) / 10))
    return Plot(
        x_ticks=[Tick((i + 0.5) * width, str(i + 1)) for i in range(0, len(live), every)],
        y_ticks=[Tick(100 - 100 * value / top, f"{value:g}") for value in ticks],
        bars=[
            Bar(
                (i + 0.1) * width,
                100 - 100 * n / top,
                0.8 * width,
                100 * n / top,
                "kept",
                f"round {i + 1}: {n} live clusters",
            )
            for i, n in enumerate(live)
        ],
    )


def curve(points: Sequence[tuple[float, float]]) -> Plot | None:
    """A line through the points (x, y); longer series are averaged down to CURVE_POINTS. None for fewer than
    two finite points."""
    points = [(x, y) for x, y in points if math.isfinite(y)]
    if len(points) < 2:
        return None
    size = math.ceil(len(points) / CURVE_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    xs = [sum(x for x, _ in group) / len(group) for group in groups]
    ys = [sum(y for _, y in group) / len(group) for group in groups]
    low, high = min(ys), max(ys)
    pad = 0.08 * (high - low) or 0.5
    low, high = low - pad, high + pad
    x_span = (xs[-1] - xs[0]) or 1
    return Plot(
        x_ticks=[Tick(0, f"step {points[0][0]:,.0f}"), Tick(100, f"step {points[-1][0]:,.0f}")],
        y_ticks=[
            Tick(100 * (high - v) / (high - low), f"{v:g}") for v in round_values(low, high, 4) if low <= v
        ],
        line=" ".join(
            f"{100 * (x - xs[0]) / x_span:.2f},{100 * (high - y) / (high - low):.2f}"
            for x, y in zip(xs, ys, strict=True)
        ),
    )


def round_values(low: float, high: float, n: int) -> list[float]:
    """About n round numbers between low and high."""
    raw = (high - low) / n
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]
