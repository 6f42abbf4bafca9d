"""Ways of finding windows, compared image by image with the way of the base."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from poisoncam_ray.config import Search
from poisoncam_ray.research.study.grid import Grid
from poisoncam_ray.research.study.lines import around_base
from poisoncam_ray.research.study.plan import SETTING

VARIED = ("strategy", "masks", "cell", "hiding", "refine")
"""What may differ between the two ways of a pair."""
NORMAL_95 = 1.96


@dataclass(frozen=True)
class Pair:
    """A way against the base, on the same images.

    Attributes:
        setting: the way, with the keys of plan.SETTING.
        flops: of one candidate, the mean over runs.
        n: images of all runs.
        hits: images on which the way finds a trigger.
        base_hits: images on which the base does.
        only: images on which the way alone does.
        only_base: images on which the base alone does.
    """

    setting: dict[str, Any]
    flops: float
    n: int
    hits: int
    base_hits: int
    only: int
    only_base: int

    @property
    def difference(self) -> float:
        """The way's accuracy minus that of the base."""
        return (self.only - self.only_base) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference, as if images were independent."""
        spread = self.only + self.only_base - (self.only - self.only_base) ** 2 / self.n
        half = NORMAL_95 * math.sqrt(spread) / self.n
        return self.difference - half, self.difference + half

    @property
    def p(self) -> float:
        """McNemar's exact p, two-sided: how likely so uneven counts are when both ways are equally good."""
        n, fewer = self.only + self.only_base, min(self.only, self.only_base)
        return min(1.0, 2 * sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n)


def base_way(grid: Grid) -> dict[str, Any]:
    """The setting that others are paired with: the defence's strategy and score, and the grid's base."""
    return around_base(grid, Search().strategy, Search().score)


def pairs_of(rows: pa.Table, grid: Grid) -> list[Pair]:
    """All pairs with the base, in the order of the rows; none where the base was not measured.

    Args:
        rows: rows of plan.SCHEMA.
        grid: the grid.
    """
    base = base_way(grid)
    same = [key for key in SETTING if key not in VARIED]
    by_setting: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in _like(rows, {key: base[key] for key in same}):
        by_setting[tuple(row[key] for key in SETTING)][row["run"]] = row
    bases = by_setting.pop(tuple(base[key] for key in SETTING), {})
    found = []
    for key, runs in by_setting.items():
        both = [
            (ours, theirs)
            for run in runs
            if run in bases
            for ours, theirs in zip(runs[run]["found"], bases[run]["found"], strict=True)
        ]
        if both:
            flops = sum(row["flops"] for row in runs.values()) / len(runs)
            only, only_base = both.count(("1", "0")), both.count(("0", "1"))
            hits = both.count(("1", "1"))
            setting = dict(zip(SETTING, key, strict=True))
            found.append(Pair(setting, flops, len(both), hits + only, hits + only_base, only, only_base))
    return found


def _like(rows: pa.Table, wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    columns = rows.select(["run", *SETTING, "flops", "found"])
    return (row for row in columns.to_pylist() if all(row[key] == value for key, value in wanted.items()))
