"""Scores against the null distribution: every group is counted once, on its side of the threshold."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.report.null_plot import against_null
from poisoncam_ray.report.plot import Plot

shares = st.integers(-150, 150).map(lambda n: n / 150)
scores = st.lists(st.one_of(shares, st.floats(-1, 1)), max_size=300)


def counted(plot: Plot, kind: str) -> int:
    found = [re.search(r": ([\d,]+) ", bar.label) for bar in plot.bars if bar.kind == kind]
    return sum(int(match.group(1).replace(",", "")) for match in found)


@given(scores, scores, st.one_of(st.none(), shares, st.floats(-1, 1)))
def test_every_group_is_counted_once_on_its_side(tried: list, null: list, threshold: float | None) -> None:
    plot = against_null(tried, null, threshold)
    assert (plot is None) == (not tried and not null)
    if plot:
        above = sum(threshold is not None and score >= threshold for score in tried)
        assert counted(plot, "chosen") == above
        assert counted(plot, "other") == len(tried) - above
        assert counted(plot, "benign") == len(null)


@given(scores, scores, st.floats(-1, 1))
def test_bars_stay_inside_and_the_threshold_divides_them(tried: list, null: list, threshold: float) -> None:
    plot = against_null(tried, null, threshold)
    for bar in plot.bars if plot else ():
        assert bar.x >= -1e-6 and bar.x + bar.width <= 100 + 1e-6
        assert bar.y >= -1e-6 and bar.y + bar.height <= 100 + 1e-6 and bar.height > 0.5
        if bar.kind == "chosen":
            assert bar.x >= plot.mark.at - 1e-6
        elif bar.kind == "other":
            assert bar.x + bar.width <= plot.mark.at + 1e-6
    ticks = [*plot.x_ticks, *plot.y_ticks, plot.mark] if plot else []
    assert all(-1e-6 <= tick.at <= 100 + 1e-6 for tick in ticks)


def test_bars_say_what_they_count() -> None:
    labels = [bar.label for bar in against_null([0.5, 0.05, 0.05], [0.05], 0.2).bars]
    assert [label.partition(": ")[2] for label in labels] == [
        "2 window groups", "1 benign window group", "1 window group",
    ]  # fmt: skip


def test_scores_in_steps_leave_no_gaps() -> None:
    tried = [n / 150 for n in range(-3, 12)]
    plot = against_null(tried, tried, 0.1)
    bins = sorted(bar.x for bar in plot.bars if bar.kind == "benign")
    gaps = [b - a for a, b in pairwise(bins)]
    assert len(bins) == len(tried)
    assert max(gaps) == pytest.approx(min(gaps))
