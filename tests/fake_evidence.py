"""What Search, Classify and Judge leave behind when they have come to a verdict, written into a fake run."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from poisoncam_ray.verdict import EVIDENCE, NO_EVIDENCE, POISON

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder

WHY = "No window scores above <b>benign</b> ones."
NULL = [round(0.06 * 0.9**i - 0.01, 4) for i in range(18)]


def accuse(run: Folder, n_families: int = 2) -> dict[int, int]:
    """Poison found: triggers and removed images in turn of family 1, 2 …; the images removed by family."""
    made = run / artifact.CLASSIFIER
    triggers = made.read_table("triggers.parquet")
    families = [1 + i % n_families if role != "unused" else 0 for i, role in enumerate(_of(triggers, "role"))]
    for folder in (run / artifact.SEARCH, made):
        _replace(folder, "triggers.parquet", "family", pa.array(families, pa.int32()))
    window = triggers["crop"][0].as_py()
    shown = [{"family": family, "picture": window} for family in range(1, n_families + 1) for _ in range(6)]
    made.write_table("whole_triggers.parquet", pa.Table.from_pylist(shown))
    validation = made.read_json("validation.json")
    chosen = {str(family): validation["families"]["1"] for family in range(1, n_families + 1)}
    made.write_json("validation.json", validation | {"families": chosen})
    removed: dict[int, int] = dict.fromkeys(range(1, n_families + 1), 0)
    for name in (run / artifact.SCORES).parts():
        column = []
        for verdict in _of((run / artifact.SCORES).read_table(name), "verdict"):
            family = 1 + sum(removed.values()) % n_families if verdict == "remove" else 0
            column.append(family)
            if family:
                removed[family] += 1
        _replace(run / artifact.SCORES, name, "family", pa.array(column, pa.int32()))
    found = [
        {
            "family": family,
            "best_score": 0.9 - 0.03 * (family - 1),
            "p_value": 0.0004 * family,
            "n_candidates": families.count(family),
            "cluster": family - 1,
            "ranks": [i for i, of in enumerate(families) if of == family],
        }
        for family in range(1, n_families + 1)
    ]
    write_evidence(run, verdict=POISON, families=found)
    return removed


def acquit(run: Folder) -> None:
    """No evidence: no model, no probability, nothing removed. For a run without poison."""
    made = run / artifact.CLASSIFIER
    made.write_json("validation.json", {"threshold": 0.5, "trained": False, "why": WHY, "families": {}})
    made.delete("triggers.parquet")
    for name in (run / artifact.SCORES).parts():
        n = len((run / artifact.SCORES).read_table(name))
        _replace(run / artifact.SCORES, name, "p_poison", pa.array([0.0] * n, pa.float32()))
    write_evidence(
        run,
        verdict=NO_EVIDENCE,
        p_value=0.31,
        best_score=0.06,
        best_group=0.03,
        group_scores=[0.03, *NULL],
    )


def write_evidence(run: Folder, **changes: Any) -> None:
    evidence = {
        "verdict": POISON, "false_alarm_rate": 0.05, "p_value": 0.0004, "best_score": 0.9, "threshold": 0.17,
        "n_candidates": 18, "best_group": 0.6, "group_scores": [0.6, 0.5, *NULL], "null_scores": NULL,
        "families": [],
    }  # fmt: skip
    (run / artifact.SEARCH).write_json(EVIDENCE, evidence | changes)


def _of(table: pa.Table, column: str) -> list[Any]:
    return table[column].to_pylist()


def _replace(folder: Folder, name: str, column: str, values: pa.Array) -> None:
    table = folder.read_table(name)
    folder.write_table(name, table.set_column(table.column_names.index(column), column, values))
