"""Writes the files of a finished study: study.parquet, study.csv, summary.csv, study.md and plots.

The same rows always give the same files.
"""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.csv

from poisoncam_ray.folder import Folder
from poisoncam_ray.research.study.grid import Grid
from poisoncam_ray.research.study.lines import over_axis, over_cost
from poisoncam_ray.research.study.pairs import pairs_of
from poisoncam_ray.research.study.plots import axis_plot, cost_plot, rate_plot
from poisoncam_ray.research.study.poison_rate import by_poison_rate, csv_of
from poisoncam_ray.research.study.summary import cube_of, summary_of
from poisoncam_ray.research.study.text import markdown

LABELS = {
    "k_factor": "K / √N",
    "window": "window, share of the image side",
    "cell": "cell, share of the side",
}


def write_results(rows: pa.Table, grid: Grid, out: Folder, table: Folder | None = None) -> list[str]:
    """Write the files of a study.

    Args:
        rows: rows of plan.SCHEMA.
        grid: the grid.
        out: the study's folder.
        table: a results table whose figures by poison rate are added.

    Returns:
        The names of the files.
    """
    cube = cube_of(rows, grid.seed)
    rates = by_poison_rate(table, grid.seed) if table else {}
    out.write_table("study.parquet", rows)
    files = {"study.csv": _csv(rows), "summary.csv": _csv(summary_of(cube))}
    flops = cube.values["flops_forward"]
    # The axis of FLOPs is the mean over runs; encoders that differ have their own FLOPs in the tables.
    plots = {
        "accuracy_by_forwards.svg": cost_plot(
            {score: over_cost(cube, grid, score) for score in grid.scores},
            sorted(grid.masks),
            float(flops[flops > 0].mean()),
        )
    }
    for axis, label in LABELS.items():
        lines = over_axis(cube, grid, axis)
        if lines:
            plots[f"accuracy_by_{axis.removesuffix('_factor')}.svg"] = axis_plot(
                lines, label, log=axis != "window"
            )
    if rates:
        plots["poison_rate.svg"] = rate_plot(rates)
        files["poison_rate.csv"] = csv_of(rates).encode()
    files |= {name: svg.encode() for name, svg in plots.items()}
    pairs = pairs_of(rows, grid) if grid.varies_hiding else []
    files["study.md"] = markdown(cube, grid, rates, plots, pairs).encode()
    for name, data in files.items():
        out.write_bytes(name, data)
    return ["study.parquet", *files]


def _csv(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pa.csv.write_csv(table, sink, pa.csv.WriteOptions(quoting_style="needed"))
    return sink.getvalue()
