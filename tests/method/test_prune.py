"""The rules of the search, on tables of scores."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.method.prune import (
    SearchRules,
    advance,
    most_after,
    most_rounds,
    picks,
    prune,
    reason_to_stop,
    start,
    turns,
)


def search(score_table, rules, sizes, seed=0):
    """Run a search over a table of scores by cluster and turn.

    Returns the picks of every round with the state after it, and the reason why the search ended.
    """
    y_N = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    turn_N = turns(y_N, seed)
    state, history = start(y_N, len(sizes)), []
    while True:
        i_P = picks(state, rules, y_N, turn_N)
        if reason := reason_to_stop(state, rules, len(i_P)):
            return history, reason
        score_P = torch.tensor([score_table[int(y_N[i])][int(turn_N[i])] for i in i_P])
        state = advance(state, rules, y_N[i_P], score_P)
        history.append((i_P, state))


# Five clusters of four images; rows: scores by turn.
TABLE = [[1, 2, 0, 0], [9, 1, 1, 1], [3, 3, 8, 1], [0, 4, 0, 0], [5, 2, 20, 7]]


def test_a_search_over_a_small_table_computed_by_hand():
    history, reason = search(TABLE, SearchRules(per_cluster=2, drop=0.4), [4] * 5)
    states = [state for _, state in history]
    # Round 1: best scores 2 9 3 4 5, two of five clusters are dropped: 0 and 2. Round 2: best scores 9 4 20,
    # floor(1.2) = 1 is dropped: 3.
    assert [state.live for state in states] == [(1, 3, 4), (1, 4)]
    assert [state.best for state in states] == [(2, 9, 3, 4, 5), (2, 9, 3, 4, 20)]
    assert [state.scored for state in states] == [10, 16]
    assert reason == "every image of the live clusters is scored"


def test_the_search_ends_with_the_best_cluster():
    table = [[k] * 20 for k in range(6)]
    history, reason = search(table, SearchRules(per_cluster=1, drop=0.25), [20] * 6)
    assert [len(state.live) for _, state in history] == [5, 4, 3, 2, 1]
    assert history[-1][1].live == (5,)
    assert reason == "1 live clusters left, the fewest allowed"


@pytest.mark.parametrize(
    ("rules", "reason", "scored"),
    [
        (SearchRules(max_rounds=1), "1 rounds done, the most allowed", 10),
        (SearchRules(max_candidates=7), "7 candidates scored, the most allowed", 7),
        (SearchRules(min_live=4), "4 live clusters left, the fewest allowed", 10),
        (SearchRules(max_rounds=0), "0 rounds done, the most allowed", 0),
    ],
)
def test_every_bound_ends_the_search(rules, reason, scored):
    history, why = search(TABLE, rules, [4] * 5)
    assert why == reason
    assert sum(len(i_P) for i_P, _ in history) == scored


def test_a_short_budget_still_scores_every_cluster_once():
    y_N = torch.arange(5).repeat(4)
    i_P = picks(start(y_N, 5), SearchRules(max_candidates=7), y_N, turns(y_N, 0))
    assert sorted(set(y_N[i_P].tolist())) == [0, 1, 2, 3, 4]


def test_no_image_is_scored_twice_and_small_clusters_are_exhausted():
    history, _ = search([[5] * 9, [4], [3] * 9], SearchRules(drop=0), [9, 1, 9])
    scored = torch.cat([i_P for i_P, _ in history]).tolist()
    assert len(scored) == len(set(scored))
    assert [len(i_P) for i_P, _ in history] == [5, 2]


def test_empty_clusters_are_never_live():
    state = start(torch.tensor([3, 3, 1]), 5)
    assert state.live == (1, 3)
    assert state.best == (-math.inf,) * 5


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(0, 9))
def test_turns_number_each_cluster_from_zero(clusters, seed):
    y_N = torch.tensor(clusters)
    turn_N = turns(y_N, seed)
    for k in set(clusters):
        assert sorted(turn_N[y_N == k].tolist()) == list(range(clusters.count(k)))
    assert torch.equal(turn_N, turns(y_N, seed))


def test_turns_depend_on_the_seed():
    y_N = torch.zeros(50, dtype=torch.long)
    assert not torch.equal(turns(y_N, 0), turns(y_N, 1))


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=30),
    st.floats(0, 1),
    st.integers(1, 5),
)
def test_prune_drops_the_stated_number_of_worst_clusters(scores, drop, min_live):
    live = tuple(range(len(scores)))
    kept = prune(tuple(map(float, scores)), live, drop, min_live)
    n = len(live)
    assert len(kept) == max(min(n, min_live), n - max(1, math.floor(drop * n)))
    assert list(kept) == sorted(kept)
    for gone in set(live) - set(kept):
        assert all(scores[k] > scores[gone] or (scores[k] == scores[gone] and k < gone) for k in kept)


def test_rules_out_of_range_are_refused():
    with pytest.raises(ValueError, match="per_cluster ≥ 1"):
        SearchRules(per_cluster=0)


@given(st.integers(1, 200), st.floats(0, 1), st.integers(1, 5), st.one_of(st.none(), st.integers(1, 10)))
def test_a_search_runs_at_most_and_can_run_most_rounds(n_clusters, drop, min_live, max_rounds):
    rules = SearchRules(1, drop, min_live, max_rounds)
    y_N = torch.arange(n_clusters)
    state, rounds = start(y_N, n_clusters), most_rounds(n_clusters, rules)
    while not reason_to_stop(state, rules, n_picks=1):
        live_P = torch.tensor(state.live)
        state = advance(state, rules, live_P, torch.zeros(len(live_P)))
    assert state.round == rounds


@given(
    st.integers(1, 60),
    st.integers(1, 3),
    st.floats(0, 1),
    st.integers(1, 5),
    st.one_of(st.none(), st.integers(1, 10)),
    st.one_of(st.none(), st.integers(1, 200)),
)
def test_what_is_left_of_a_search_is_known_before_each_round(
    n_clusters, per_cluster, drop, min_live, max_rounds, max_candidates
):
    """Where no cluster runs out of images."""
    rules = SearchRules(per_cluster, drop, min_live, max_rounds, max_candidates)
    size = per_cluster * most_rounds(n_clusters, rules)
    history, _ = search([[0] * size] * n_clusters, rules, [size] * n_clusters)
    scored = sum(len(i_P) for i_P, _ in history)
    before = start(torch.arange(n_clusters), n_clusters)
    for i_P, after in history:
        assert before.scored + len(i_P) + most_after(before, rules) == scored
        before = after
