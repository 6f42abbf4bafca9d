"""Ways take turns, and ratios are taken round by round."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.research.benchmark.compare import Row, added, alternate, scaled
from tests.examples import examples

SECONDS = st.lists(st.tuples(st.floats(0.001, 1e3), st.floats(0.001, 1e3)), min_size=1, max_size=5)


@given(st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_every_way_has_its_turn_in_every_round(n_ways, rounds, warm):
    calls: list[int] = []
    ways = [lambda i=i: calls.append(i) or i for i in range(n_ways)]
    seconds, answers = alternate(ways, rounds, warm)
    assert answers == list(range(n_ways))
    assert [len(s) for s in seconds] == [rounds] * n_ways
    turns = [calls[i : i + n_ways] for i in range(0, len(calls), n_ways)]
    assert len(turns) == rounds + warm
    assert all(sorted(turn) == answers for turn in turns)
    assert all(a == b[::-1] for a, b in itertools.pairwise(turns[warm:]))


@examples(25)
@given(SECONDS)
def test_a_ratio_says_how_many_times_as_fast_ours_is(pairs):
    ours, other = [a for a, _ in pairs], [b for _, b in pairs]
    row = Row("work", ("ours", "other"), (ours, other), "")
    assert row.ratios == [b / a for a, b in pairs]
    assert min(row.ratios) <= row.as_json()["ratio"] <= max(row.ratios)
    assert row.as_json()["met"] is None


@pytest.mark.parametrize(
    ("seconds", "flop", "met"),
    [
        (([1.0], [8.0]), (1.0, 10.0), True),
        (([1.0], [7.9]), (1.0, 10.0), False),
        (([1.0], [8.0]), (1.0, 9.9), False),
    ],
)
def test_a_mark_is_met_when_time_and_operations_are(seconds, flop, met):
    row = Row("work", ("ours", "other"), seconds, "", 8, flop, 10)
    assert row.as_json()["met"] is met


def test_seconds_are_scaled_and_added_round_by_round():
    assert scaled([1.0, 2.0], 3) == [3.0, 6.0]
    assert added([1.0, 2.0], [10.0, 20.0]) == [11.0, 22.0]
