"""The rules of the heuristic search (PoisonCAM, arXiv 2312.07955): which images to score next, which clusters
to drop, when to stop.

In every round some images of each live cluster are scored, and the clusters whose best images scored lowest
are dropped. Nothing here runs the encoder: the same assignments, seed and scores give the same search.

N images of the corpus   K clusters   P images picked in one round
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class SearchRules:
    """The settings of a search.

    Attributes:
        per_cluster: images scored per live cluster and round, at least 1 (the paper's s = 2).
        drop: share of the live clusters dropped after a round, 0 … 1 (the paper's r = 0.25).
        min_live: the search ends when so few clusters are live, at least 1.
        max_rounds: the search ends after so many rounds; None for no bound.
        max_candidates: the search ends after so many scored images; None for no bound.

    Raises:
        ValueError: a number is out of range.
    """

    per_cluster: int = 2
    drop: float = 0.25
    min_live: int = 1
    max_rounds: int | None = None
    max_candidates: int | None = None

    def __post_init__(self) -> None:
        if self.per_cluster < 1 or self.min_live < 1 or not 0 <= self.drop <= 1:
            raise ValueError("a search needs per_cluster ≥ 1, min_live ≥ 1 and drop in 0 … 1")


@dataclass(frozen=True)
class SearchState:
    """The search between two rounds: everything that is needed to resume it.

    Attributes:
        live: the live clusters, ascending.
        best: the best score of each cluster so far; −inf before the first.
        round: rounds done.
        scored: candidates scored.
    """

    live: tuple[int, ...]
    best: tuple[float, ...]
    round: int = 0
    scored: int = 0


def start(y_N: Tensor, n_clusters: int) -> SearchState:
    """The state before the first round: every cluster that holds an image is live.

    Args:
        y_N: the cluster of each image.
        n_clusters: K.
    """
    return SearchState(tuple(y_N.unique(sorted=True).tolist()), (-math.inf,) * n_clusters)


def turns(y_N: Tensor, seed: int) -> Tensor:
    """Draw a random order of the images of each cluster, once for the whole search.

    The picks of a round are then a pure function of its number.

    Args:
        y_N: the cluster of each image.
        seed: of the order.

    Returns:
        turn_N, int64: the place of each image in the order of its cluster, from 0.
    """
    generator = torch.Generator().manual_seed(seed)
    order_N = torch.randperm(len(y_N), generator=generator)
    order_N = order_N[y_N.cpu()[order_N].argsort(stable=True)]
    sizes_K = torch.bincount(y_N.cpu())
    first_K = sizes_K.cumsum(0) - sizes_K
    turn_N = torch.empty_like(order_N)
    turn_N[order_N] = torch.arange(len(y_N)) - first_K.repeat_interleave(sizes_K)
    return turn_N


def picks(state: SearchState, rules: SearchRules, y_N: Tensor, turn_N: Tensor) -> Tensor:
    """Choose the images to score in this round: the next `per_cluster` of every live cluster.

    A cluster with fewer images left gives fewer. If the budget of candidates is short, the last turns are cut
    first, so that as many clusters as possible are still scored.

    Args:
        state: before the round.
        rules: of the search.
        y_N: the cluster of each image.
        turn_N: of `turns`.

    Returns:
        i_P, int64, ordered by cluster and turn.
    """
    first = state.round * rules.per_cluster
    due_N = (
        torch.isin(y_N, torch.tensor(state.live)) & (turn_N >= first) & (turn_N < first + rules.per_cluster)
    )
    i_P = due_N.nonzero()[:, 0]
    if rules.max_candidates is not None:
        left = max(0, rules.max_candidates - state.scored)
        i_P = i_P[_by(turn_N[i_P], y_N[i_P])][:left]
    return i_P[_by(y_N[i_P], turn_N[i_P])]


def _by(major_P: Tensor, minor_P: Tensor) -> Tensor:
    """The order by the first key, then by the second."""
    minor_order_P = minor_P.argsort(stable=True)
    return minor_order_P[major_P[minor_order_P].argsort(stable=True)]


def advance(state: SearchState, rules: SearchRules, cluster_P: Tensor, score_P: Tensor) -> SearchState:
    """The state after a round.

    Args:
        state: before the round.
        rules: of the search.
        cluster_P: the clusters of the picked images.
        score_P: their scores.
    """
    best_K = torch.tensor(state.best, dtype=torch.float64)
    best_K = best_K.scatter_reduce(0, cluster_P.long().cpu(), score_P.double().cpu(), reduce="amax")
    best = tuple(best_K.tolist())
    live = prune(best, state.live, rules.drop, rules.min_live)
    return replace(state, live=live, best=best, round=state.round + 1, scored=state.scored + len(score_P))


def prune(best_K: tuple[float, ...], live: tuple[int, ...], drop: float, min_live: int) -> tuple[int, ...]:
    """Drop the live clusters with the lowest best scores: floor(drop · n) of n, but at least one.

    At least one, because a share that rounds to 0 would never end the search. Among equal scores the higher
    cluster number is dropped first.

    Args:
        best_K: the best score of each cluster.
        live: the live clusters.
        drop: share to drop, 0 … 1.
        min_live: so many clusters are never dropped.

    Returns:
        The remaining clusters, ascending.
    """
    n_dropped = min(max(1, math.floor(drop * len(live))), max(0, len(live) - min_live))
    ranked = sorted(live, key=lambda k: (-best_K[k], k))
    return tuple(sorted(ranked[: len(live) - n_dropped]))


def reason_to_stop(state: SearchState, rules: SearchRules, n_picks: int) -> str | None:
    """Decide whether the search ends before the next round.

    Args:
        state: before the round.
        rules: of the search.
        n_picks: how many images the round would score.

    Returns:
        The reason, as a sentence for the log; None to go on.
    """
    if rules.max_rounds is not None and state.round >= rules.max_rounds:
        return f"{state.round} rounds done, the most allowed"
    if rules.max_candidates is not None and state.scored >= rules.max_candidates:
        return f"{state.scored} candidates scored, the most allowed"
    if state.round > 0 and len(state.live) <= rules.min_live:
        return f"{len(state.live)} live clusters left, the fewest allowed"
    if n_picks == 0:
        return "every image of the live clusters is scored"
    return None


def most_rounds(n_clusters: int, rules: SearchRules) -> int:
    """The most rounds that a search over so many clusters can run, at least 1.

    Args:
        n_clusters: live clusters before the first round.
        rules: of the search.
    """
    return max(1, len(_live_by_round(n_clusters, rules)))


def most_after(state: SearchState, rules: SearchRules) -> int:
    """The most candidates that the rounds after the next one can score.

    Args:
        state: before the next round.
        rules: of the search.
    """
    ahead = _live_by_round(len(state.live), rules)
    if rules.max_rounds is not None:
        ahead = ahead[: max(0, rules.max_rounds - state.round)]
    most = rules.per_cluster * sum(ahead[1:])
    if rules.max_candidates is None:
        return most
    return min(most, max(0, rules.max_candidates - state.scored - rules.per_cluster * len(state.live)))


def _live_by_round(live: int, rules: SearchRules) -> list[int]:
    """The number of live clusters in each round from one with `live` on, if no cluster runs out of images."""
    rounds: list[int] = []
    while live > rules.min_live and (rules.max_rounds is None or len(rounds) < rules.max_rounds):
        rounds.append(live)
        live -= min(max(1, math.floor(rules.drop * live)), live - rules.min_live)
    return rounds
