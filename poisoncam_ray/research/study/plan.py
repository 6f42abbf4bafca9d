"""The passes through the encoder, and the row that each setting gives.

The masked features do not depend on K, on the score or, for masks made of cells, on the window. The first b
of B masks that were drawn independently are a draw of b masks. So many settings share one pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from poisoncam_ray.research.study.grid import (
    READS_CELL,
    READS_WINDOW,
    REFERENCES,
    Grid,
    Hiding,
    Refine,
    Score,
    Strategy,
)

SCHEMA = pa.schema([
    ("run", pa.string()), ("poison_rate", pa.float64()), ("k_factor", pa.float64()), ("k", pa.int64()),
    ("strategy", pa.string()), ("score", pa.string()), ("masks", pa.int64()), ("cell", pa.float64()),
    ("cell_px", pa.int64()), ("window", pa.float64()), ("window_px", pa.int64()),
    ("hiding", pa.string()), ("refine", pa.string()),
    ("forwards", pa.int64()), ("flops", pa.float64()), ("flops_forward", pa.float64()),
    ("seconds", pa.float64()), ("n", pa.int64()), ("hits", pa.int64()), ("accuracy", pa.float64()),
    ("coverage", pa.float64()), ("mean_iou", pa.float64()), ("n_poison_clusters", pa.int64()),
    ("hits_poison_clusters", pa.int64()), ("accuracy_poison_clusters", pa.float64()),
    ("coverage_poison_clusters", pa.float64()), ("mean_iou_poison_clusters", pa.float64()),
    ("found", pa.string()),
])  # fmt: skip
"""forwards, flops (of the encoder) and seconds are of one candidate. score, masks, cell, hiding and
refine are null where the strategy does not depend on them; refine (grid.Refine.label) also where windows are
not refined. hits: windows with IoU ≥ 0.5; accuracy = hits / n; coverage: mean share of the trigger inside the
window; found: for every image 1 where its window is a hit, else 0, in the order of the run's images.parquet,
which is the same for all rows of a run."""
SETTING = ("k_factor", "strategy", "score", "masks", "cell", "window", "hiding", "refine")
"""The columns of the setting; the others are the run and the results."""


@dataclass(frozen=True)
class Pass:
    """One pass through the encoder. `masks`, `windows`: every B and every window that is measured with it."""

    run: str
    strategy: Strategy
    masks: tuple[int, ...]
    cell: float | None
    windows: tuple[float, ...]
    hiding: Hiding | None = "paint"


@dataclass(frozen=True)
class Way:
    """How a window is found in a pass. It costs the `forwards` of so many masked images."""

    k_factor: float
    score: Score | None
    masks: int | None
    window: float
    forwards: int
    refine: Refine | None = None


def passes(grid: Grid, names: list[str]) -> list[Pass]:
    """All passes over the runs of these names, in a fixed order."""
    found = []
    for name in names:
        for strategy in grid.strategies:
            windows = [(w,) for w in grid.windows] if strategy in READS_WINDOW else [grid.windows]
            # The places of windows form another grid for every B.
            nested: list[tuple[int, ...]] = [grid.masks]
            if strategy in READS_WINDOW:
                nested = [(b,) for b in grid.masks]
            cells: list[float | None] = list(grid.cells) if strategy in READS_CELL else [None]
            hidings: tuple[Hiding | None, ...] = grid.hidings
            if strategy in REFERENCES:
                nested, hidings = [()], (None,)
            found += [
                Pass(name, strategy, b, c, w, h)
                for h in hidings
                for b in nested
                for c in cells
                for w in windows
            ]
    return found


def pixels(fraction: float, image_size: int) -> int:
    """A share of the image side in pixels, rounded as in config.py."""
    return max(1, round(fraction * image_size))
