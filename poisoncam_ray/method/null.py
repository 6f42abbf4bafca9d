"""The null distribution of the verdict: how high benign window groups score."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Null:
    """The distribution of the scores of `n` benign window groups: Gumbel's, for its heavy right tail."""

    mode: float
    scale: float
    n: int

    def p_value(self, score: float) -> float:
        """The chance that a benign group reaches `score`."""
        return -math.expm1(-math.exp((self.mode - score) / self.scale))

    def threshold(self, false_alarm_rate: float, n_groups: int) -> float:
        """The score that the best of `n_groups` benign groups reaches with this chance."""
        return self.mode - self.scale * math.log(-math.log1p(-false_alarm_rate) / n_groups)
