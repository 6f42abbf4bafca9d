"""Rows of the results table: which metrics they hold, and how they are written."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from poisoncam_ray.folder import Folder

CLEANED = "cleaned_corpus"
"""Column with a digest of the cleaned corpus. Runs of one seed with the same digest share the encoder that
is trained on it."""
GROUPS = ("strategies", "probes")
SHOWN = {
    "verdict": "verdict",
    "best_group_in_thresholds": "the best window group, in thresholds",
    "asr": "near the poison: attack success (k-NN) by the poisoned corpus",
    "threat knn asr": "attack success (k-NN) by labelled images without poison, poisoned",
    "asr_never_poisoned": "… never poisoned",
    "cleaned knn asr": "… trained on the cleaned corpus",
    "cleaned less never_poisoned knn asr": "… cleaned less never poisoned",
    "threat linear_1 asr": "attack success (1 % of labels), poisoned",
    "cleaned less never_poisoned linear_1 asr": "… cleaned less never poisoned",
    "threat linear_10 asr": "attack success (10 % of labels), poisoned",
    "cleaned less never_poisoned linear_10 asr": "… cleaned less never poisoned",
    "threat knn acc_clean": "clean accuracy (k-NN), poisoned",
    "acc_clean_never_poisoned": "… never poisoned",
    "cleaned less never_poisoned knn acc_clean": "… cleaned less never poisoned",
    "trigger_detection_accuracy": "trigger detection accuracy",
    "trigger_detection_accuracy_poison_clusters": "… in clusters that are mostly poison",
    "trigger_detection_accuracy_natural_clusters": "… in clusters of natural images",
    "trigger_detection_final_accuracy": "… at the end of the run",
    "full_coverage:hard accuracy": "… by the paper's masks and score",
    "gradcam accuracy": "… by Grad-CAM",
    "random accuracy": "… by a random window",
    "top20_precision": "top-20 precision",
    "located_accuracy": "trigger boxed in the removed poisoned images",
    "recall": "recall of the poisoned images",
    "recall_natural_clusters": "… in natural clusters",
    "precision": "precision",
    "false_positive_rate": "false positive rate",
    "decoys_removed": "clean images with a decoy removed",
    "n_removed": "images removed",
    "peer trigger_detection_accuracy": "PatchSearch: trigger detection accuracy",
    "peer trigger_detection_final_accuracy": "… at the end of its run",
    "peer top20_precision": "PatchSearch: top-20 precision",
    "peer recall": "PatchSearch: recall",
    "peer false_positive_rate": "PatchSearch: false positive rate",
    "never-poisoned encoder: verdict": "with an encoder that saw no poison: verdict",
    "never-poisoned encoder: best_group_in_thresholds": "… the best window group, in thresholds",
    "never-poisoned encoder: recall": "… recall of the poisoned images",
    "never-poisoned encoder: false_positive_rate": "… false positive rate",
    "untrained encoder: verdict": "with an untrained encoder: verdict",
    "untrained encoder: best_group_in_thresholds": "… the best window group, in thresholds",
    "untrained encoder: recall": "… recall of the poisoned images",
    "untrained encoder: false_positive_rate": "… false positive rate",
}
"""The figures that results.md shows, and their names there. results.csv has every figure."""
SECONDS = "seconds "
OVERVIEW = (
    "asr", "threat knn asr", "asr_never_poisoned", "cleaned knn asr", "trigger_detection_accuracy",
    "peer trigger_detection_accuracy", "recall", "false_positive_rate",
)  # fmt: skip

OF_A_RUN = {
    "seed": "seed",
    "trigger": "trigger",
    "verdict": "verdict",
    "best_group_in_thresholds": "in thresholds",
    "asr": "near the poison",
    "asr_never_poisoned": "never poisoned",
    "recall": "recall",
    "false_positive_rate": "false positives",
    "located_accuracy": "`_box` right",
    "trigger_detection_accuracy": "trigger detection",
    "trigger_detection_final_accuracy": "at the end",
    "peer trigger_detection_accuracy": "PatchSearch",
    "threat knn asr": "attack success: poisoned",
    "cleaned knn asr": "cleaned",
    "never_poisoned knn asr": "never poisoned",
    "cleaned knn acc_clean": "accuracy: cleaned",
    "never_poisoned knn acc_clean": "never poisoned",
    "n_removed": "removed",
    CLEANED: "cleaned corpus",
    "search_version": "search",
    "never-poisoned encoder: verdict": "encoder never poisoned: verdict",
    "never-poisoned encoder: recall": "recall",
    "untrained encoder: verdict": "encoder untrained: verdict",
    "untrained encoder: recall": "recall",
}
"""The figures in the lines of single runs, and their names there. Attack success and accuracy are by k-NN
over labelled images without poison; *near the poison* is by k-NN over the poisoned corpus and its labels;
*search* is the version of the search stage."""


def single_figures(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of metrics.json. Those inside GROUPS are named by their path, such as "threat knn asr"."""
    figures: dict[str, float | None] = {}
    for key, value in metrics.items():
        if value is None or isinstance(value, int | float):
            figures[key] = value
        elif key in GROUPS:
            figures |= _paths(value)
    return figures


