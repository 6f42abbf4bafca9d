"""Rows of the results table: what of the metrics goes into them, and how they are written."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from poisoncam_ray.artifact import Folder

KEYS = ("seed", "kind", "share", "poison_rate", "trigger", "target")
"""What a run is, not how it went."""
GROUPS = ("strategies", "probes")


def single_figures(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of metrics.json, those of GROUPS under their path: "gradcam accuracy", "threat knn asr"."""
    figures: dict[str, float | None] = {}
    for key, value in metrics.items():
        if value is None or isinstance(value, int | float):
            figures[key] = value
        elif key in GROUPS:
            figures |= _paths(value)
    return figures


def gaps(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """By each probe, the cleaned model's figures less those of the never-poisoned one; empty without both."""
    probes = metrics.get("probes", {})
    if not {"cleaned", "never_poisoned"} <= set(probes):
        return {}
    gap: dict[str, float | None] = {}
    for name, cleaned in probes["cleaned"].items():
        never = probes["never_poisoned"][name]
        for key in ("acc_clean", "acc_patched", "asr"):
            known = cleaned[key] is not None and never[key] is not None
            gap[f"cleaned less never_poisoned {name} {key}"] = cleaned[key] - never[key] if known else None
    return gap


def write_results(out: Folder, rows: Sequence[Mapping[str, Any]]) -> None:
    """results.csv, a row a run, and results.md, a table for each kind and share."""
    sink = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(sink, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    out.write_bytes("results.csv", sink.getvalue().encode())
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["share"]), []).append(row)
    out.write_bytes("results.md", "\n\n".join(map(_section, groups.values())).encode() + b"\n")


def _section(rows: Sequence[Mapping[str, Any]]) -> str:
    first, n = rows[0], len(rows)
    runs = "1 run" if n == 1 else f"{n} runs"
    if first["kind"] == "clean":
        untouched = sum(row["n_removed"] == 0 for row in rows)
        title = f"## Never poisoned: {runs}, nothing removed in {untouched}"
    else:
        rate = statistics.mean(row["poison_rate"] for row in rows)
        title = f"## {first['kind']}, share {first['share']:g}, {rate:.2%} of the corpus: {runs}"
    lines = [title, "", "| | mean ± standard deviation | least – most | runs |", "|---|---|---|---|"]
    for key in dict.fromkeys(key for row in rows for key in row if key not in KEYS):
        values = [row.get(key) for row in rows]
        numbers = [value for value in values if isinstance(value, int | float)]
        words = [value for value in values if isinstance(value, str)]
        if numbers:
            spread = f"{statistics.mean(numbers):.3f} ± {statistics.pstdev(numbers):.3f}"
            lines.append(f"| {key} | {spread} | {min(numbers):.3f} – {max(numbers):.3f} | {len(numbers)} |")
        elif words:
            counted = ", ".join(f"{word} {times}" for word, times in Counter(words).most_common())
            lines.append(f"| {key} | {counted} | | {len(words)} |")
    return "\n".join(lines)


def _paths(tree: Mapping[str, Any], path: str = "") -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    for key, value in tree.items():
        figures |= _paths(value, f"{path}{key} ") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return figures
