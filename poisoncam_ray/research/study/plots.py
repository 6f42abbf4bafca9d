"""The study's plots as small SVG files: the same bytes for the same numbers."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from poisoncam_ray.research.study.lines import Line
from poisoncam_ray.research.study.poison_rate import MARKS, Rates

STYLE: Any = {
    # Text stays text (small, searchable), and ids are not random.
    "svg.fonttype": "none",
    "svg.hashsalt": "poisoncam_ray",
    "font.size": 8,
    "font.sans-serif": ["DejaVu Sans"],
    "axes.grid": True,
    "grid.linewidth": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#aaaaaa")
"""Okabe and Ito's colours, which colour-blind readers can tell apart; the references are grey."""
MARKERS = "osD^vPX*"


def cost_plot(panels: Mapping[str, Sequence[Line]], masks: Sequence[int], flops_forward: float) -> str:
    """The plot of accuracy over forwards per candidate; the upper axis is the same cost in GFLOPs.

    Args:
        panels: the lines of each panel, by score.
        masks: the values of B, which are the ticks.
        flops_forward: floating-point operations of one forward pass.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * len(panels) + 1.4, 3.4), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for at, (title, lines) in zip(axes, panels.items(), strict=True):
            at.set_xscale("log", base=2)
            _ticks(at, [1, *masks])
            _draw(at, lines)
            at.set_title(f"score: {title}")
            at.set_xlabel("forwards of a candidate")
            above = at.secondary_xaxis("top")
            above.set_xticks([1, *masks], [_short(b * flops_forward / 1e9) for b in (1, *masks)])
            above.minorticks_off()
            above.set_xlabel("GFLOPs of the encoder")
        axes[0].set_ylabel("trigger detection accuracy (IoU ≥ 0.5)")
        return _svg(figure, axes[0])


def axis_plot(lines: Sequence[Line], label: str, log: bool = False) -> str:
    """The plot of accuracy over one setting."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.4), layout="constrained")
        at = figure.subplots()
        values = sorted({x for line in lines for x in line.x})
        if log:
            at.set_xscale("log", base=2)
        _ticks(at, values)
        _draw(at, lines)
        at.set_xlabel(label)
        at.set_ylabel("trigger detection accuracy (IoU ≥ 0.5)")
        return _svg(figure, at)


def rate_plot(rates: Rates) -> str:
    """The plot of attack success, recall and false positives over the poison rate."""
    lines = []
    for style, (name, label) in enumerate(MARKS.items()):
        known = [(rate, marks[name]) for rate, marks in rates.items() if name in marks]
        if known:
            lines.append(Line(label, style, [100 * rate for rate, _ in known], [mark for _, mark in known]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.4), layout="constrained")
        at = figure.subplots()
        values = [100 * rate for rate in rates]
        at.set_xscale("log")
        _ticks(at, values)
        _draw(at, lines)
        at.set_xlabel("poisoned images, % of the corpus")
        return _svg(figure, at)


def _short(value: float) -> str:
    """Two significant digits, without an exponent for large numbers."""
    return f"{float(f'{value:.2g}'):g}"


def _ticks(at: Axes, values: Sequence[float]) -> None:
    at.set_xticks(values, [f"{value:g}" for value in values])
    at.minorticks_off()


def _draw(at: Axes, lines: Sequence[Line]) -> None:
    for line in lines:
        colour = COLOURS[line.style % len(COLOURS)]
        marker = MARKERS[line.style % len(MARKERS)]
        y = [estimate.mean for estimate in line.y]
        at.plot(line.x, y, color=colour, marker=marker, markersize=3.5, linewidth=1.2, label=line.label)
        banded = [(x, e.low, e.high) for x, e in zip(line.x, line.y, strict=True) if not math.isnan(e.low)]
        if len(banded) > 1:
            x, low, high = zip(*banded, strict=True)
            at.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        elif banded:
            x, low, high = zip(*banded, strict=True)
            at.vlines(x, low, high, color=colour, linewidth=1)
    at.set_ylim(-0.02, 1.02)


def _svg(figure: Figure, named: Axes) -> str:
    handles, labels = named.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    sink = io.StringIO()
    # With the date of drawing, no two files would be equal.
    metadata: dict[str, Any] = {"Date": None, "Creator": None}
    figure.savefig(sink, format="svg", metadata=metadata)
    return _smaller(sink.getvalue())


def _smaller(svg: str) -> str:
    """The same drawing in half the bytes.

    Indentation goes, coordinates are cut to hundredths of a pixel, and every style is written once.
    """
    # Coordinates only: a number before "<" is a label.
    svg = re.sub(r"(\d\.\d\d)\d+(?![\d<])", r"\1", svg)
    styles = {style: f"s{i}" for i, style in enumerate(dict.fromkeys(re.findall(r'style="([^"]*)"', svg)))}
    svg = re.sub(r'style="([^"]*)"', lambda found: f'class="{styles[found[1]]}"', svg)
    rules = "".join(f".{name}{{{style}}}\n" for style, name in styles.items())
    svg = svg.replace("</style>", f"{rules}</style>", 1)
    return "\n".join(line.strip() for line in svg.splitlines()) + "\n"