def gaps(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The cleaned encoder's figures minus the never-poisoned one's, by each probe; empty without both."""
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
    """Write results.csv, one row per run, and results.md, a table for each kind and share.

    Args:
        out: the folder of the table.
        rows: one mapping of columns to values for each run.
    """
    sink = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(sink, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    out.write_bytes("results.csv", sink.getvalue().encode())
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["share"]), []).append(row)
    sections = [_overview(list(groups.values())), *map(_section, groups.values())]
    out.write_bytes("results.md", "\n\n".join(sections).encode() + b"\n")


def _overview(groups: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """One line for each kind and share, with means over its runs."""
    names = ["attack", "of the corpus", "runs", "poison found"]
    names += ["near the poison", "attack success", "never poisoned", "cleaned", "trigger detection"]
    names += ["by PatchSearch", "recall", "false positives"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for rows in groups:
        first = rows[0]
        found = sum(row.get("verdict") == "poison" for row in rows)
        cells = [first["kind"], f"{100 * _rate(rows):.3g} %", str(len(rows)), str(found)]
        for key in OVERVIEW:
            numbers = _numbers(rows, key)
            cells.append(f"{statistics.mean(numbers):.3f}" if numbers else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _section(rows: Sequence[Mapping[str, Any]]) -> str:
    first, n = rows[0], len(rows)
    runs = "1 run" if n == 1 else f"{n} runs"
    if first["kind"] == "clean":
        untouched = sum(row["n_removed"] == 0 for row in rows)
        title = f"## Never poisoned: {runs}, nothing removed in {untouched}"
    else:
        title = f"## {first['kind']}, share {first['share']:g}, {_rate(rows):.2%} of the corpus: {runs}"
    lines = [title, "", "| | mean ± standard deviation | least – most | runs |", "|---|---|---|---|"]
    for key, name in SHOWN.items():
        words = Counter(row[key] for row in rows if isinstance(row.get(key), str))
        if numbers := _numbers(rows, key):
            # The standard deviation of a sample; a single run has none.
            mean = f"{statistics.mean(numbers):.3f}"
            deviation = f" ± {statistics.stdev(numbers):.3f}" if len(numbers) > 1 else ""
            range_ = f"{min(numbers):.3f} – {max(numbers):.3f}"
            lines.append(f"| {name} | {mean}{deviation} | {range_} | {len(numbers)} |")
        elif words:
            counted = ", ".join(f"{word} {times}" for word, times in words.most_common())
            lines.append(f"| {name} | {counted} | | {words.total()} |")
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith(SECONDS))
    seconds = [f"{key.removeprefix(SECONDS)} {statistics.mean(_numbers(rows, key)):.0f}" for key in keys]
    if corpora := {(row["seed"], row[CLEANED]) for row in rows if CLEANED in row}:
        lines += ["", f"Different cleaned corpora: {len(corpora)}."]
    if seconds:
        lines += ["", f"Seconds, mean: {', '.join(seconds)}."]
    return "\n".join([*lines, "", *_lines_of_runs(rows)])


def _lines_of_runs(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = [key for key in OF_A_RUN if any(row.get(key) not in (None, "") for row in rows)]
    lines = [f"| {' | '.join(OF_A_RUN[key] for key in keys)} |", "|---" * len(keys) + "|"]
    return lines + [f"| {' | '.join(_cell(row.get(key)) for key in keys)} |" for row in rows]


def _cell(value: object) -> str:
    if value is None or value == "":
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _rate(rows: Sequence[Mapping[str, Any]]) -> float:
    """The share of poisoned images in the corpus, as a mean over the runs."""
    return statistics.mean(row["poison_rate"] for row in rows)


def _numbers(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if isinstance(row.get(key), int | float)]


def _paths(tree: Mapping[str, Any], path: str = "") -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    for key, value in tree.items():
        figures |= _paths(value, f"{path}{key} ") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return figures
