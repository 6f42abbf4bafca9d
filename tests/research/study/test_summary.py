import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.research.study.summary import Cube, cube_of, summary_of
from tests.examples import examples
from tests.research.study.small_grid import invented_rows, small_grid


def cube(v_SR, seed=0) -> Cube:
    v_SR = np.array(v_SR, float)
    return Cube(
        [{"strategy": i} for i in range(len(v_SR))],
        [f"r{i}" for i in range(v_SR.shape[1])],
        {"accuracy": v_SR},
        seed,
    )


shares = st.lists(st.floats(0, 1), min_size=2, max_size=6)


@examples(30)
@given(values=shares, seed=st.integers(0, 99))
def test_the_interval_holds_the_mean_and_stays_within_the_runs(values, seed):
    (got,) = cube([values], seed).estimate([0])
    assert got.mean == pytest.approx(np.mean(values))
    assert min(values) - 1e-9 <= got.low <= got.mean + 1e-9 and got.mean - 1e-9 <= got.high
    assert got.high <= max(values) + 1e-9
    assert (got, got) == tuple(cube([values, values], seed).estimate([0, 1])), "all rows share their draws"


def test_the_interval_is_as_wide_as_the_runs_differ():
    steady, shaky = cube([[0.5] * 8, [0.1, 0.9] * 4]).estimate([0, 1])
    assert (steady.low, steady.high) == (0.5, 0.5)
    # The mean of 8 draws of 0.1 or 0.9 has a deviation of 0.4 / √8 = 0.141.
    assert shaky.low == pytest.approx(0.5 - 1.96 * 0.141, abs=0.06)
    assert shaky.high == pytest.approx(0.5 + 1.96 * 0.141, abs=0.06)


def test_runs_of_one_seed_do_not_count_as_many():
    """Three seeds of four runs each, all that differs between seeds: as wide as of three runs."""
    values = [[0.1] * 4 + [0.5] * 4 + [0.9] * 4]
    names = [f"seed-{g}" for g in range(3) for i in range(4)]
    (nested,) = Cube([{}], names, {"accuracy": np.array(values)}, 0).estimate([0])
    (three,) = cube([[0.1, 0.5, 0.9]]).estimate([0])
    assert (nested.mean, nested.low, nested.high) == pytest.approx((three.mean, three.low, three.high))
    (apart,) = cube(values).estimate([0])
    assert apart.high - apart.low < 0.7 * (nested.high - nested.low)


def test_the_intervals_hold_the_truth_as_often_as_they_say():
    """Ten seeds of three runs: seeds differ by 0.1, runs of one by 0.05."""
    rng, n = np.random.default_rng(0), 200
    names, held = [f"seed-{g}" for g in range(10) for i in range(3)], 0
    for _ in range(n):
        values = 0.5 + np.repeat(0.1 * rng.normal(size=10), 3) + 0.05 * rng.normal(size=30)
        (got,) = Cube([{}], names, {"accuracy": values[None]}, 0).estimate([0])
        held += got.low <= 0.5 <= got.high
    # The percentile bootstrap over ten is known to be a little narrow.
    assert held / n >= 0.85


def test_a_choice_on_other_seeds_leaves_the_own_seed_out():
    # Setting 0 is best on both runs of the first seed, setting 1 on both of the second.
    values = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    names = ["seed-0", "seed-0", "seed-1", "seed-1"]
    assert Cube([{}, {}], names, {"accuracy": values}, 0).chosen_elsewhere([0, 1]).mean == 0.0


def test_one_run_has_no_interval_and_nothing_no_mean():
    (alone,) = cube([[0.7]]).estimate([0])
    assert alone.mean == 0.7 and math.isnan(alone.low) and str(alone) == "0.700"
    (nothing, part) = cube([[math.nan, math.nan], [math.nan, 0.25]]).estimate([0, 1])
    assert str(nothing) == "–" and part.mean == 0.25 and math.isnan(part.low)


def test_a_difference_is_taken_run_by_run():
    # Runs differ much, the two settings by 0.1 in every one.
    got = cube([[0.2, 0.5, 0.9], [0.1, 0.4, 0.8]]).difference([0], [1])
    assert (got.mean, got.low, got.high) == pytest.approx((0.1, 0.1, 0.1))


def test_the_best_and_what_it_is_worth_where_it_was_not_chosen():
    # Each of the first two is lucky on one run; the third is steady.
    runs = cube([[1.0, 0.0, 0.5], [0.0, 1.0, 0.45], [0.49, 0.49, 0.49]])
    assert runs.best([0, 1, 2]) == 0
    # Without run 0 setting 1 leads (0.725) and gets 0.0 there; without run 1 setting 0 (0.75), 0.0 there;
    # without run 2 settings 0 and 1 tie at 0.5, and the first gets 0.5.
    assert runs.chosen_elsewhere([0, 1, 2]).mean == pytest.approx(0.5 / 3)
    assert math.isnan(cube([[0.3]]).chosen_elsewhere([0]).mean)


def test_the_summary_holds_every_setting_once_and_plain_means():
    grid = small_grid()
    rows = invented_rows(grid, runs=3)
    turned = cube_of(rows, seed=0)
    table = summary_of(turned).to_pylist()
    assert len(table) * 3 == len(rows)
    for got in table[::7]:
        mine = [row for row in rows.to_pylist() if all(row[key] == got[key] for key in turned.settings[0])]
        assert len(mine) == got["runs"] == 3 and got["hits"] == sum(row["hits"] for row in mine)
        assert got["accuracy"] == pytest.approx(np.mean([row["accuracy"] for row in mine]), abs=1e-6)
        assert turned.where(**{key: got[key] for key in turned.settings[0]}) == [table.index(got)]
    assert turned.where(strategy="interval", masks=4) == [
        i for i, row in enumerate(table) if row["strategy"] == "interval" and row["masks"] == 4
    ]


def test_the_order_of_rows_changes_no_number():
    rows = invented_rows(small_grid(), runs=3)
    key = ["strategy", "score", "masks", "window", "k_factor"]
    forward, backward = (
        {tuple(row[k] for k in key): row for row in summary_of(cube_of(table, 0)).to_pylist()}
        for table in (rows, rows.take(list(range(len(rows)))[::-1]))
    )
    for name in ("accuracy", "hits", "coverage"):
        assert {k: row[name] for k, row in forward.items()} == pytest.approx(
            {k: row[name] for k, row in backward.items()}
        )
