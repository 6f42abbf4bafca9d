"""Which points the plots join: one thing varies, the rest stays at the grid's base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from poisoncam_ray.config import Strategy as MaskStrategy
from poisoncam_ray.research.study.grid import READS_CELL, REFERENCES, Grid
from poisoncam_ray.research.study.summary import Cube, Estimate

AXES = {"k_factor": "k_factors", "window": "windows", "cell": "cells", "masks": "masks"}
"""A setting's key and the grid's list of its values."""
STYLES = (*get_args(MaskStrategy), *REFERENCES)


@dataclass(frozen=True)
class Line:
    """Points by rising x. `style`: which colour, the same for a strategy in every plot."""

    label: str
    style: int
    x: list[float]
    y: list[Estimate]


def around_base(grid: Grid, strategy: str, score: str | None, **changed: float) -> dict[str, object]:
    """A full setting: the base with what is `changed`, null where the strategy does not read it."""
    base = grid.base.model_dump() | changed
    reference = strategy in REFERENCES
    return {
        "k_factor": base["k_factor"],
        "strategy": strategy,
        "score": None if reference else score,
        "masks": None if reference else base["masks"],
        "cell": base["cell"] if strategy in READS_CELL else None,
        "window": base["window"],
    }


def best_score(cube: Cube, grid: Grid, strategy: str) -> str | None:
    """The score with which the strategy does best at the base."""
    if strategy in REFERENCES:
        return None
    at = [row for score in grid.scores for row in cube.where(**around_base(grid, strategy, score))]
    return cube.settings[cube.best(at)]["score"]


def over_cost(cube: Cube, grid: Grid, score: str) -> list[Line]:
    """Accuracy over forwards a candidate, a line a strategy. Grad-CAM, whatever the score, stands at what
    it costs in forwards; luck, which costs none, is a level."""
    lines = []
    for strategy in grid.strategies:
        rows = cube.where(**around_base(grid, strategy, score))
        if strategy not in REFERENCES:
            rows = [r for b in grid.masks for r in cube.where(**around_base(grid, strategy, score, masks=b))]
        if strategy == "gradcam":
            equal = cube.values["flops"][rows] / cube.values["flops_forward"][rows]
            x = [estimate.mean for estimate in cube.estimates(equal)]
        elif strategy == "random_window":
            x, rows = [1.0, float(max(grid.masks))], rows * 2
        else:
            x = [estimate.mean for estimate in cube.estimate(rows, "forwards")]
        lines.append(_line(strategy, None, x, cube.estimate(rows)))
    return lines


def over_axis(cube: Cube, grid: Grid, axis: str) -> list[Line]:
    """Accuracy over one axis (a key of AXES), a line a strategy with the score that is best at the base."""
    lines = []
    for strategy in grid.strategies:
        if axis == "cell" and strategy not in READS_CELL:
            continue
        score = best_score(cube, grid, strategy)
        x, rows = [], []
        for value in sorted(getattr(grid, AXES[axis])):
            for row in cube.where(**around_base(grid, strategy, score, **{axis: value})):
                x.append(float(value))
                rows.append(row)
        lines.append(_line(strategy, score, x, cube.estimate(rows)))
    return lines


def _line(strategy: str, score: str | None, x: Sequence[float], y: Sequence[Estimate]) -> Line:
    order = sorted(range(len(x)), key=lambda i: x[i])
    name = strategy.replace("_", " ")
    label = f"{name}, {score}" if score else name
    return Line(label, STYLES.index(strategy), [x[i] for i in order], [y[i] for i in order])
