"""The lines of the plots: one value varies, the others stay at the grid's base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from poisoncam_ray.config import Strategy as MaskStrategy
from poisoncam_ray.research.study.grid import READS_CELL, REFERENCES, Grid
from poisoncam_ray.research.study.summary import Cube, Estimate

AXES = {"k_factor": "k_factors", "window": "windows", "cell": "cells", "masks": "masks"}
"""The key of each setting, and the grid's list of its values."""
STYLES = (*get_args(MaskStrategy), *REFERENCES)


@dataclass(frozen=True)
class Line:
    """Points, by rising x. `style`: the number of the colour, the same for a strategy in every plot."""

    label: str
    style: int
    x: list[float]
    y: list[Estimate]


def around_base(grid: Grid, strategy: str, score: str | None, **changed: float) -> dict[str, object]:
    """A whole setting: the base with some values changed.

    Args:
        grid: the grid.
        strategy: the strategy.
        score: the score.
        changed: values that replace those of the base.

    Returns:
        The setting, with None for what the strategy does not depend on.
    """
    base = grid.base.model_dump() | changed
    reference = strategy in REFERENCES
    return {
        "k_factor": base["k_factor"],
        "strategy": strategy,
        "score": None if reference else score,
        "masks": None if reference else base["masks"],
        "cell": base["cell"] if strategy in READS_CELL else None,
        "window": base["window"],
        "hiding": None if reference else base["hiding"],
        "refine": None if reference or grid.base.refine is None else grid.base.refine.label,
    }


def best_score(cube: Cube, grid: Grid, strategy: str) -> str | None:
    """The score with the best accuracy of this strategy at the base; None for a strategy without scores."""
    if strategy in REFERENCES:
        return None
    at = [row for score in grid.scores for row in cube.where(**around_base(grid, strategy, score))]
    return cube.settings[cube.best(at)]["score"]


def over_cost(cube: Cube, grid: Grid, score: str) -> list[Line]:
    """Accuracy over forwards per candidate, one line for each strategy.

    Grad-CAM does not depend on the score; it stands at its cost in forwards. Random windows cost nothing;
    they are a horizontal line.
    """
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
    """Accuracy over one setting (a key of AXES), a line for each strategy with its best score at the base."""
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
