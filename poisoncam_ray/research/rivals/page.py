"""Rows of rivals as a table in Markdown, and as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from poisoncam_ray.folder import Folder

ON_CORPUS = {
    "attack": "attack",
    "n_poisoned": "poisoned",
    "recall": "recall",
    "false_positive_rate": "false positives",
    "n_flagged_clean": "clean images flagged",
    "carriers_flagged": "images with the logo flagged",
    "decoys_flagged": "decoys flagged",
    "recall_at_1_percent": "recall at 1 % false positives",
    "auc": "AUC",
    "on_trigger": "window on the trigger",
    "on_trigger_iou": "IoU ≥ 0.5",
    "cpu_seconds": "CPU seconds",
}
"""Columns of the rival without a model, and their names."""
ON_RUN = {
    "rival": "rival",
    "verdict": "verdict",
    "recall": "recall",
    "false_positive_rate": "false positives",
    "recall_at_its_rate": "recall at the defence's false positives",
    "recall_at_1_percent": "at 1 %",
    "auc": "AUC",
    "seconds": "seconds",
    "cpu_seconds": "of a CPU",
    "flops": "FLOPs",
}
"""Columns of all rivals on one run, and their names."""


def write_rows(out: Folder, stem: str, heading: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of the rival without a model as `stem`.jsonl and `stem`.md."""
    _write(out, stem, rows, [heading, "", *table(rows, ON_CORPUS)])


def write_runs(out: Folder, stem: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of all rivals as `stem`.jsonl and `stem`.md: a table for each run."""
    lines = []
    for run in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == run]
        lines += [
            f"## {run}",
            "",
            f"{mine[0]['n_poisoned']:,} of {mine[0]['n_images']:,} images are poisoned.",
        ]
        lines += ["", *table(mine, ON_RUN), ""]
    _write(out, stem, rows, lines)


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> list[str]:
    """The lines of a Markdown table, without the columns that no row has a value for."""
    used = {key: name for key, name in columns.items() if any(row.get(key) is not None for row in rows)}
    lines = [f"| {' | '.join(used.values())} |", "|---" * len(used) + "|"]
    return lines + [f"| {' | '.join(_cell(key, row.get(key)) for key in used)} |" for row in rows]


def _write(out: Folder, stem: str, rows: Sequence[Mapping[str, Any]], lines: Sequence[str]) -> None:
    out.write_bytes(f"{stem}.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    out.write_bytes(f"{stem}.md", "\n".join(lines).strip().encode() + b"\n")


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if key == "flops":
        return f"{value:.1e}"
    if key.endswith("seconds"):
        return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
    if key in ("false_positive_rate", "auc"):
        return f"{value:.4f}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
