"""A grid of a second, and rows of a study as they could have come out of one."""

from itertools import product

import numpy as np
import pyarrow as pa

from poisoncam_ray.research.study.grid import REFERENCES, Grid
from poisoncam_ray.research.study.plan import SCHEMA, passes

SMALL = {
    "strategies": ["interval", "full_coverage", "sliding", "mixed", "gradcam", "random_window"],
    "scores": ["hard", "margin", "distance"],
    "masks": [4, 16],
    "cells": [0.25],
    "windows": [0.3, 0.4],
    "k_factors": [0.3, 1],
    "images": 5,
    "base": {"k_factor": 1, "masks": 16, "cell": 0.25, "window": 0.3},
}


def small_grid(**changed) -> Grid:
    return Grid.model_validate(SMALL | changed)


def invented_rows(grid: Grid, runs: int, seed: int = 0) -> pa.Table:
    """Every row that the grid's passes give, with accuracies drawn at random."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for todo in passes(grid, [f"run-{i}" for i in range(runs)]):
        reference = todo.strategy in REFERENCES
        for masks in todo.masks or [None]:
            for score in [None] if reference else grid.scores:
                for window in todo.windows:
                    for factor, by in product(grid.k_factors, [None] if reference else grid.refines):
                        hits = int(rng.integers(0, 21))
                        forwards = masks or int(todo.strategy == "gradcam")
                        measures = {"accuracy": hits / 20, "coverage": 0.5, "mean_iou": 0.4}
                        rows.append(
                            {"run": todo.run, "poison_rate": 0.01, "k_factor": factor, "k": 30}
                            | {"strategy": todo.strategy, "score": score, "masks": masks}
                            | {"cell": todo.cell, "cell_px": 8, "window": window, "window_px": 10}
                            | {"forwards": forwards, "flops": 12.345e6 * forwards, "flops_forward": 12.345e6}
                            | {"hiding": todo.hiding, "refine": by.label if by else None}
                            | {"found": "".join(rng.permutation([*"1" * hits, *"0" * (20 - hits)]))}
                            | {"seconds": 0.1, "n": 20, "hits": hits, **measures}
                            | {"n_poison_clusters": 10, "hits_poison_clusters": hits // 2}
                            | {f"{key}_poison_clusters": value for key, value in measures.items()}
                        )
    return pa.Table.from_pylist(rows, SCHEMA)
