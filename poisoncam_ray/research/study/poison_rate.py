"""The figures of results tables (jobs/photographs.py) for the reference attack, by poison rate."""

from __future__ import annotations

import csv
import io
import math
import posixpath
from typing import Any

import numpy as np

from poisoncam_ray.folder import Folder
from poisoncam_ray.research.evaluate.corpora import REFERENCE
from poisoncam_ray.research.study.summary import Cube, Estimate

RESULTS = "results.csv"
MARKS = {
    "asr": "attack success",
    "trigger_detection_accuracy": "trigger detection accuracy",
    "recall": "recall",
    "false_positive_rate": "false positive rate",
}

Rates = dict[float, dict[str, Estimate]]


def by_poison_rate(table: Folder, seed: int) -> Rates:
    """The means over runs at every poison rate, from every results.csv in the folder or below.

    The rate is the column poison_rate, or else n_poisoned / n_images. Rows of another kind of attack are left
    out.

    Args:
        table: the folder.
        seed: seed of the intervals.

    Returns:
        {poison rate: {mark: mean over runs}}, rates ascending, without marks that are missing; empty when
        there is no results.csv with poison rates.
    """
    table.filesystem.invalidate_cache()
    paths = sorted(str(path) for path in table.filesystem.find(table.path))
    names = [posixpath.relpath(path, table.path) for path in paths if posixpath.basename(path) == RESULTS]
    rows = [row for name in names for row in csv.DictReader(io.StringIO(table.read_bytes(name).decode()))]
    grouped: dict[float, list[dict[str, str]]] = {}
    for row in rows:
        if row.get("kind", REFERENCE) != REFERENCE:
            continue
        rate = _number(row.get("poison_rate"))
        if math.isnan(rate):
            rate = _number(row.get("n_poisoned")) / (_number(row.get("n_images")) or math.nan)
        if not math.isnan(rate):
            # Runs with the same requested rate differ by the rounding to whole images.
            grouped.setdefault(float(f"{rate:.2g}"), []).append(row)
    found: Rates = {}
    for rate, some in sorted(grouped.items()):
        cube = Cube([], [row.get("seed", f"row {i}") for i, row in enumerate(some)], {}, seed)
        marks = {name: np.array([[_number(row.get(name)) for row in some]]) for name in MARKS}
        found[rate] = {
            name: cube.estimates(v_1R)[0] for name, v_1R in marks.items() if not np.isnan(v_1R).all()
        }
    return {rate: marks for rate, marks in found.items() if marks}


def csv_of(rates: Rates) -> str:
    """The rates as CSV, one row for each rate and mark."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["poison_rate", "mark", "mean", "low", "high"])
    for rate, marks in rates.items():
        for name, estimate in marks.items():
            writer.writerow([rate, name, *map(_cell, (estimate.mean, estimate.low, estimate.high))])
    return sink.getvalue()


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
