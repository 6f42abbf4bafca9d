"""The heuristic search's rules (PoisonCAM, arXiv 2312.07955): whom to score next, whom to drop, when to stop.

N images of the corpus   K clusters   P picked images
Nothing here embeds or draws: the same assignments, seed and scores give the same search.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class SearchRules:
    """per_cluster: images scored per live cluster and round (the paper's s = 2)
    drop: share of the live clusters dropped after a round (the paper's r = 0.25), 0 … 1
    min_live: the search ends when this few clusters are left
    max_rounds, max_candidates: the search ends when it has run or scored this many (None: no bound)
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
    """Between rounds: the live clusters (ascending), every cluster's best score so far (−inf: none yet),
    rounds done and candidates scored. All that a search needs to go on after it was cut off."""

    live: tuple[int, ...]
    best: tuple[float, ...]
    round: int = 0
    scored: int = 0


def start(y_N: Tensor, n_clusters: int) -> SearchState:
    """Before the first round: every cluster that holds an image is live."""
    return SearchState(tuple(y_N.unique(sorted=True).tolist()), (-math.inf,) * n_clusters)


def turns(y_N: Tensor, seed: int) -> Tensor:
    """turn_N: each image's place, from 0, in a random order of its cluster's images.

    Drawing the order once makes every round's picks a pure function of the round's number.
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
    """i_P: the images to score this round, the next `per_cluster` of every live cluster, by cluster and turn.

    Exhausted clusters give fewer. The candidate budget cuts the last turns first, so that a short round
    still touches every live cluster if it can.
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
    minor_order_P = minor_P.argsort(stable=True)
    return minor_order_P[major_P[minor_order_P].argsort(stable=True)]


def prune(best_K: tuple[float, ...], live: tuple[int, ...], drop: float, min_live: int) -> tuple[int, ...]:
    """The live clusters without the floor(drop · n) of lowest best score, at least one, while more than
    `min_live` remain (a share that rounds to nothing must not stop the search by accident).

    Among equal scores the higher cluster number goes first.
    """
    n_dropped = min(max(1, math.floor(drop * len(live))), max(0, len(live) - min_live))
    ranked = sorted(live, key=lambda k: (-best_K[k], k))
    return tuple(sorted(ranked[: len(live) - n_dropped]))


def most_rounds(n_clusters: int, rules: SearchRules) -> int:
    """No search over so many clusters runs longer; at least 1."""
    rounds, live = 0, n_clusters
    while live > rules.min_live and (rules.max_rounds is None or rounds < rules.max_rounds):
        live -= min(max(1, math.floor(rules.drop * live)), live - rules.min_live)
        rounds += 1
    return max(1, rounds)


def advance(state: SearchState, rules: SearchRules, cluster_P: Tensor, score_P: Tensor) -> SearchState:
    """The state after a round whose picks, of clusters `cluster_P`, scored `score_P`."""
    best_K = torch.tensor(state.best, dtype=torch.float64)
    best_K = best_K.scatter_reduce(0, cluster_P.long().cpu(), score_P.double().cpu(), reduce="amax")
    best = tuple(best_K.tolist())
    live = prune(best, state.live, rules.drop, rules.min_live)
    return replace(state, live=live, best=best, round=state.round + 1, scored=state.scored + len(score_P))


def reason_to_stop(state: SearchState, rules: SearchRules, n_picks: int) -> str | None:
    """Why the search is over before a round that would score `n_picks` images, or None to go on."""
    if rules.max_rounds is not None and state.round >= rules.max_rounds:
        return f"{state.round} rounds done, the most allowed"
    if rules.max_candidates is not None and state.scored >= rules.max_candidates:
        return f"{state.scored} candidates scored, the most allowed"
    if state.round > 0 and len(state.live) <= rules.min_live:
        return f"{len(state.live)} live clusters left, the fewest allowed"
    if n_picks == 0:
        return "every image of the live clusters is scored"
    return None
