"""benchmark.md, written from benchmark.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

COLUMNS = ("what", "ours", "against", "times as fast", "mark", "times fewer FLOPs", "how")
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def markdown(tree: Mapping[str, Any]) -> str:
    """The page.

    Args:
        tree: benchmark.json, see parts.measure.
    """
    parts = tree["parts"]
    lines = ["# Benchmark", "", *_introduction(parts), "", *_marks(parts), ""]
    for name, part in parts.items():
        lines += [f"## {part['title']}", ""]
        if part["quick"]:
            lines += ["Measured with `--quick`: a test that it works. The figures mean nothing.", ""]
        if "failed" in part:
            lines += [f"**This part (`{name}`) failed:** {part['failed']}", ""]
            continue
        if part["rows"]:
            lines += [*_table(COLUMNS, [_cells(row) for row in part["rows"]]), ""]
        for table in part["tables"]:
            lines += [f"{table['title']}:", "", *_table(table["columns"], table["lines"]), ""]
        lines += [f"- {note}" for note in part["notes"]]
        lines += [f"- `--part {name}`: {part['seconds']:.0f} s, load before it {part['load_before']}.", ""]
    return "\n".join(lines)


def _introduction(parts: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "Each line compares two ways of the same work, which took turns in one run. *Times as fast*: the "
        "median over the rounds, least and most in brackets; seconds and rates are medians. Below 1, ours is "
        "slower. FLOPs are counted, not timed: matrix products and convolutions, a multiplication with its "
        "addition as two."
    )
    for told in dict.fromkeys(_machine(part["machine"]) for part in parts.values()):
        yield ""
        yield told


def _machine(facts: Mapping[str, Any]) -> str:
    told = (
        f"{key.replace('_', ' ')}: {' '.join(value) if isinstance(value, list) else value}"
        for key, value in facts.items()
        if value != ""
    )
    return "Measured on: " + ", ".join(told) + "."


def _marks(parts: Mapping[str, Any]) -> Iterator[str]:
    measured = [part for part in parts.values() if not part["quick"]]
    rows = [row for part in measured for row in part.get("rows", ()) if row["met"] is not None]
    for heading, met in (("Marks that are missed", False), ("Marks that are met", True)):
        named = [f"{row['name']}, {row['ways'][0]} ({_reached(row)})" for row in rows if row["met"] is met]
        if named:
            yield f"**{heading}:** " + "; ".join(named) + "."
            yield ""
    if failed := [name for name, part in parts.items() if "failed" in part]:
        yield f"**Parts that failed:** {', '.join(failed)}."


def _reached(row: Mapping[str, Any]) -> str:
    told = []
    if row["at_least"] is not None:
        told.append(f"{short(row['ratio'])} of {short(row['at_least'])}")
    if row["flop_at_least"] is not None:
        told.append(f"FLOPs {short(row['flop_ratio'])} of {short(row['flop_at_least'])}")
    return ", ".join(told)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    flop = row["flop"] or (None, None)
    ours, other = (
        f"{way}: {_time(median(seconds))}{_rate(row, median(seconds))}{_operations(count)}"
        for way, seconds, count in zip(row["ways"], row["seconds"], flop, strict=True)
    )
    ratios = row["ratios"]
    ratio = f"**{short(row['ratio'])}** ({short(min(ratios))} – {short(max(ratios))})"
    saved = "" if row["flop_ratio"] is None else short(row["flop_ratio"])
    how = row["regime"] + (f"; {row['answers']}" if row["answers"] else "")
    return row["name"], ours, other, ratio, _mark(row), saved, how


def _mark(row: Mapping[str, Any]) -> str:
    if row["met"] is None:
        return ""
    wanted = [f"≥ {short(row['at_least'])}"] if row["at_least"] is not None else []
    wanted += [f"FLOPs ≥ {short(row['flop_at_least'])}"] if row["flop_at_least"] is not None else []
    return f"{', '.join(wanted)}: {'met' if row['met'] else '**missed**'}"


def _time(seconds: float) -> str:
    return f"{short(seconds)} s" if seconds >= 0.1 else f"{short(seconds * 1000)} ms"


def _rate(row: Mapping[str, Any], seconds: float) -> str:
    return f", {short(row['units'] / seconds)} {row['unit']}/s" if row["units"] else ""


def _operations(count: float | None) -> str:
    if count is None:
        return ""
    size, prefix = next(((size, prefix) for size, prefix in PREFIXES if count >= size), (1.0, ""))
    return f", {short(count / size)} {prefix}FLOP"


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rows = [columns, ["---"] * len(columns), *lines]
    return ["| " + " | ".join(cells) + " |" for cells in rows]


def short(value: float) -> str:
    """A number with three digits, or without decimals: 0.0123, 12.3, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
