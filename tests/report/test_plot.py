"""Plots stay inside their frame and show every count, whatever the numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.report.plot import curve, histogram, ranked, stacked, steps

counts = st.lists(st.integers(0, 10**9), min_size=50, max_size=50)


@given(counts, counts, st.floats(0, 1))
def test_histogram_stays_inside_and_shows_every_bin(kept: list, removed: list, threshold: float) -> None:
    plot = histogram(kept, removed, threshold)
    present = sum(n > 0 for n in kept + removed)
    assert (plot is None) == (present == 0)
    if plot:
        assert len(plot.bars) == present
        for bar in plot.bars:
            assert bar.height > 1 and bar.y >= -1e-6 and bar.y + bar.height == pytest.approx(100)
            assert bar.x >= 0 and bar.x + bar.width <= 100 + 1e-6


@given(st.lists(st.tuples(st.floats(-1, 1), st.booleans()), max_size=2000))
def test_ranked_scores_stay_inside_and_keep_every_chosen_one(scores: list) -> None:
    scores.sort(reverse=True)
    plot = ranked(scores)
    assert (plot is None) == (not scores)
    if plot:
        assert sum(dot.kind == "chosen" for dot in plot.dots) == sum(chosen for _, chosen in scores)
        assert all(-1e-6 <= value <= 100 + 1e-6 for dot in plot.dots for value in (dot.x, dot.y))
        assert len(plot.dots) <= 1100 + sum(chosen for _, chosen in scores)


@given(st.lists(st.floats(allow_infinity=True, allow_nan=True, width=16), max_size=1000))
def test_curves_stay_inside_and_short(ys: list) -> None:
    plot = curve(list(enumerate(ys)))
    if plot:
        points = [tuple(map(float, point.split(","))) for point in plot.line.split()]
        assert 1 <= len(points) <= 300
        assert all(0 <= value <= 100 for point in points for value in point)


@given(st.lists(st.integers(0, 10**6), max_size=60))
def test_steps_stay_inside(live: list) -> None:
    plot = steps(live)
    assert (plot is None) == (not live)
    assert all(bar.y >= -1e-6 and bar.height >= 0 for bar in plot.bars) if plot else True


@given(st.lists(st.integers(0, 10**9), min_size=3, max_size=3))
def test_the_ledger_bar_is_full_and_shows_whatever_there_is(parts: list) -> None:
    plot = stacked(dict(zip(("kept", "removed", "dead"), parts, strict=True)))
    assert len(plot.bars) == sum(n > 0 for n in parts)
    if plot.bars:
        assert sum(bar.width for bar in plot.bars) == pytest.approx(100)
        assert min(bar.width for bar in plot.bars) > 0.9
