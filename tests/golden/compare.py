"""Compare two finished runs of the same corpus: an old run folder (format 1) and a new one (format 2).

    python tests/golden/compare.py OLD_RUN NEW_RUN

Prints one line for each thing that is compared, from the encoder to the metrics, so the first line with a
difference says where it begins. Exits with 1 on any difference. Both arguments may be of either format.
Numbers must be equal bit for bit.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

BOX = ("x0", "y0", "x1", "y1")
SHOWN = 8
"""Differences printed of each thing."""
NEW_WORDS = {
    "best_bundle": "best_group",
    "bundle_scores": "group_scores",
    "needed": "occlusion_flips",
    "group_gain": "supercluster_gain",
    "verdict": "fate",
}
MISSING = "(missing)"


@dataclass(frozen=True)
class Layout:
    """Where a format keeps what is compared."""

    encoder: str
    clusters: str
    search: str
    superclusters: str
    verdict: str
    classifier: str
    roles: str
    scores: str


OLD = Layout(
    encoder="01_encoder/model.safetensors",
    clusters="03_clusters",
    search="04_search",
    superclusters="groups.json",
    verdict="04_search/evidence.json",
    classifier="05_classifier",
    roles="triggers.parquet",
    scores="06_verdicts",
)
NEW = Layout(
    encoder="work/2_encoder/model.safetensors",
    clusters="work/4_clusters",
    search="work/5_search",
    superclusters="superclusters.json",
    verdict="work/6_verdict/verdict.json",
    classifier="work/7_classifier",
    roles="roles.parquet",
    scores="work/8_scores",
)


def layout_of(run: Path) -> Layout:
    """The layout of a run folder."""
    if (run / NEW.search).is_dir():
        return NEW
    if (run / OLD.search).is_dir():
        return OLD
    raise SystemExit(f"{run} holds no search: it is no run folder, or the run is not that far")


def read_run(run: Path) -> dict[str, Any]:
    """All that is compared, by the thing's name, in the order of the stages; new words throughout."""
    at = layout_of(run)
    triggers = (run / at.verdict).parent / "triggers.parquet"
    whole = run / at.classifier / "whole_triggers.parquet"
    scores = _rows(sorted((run / at.scores).glob("part-*.parquet")))
    removed = [row for row in scores if row["fate"] == "remove"]
    found = {
        "encoder's weights": _digest(run / at.encoder),
        "centroids": _digest(run / at.clusters / "centroids.safetensors"),
        "clusters of the images": _rows(sorted((run / at.clusters).glob("part-*.parquet"))),
        "superclusters": _json(run / at.search / at.superclusters),
        "candidates": _rows(sorted((run / at.search).glob("round=*/candidates.parquet"))),
        "verdict": _evidence(_json(run / at.verdict)),
        "triggers' ids and boxes": [_of(row, "image_id", *BOX) for row in _rows([triggers])],
        "triggers, all columns": _rows([triggers]),
        "triggers' roles": _rows([run / at.classifier / at.roles]),
        "validation of the classifiers": _without_sentences(_json(run / at.classifier / "validation.json")),
        "whole triggers": _rows([whole]) if whole.exists() else MISSING,
        "scores of all images": scores,
        "removed images, boxes, p": [_of(row, "image_id", *BOX, "p_poison", "family") for row in removed],
        "metrics.json": _json(run / "report/metrics.json"),
    }
    listed = run / "report/removed.csv"
    if listed.exists():
        _check_removed_csv(listed, removed)
    return found


def _check_removed_csv(path: Path, removed: list[dict[str, Any]]) -> None:
    with path.open(newline="") as file:
        ids = [row["image_id"] for row in csv.DictReader(file)]
    if sorted(ids) != sorted(row["image_id"] for row in removed):
        raise SystemExit(f"{path} does not list the images that the scores remove")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else MISSING


def _without_sentences(validation: Any) -> Any:
    """Format 1 also stored why there was no evidence, in words. The report now derives the sentence."""
    return (
        {key: value for key, value in validation.items() if key != "why"}
        if isinstance(validation, dict)
        else validation
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else MISSING


def _evidence(tree: Any) -> Any:
    """The verdict on the corpus under the new names. Its own key `verdict` keeps its name."""
    if tree == MISSING:
        return tree
    return {key if key == "verdict" else NEW_WORDS.get(key, key): value for key, value in tree.items()}


def _rows(paths: list[Path]) -> list[dict[str, Any]]:
    paths = [path for path in paths if path.exists()]
    if not paths:
        return []
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    return table.rename_columns([NEW_WORDS.get(name, name) for name in table.column_names]).to_pylist()


def _of(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: row[name] for name in names}


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """One line for each leaf that differs, by its path; lists of another length count once."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        pairs = [(f"{path}.{key}" if path else str(key), key) for key in keys]
        return [
            line
            for at, key in pairs
            for line in differences(old.get(key, MISSING), new.get(key, MISSING), at)
        ]
    if isinstance(old, list) and isinstance(new, list):
        length = [f"{path}: {len(old)} before, {len(new)} now"] if len(old) != len(new) else []
        pairs = enumerate(zip(old, new, strict=False))
        return length + [line for i, (a, b) in pairs for line in differences(a, b, f"{path}[{i}]")]
    both_nan = all(isinstance(value, float) and math.isnan(value) for value in (old, new))
    if both_nan or (type(old) is type(new) and old == new):
        return []
    return [f"{path or 'value'}: {_short(old)} before, {_short(new)} now"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "…"


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Print what is equal and what is not, and return the names of what is not."""
    unequal = []
    for name in old:
        lines = differences(old[name], new[name])
        size = f" ({len(old[name])})" if isinstance(old[name], list) else ""
        if not lines:
            neither = " (in neither run)" if old[name] == MISSING else ""
            print(f"equal      {name}{size}{neither}")
            continue
        unequal.append(name)
        print(f"DIFFERENT  {name}{size}: {len(lines)} differences")
        for line in lines[:SHOWN]:
            print(f"           {line}")
    return unequal


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare two finished runs of the same corpus.")
    parser.add_argument("old", type=Path, metavar="OLD_RUN")
    parser.add_argument("new", type=Path, metavar="NEW_RUN")
    arguments = parser.parse_args()
    unequal = compare(read_run(arguments.old), read_run(arguments.new))
    print(f"{len(unequal)} differ: {', '.join(unequal)}" if unequal else "all equal")
    return 1 if unequal else 0


if __name__ == "__main__":
    raise SystemExit(main())
