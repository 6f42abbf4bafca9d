"""The race of the pastes: how many flip-test images each candidate is pasted on.

Every candidate is pasted on the first flip-test images, the same for all: evidence and null rest on these
alone. The ranking of the best needs more of them, and only the best get more: in each rung those that scored
highest so far are pasted on a multiple of the images before. Nothing here runs the encoder, and the same
counts give the same race.

N candidates   M candidates of one rung   F flip-test images
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class RaceRules:
    """The settings of a race.

    Attributes:
        first: flip-test images of every candidate, at least 1.
        factor: by how much the images grow from rung to rung, at least 2.
        keep: share of a rung's candidates that come to the next, rounded down, 0 … 1. 0: no race.

    Raises:
        ValueError: a number is out of range.
    """

    first: int = 64
    factor: int = 4
    keep: float = 1 / 8

    def __post_init__(self) -> None:
        if self.first < 1 or self.factor < 2 or not 0 <= self.keep <= 1:
            raise ValueError("a race needs first ≥ 1, factor ≥ 2 and keep in 0 … 1")


class Ranking(NamedTuple):
    """The end of a race.

    Attributes:
        order_N: int64, the candidates, best first: by the images they were pasted on, then by score, then by
            number. Counts over few images scatter, so who left the race early never stands above those who
            stayed.
        pasted_N: int64, the flip-test images that each candidate was pasted on.
        count_N: int64, its counted images among these.
    """

    order_N: Tensor
    pasted_N: Tensor
    count_N: Tensor

    def scores(self) -> Tensor:
        """The share of counted images, score_N, float64 in 0 … 1; a negative count is 0."""
        return self.count_N.clamp(min=0).double() / self.pasted_N


def rungs(n_flip: int, rules: RaceRules) -> list[int]:
    """The number of flip-test images after each rung, rising; the last is all of them.

    Args:
        n_flip: F, at least 1.
        rules: of the race.
    """
    sizes = [min(rules.first, n_flip)]
    while sizes[-1] < n_flip:
        sizes.append(min(sizes[-1] * rules.factor, n_flip))
    return sizes


def pastes(n: int, n_flip: int, rules: RaceRules) -> int:
    """The forwards of a race of n candidates, the first images included.

    Args:
        n: candidates.
        n_flip: F.
        rules: of the race.
    """
    total, before = 0, 0
    for size in rungs(n_flip, rules):
        total += n * (size - before)
        n, before = int(n * rules.keep), size
    return total


def race(
    count_N: Tensor, more: Callable[[Tensor, int, int], Tensor], n_flip: int, rules: RaceRules
) -> Ranking:
    """Rank candidates by their counts over more and more flip-test images.

    Args:
        count_N: the counted images of each candidate among the first, of any reading that adds up over images
            (score.poison_scores).
        more: called as (i_M, start, stop): the counts of these candidates on the flip-test images
            start … stop − 1.
        n_flip: F.
        rules: of the race.
    """
    sizes = rungs(n_flip, rules)
    count_N = count_N.to(torch.int64, copy=True)
    pasted_N = torch.full_like(count_N, sizes[0])
    order_N = count_N.argsort(descending=True, stable=True)
    in_race = len(count_N)
    for start, stop in pairwise(sizes):
        in_race = int(in_race * rules.keep)
        if not in_race:
            break
        # Ascending numbers: ties of the next rung are broken by them again.
        i_M = order_N[:in_race].sort().values
        count_N[i_M] += more(i_M, start, stop).to(count_N)
        pasted_N[i_M] = stop
        ranked_M = i_M[count_N[i_M].argsort(descending=True, stable=True)]
        order_N = torch.cat([ranked_M, order_N[in_race:]])
    return Ranking(order_N, pasted_N, count_N)
