"""What Verdict, Classify, Judge and Clean leave behind when they have come to a verdict, written into a fake
run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa

from poisoncam_ray import artifact
from poisoncam_ray.artifact import NO_EVIDENCE, POISON, Family, Verdict
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.corpus.slices import slices_of
from poisoncam_ray.folder import Folder
from poisoncam_ray.stages.classify import with_roles
from poisoncam_ray.stages.clean import write_unit

NULL = tuple(round(0.06 * 0.9**i - 0.01, 4) for i in range(18))
FOUND = Verdict(
    POISON,
    false_alarm_rate=0.05,
    p_value=0.0004,
    best_score=0.9,
    threshold=0.17,
    n_candidates=18,
    best_group=0.6,
    group_scores=(0.6, 0.5, *NULL),
    null_scores=NULL,
)
TOP = 8
"""Windows that are triggers, the best of all."""


def flag_images(run: Folder, n_families: int = 2) -> dict[int, int]:
    """Poison found: the triggers and the removed images are of the families 1, 2 … in turn.

    Returns:
        the number of removed images by family.
    """
    verdict, made, scores = run / artifact.VERDICT, run / artifact.CLASSIFIER, run / artifact.SCORES
    n = len(verdict.read_table(artifact.TRIGGERS))
    families = [1 + i % n_families if i < TOP else 0 for i in range(n)]
    replace_column(verdict, artifact.TRIGGERS, "family", pa.array(families, pa.int32()))
    triggers = verdict.read_table(artifact.TRIGGERS)
    made.write_table(artifact.ROLES, with_roles(triggers, TOP, held_out=0.25, seed=1))
    window = triggers["crop"][0].as_py()
    shown = [{"family": family, "picture": window} for family in range(1, n_families + 1) for _ in range(6)]
    whole = pa.Table.from_pylist(shown, schema=artifact.WHOLE_TRIGGER_SCHEMA)
    made.write_table(artifact.WHOLE_TRIGGERS, whole)
    chosen = {
        "recall": 0.99,
        "unsure_share": 0.004,
        "threshold": 0.5,
        "threshold_logit": 0.49,
        "auc": 0.9991,
        "erased": True,
    }
    by_family = {str(family): chosen for family in range(1, n_families + 1)}
    made.write_json(artifact.VALIDATION, chosen | {"trained": True, "families": by_family})
    removed: dict[int, int] = dict.fromkeys(range(1, n_families + 1), 0)
    for name in scores.parts():
        column = []
        for fate in scores.read_table(name)["fate"].to_pylist():
            family = 1 + sum(removed.values()) % n_families if fate == artifact.REMOVE else 0
            column.append(family)
            if family:
                removed[family] += 1
        replace_column(scores, name, "family", pa.array(column, pa.int32()))
    found = tuple(
        Family(
            family,
            best_score=0.9 - 0.03 * (family - 1),
            p_value=0.0004 * family,
            n_candidates=families.count(family),
            cluster=family - 1,
            ranks=tuple(i for i, of in enumerate(families) if of == family),
        )
        for family in range(1, n_families + 1)
    )
    write_evidence(run, families=found)
    clean(run)
    return removed


def unflag_all(run: Folder) -> None:
    """No evidence: no model, no probability, nothing removed. For a run without poison."""
    nothing = {"threshold": 0.5, "trained": False, "families": {}}
    (run / artifact.CLASSIFIER).write_json(artifact.VALIDATION, nothing)
    scores = run / artifact.SCORES
    for name in scores.parts():
        replace_column(scores, name, "p_poison", pa.array([0.0] * scores.rows(name), pa.float32()))
    write_evidence(
        run,
        verdict=NO_EVIDENCE,
        p_value=0.31,
        best_score=0.06,
        n_candidates=(run / artifact.VERDICT).rows(artifact.TRIGGERS),
        best_group=0.03,
        group_scores=(0.03, *NULL),
    )
    clean(run)


def write_evidence(run: Folder, **changes: Any) -> None:
    """verdict.json: poison, save for the fields in `changes` (artifact.Verdict)."""
    replace(FOUND, **changes).write(run / artifact.VERDICT)


def clean(run: Folder) -> None:
    """Write the clean and the removed rows, by the scores, as Clean does."""
    corpus = open_corpus(run.read_json(artifact.RUN)["input"])
    slices = slices_of((run / artifact.INDEX).read_table(artifact.SLICES))
    for number, unit in enumerate(corpus.units(slices)):
        write_unit(number, unit, corpus, run)


def replace_column(folder: Folder, name: str, column: str, values: pa.Array) -> None:
    """Write the table again, with other values in one column."""
    table = folder.read_table(name)
    folder.write_table(name, table.set_column(table.column_names.index(column), column, values))
