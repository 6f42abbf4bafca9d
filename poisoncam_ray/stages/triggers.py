"""What the search concludes from its candidates: the evidence, the trigger families, the best windows.

N candidates   K clusters   F flip-test images
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from poisoncam_ray.artifact import SIDES, Folder
from poisoncam_ray.method.bundles import bundles
from poisoncam_ray.method.evidence import Evidence, weigh
from poisoncam_ray.method.families import families
from poisoncam_ray.method.groups import effects
from poisoncam_ray.method.looks import look
from poisoncam_ray.stages.crops import from_png
from poisoncam_ray.verdict import EVIDENCE, NO_EVIDENCE, POISON

TRIGGERS = "triggers.parquet"
KEPT = 200
"""Windows kept of each family, and of the best whatever they are."""
GROUPED = 2000
"""Suspects grouped into families, the best."""
CANDIDATES_FILE = "candidates.parquet"
CANDIDATES = pa.schema(
    [("image_id", pa.string()), ("cluster", pa.int32())]
    + [(side, pa.int32()) for side in SIDES]
    + [(reading, pa.int32()) for reading in ("changed", "gain", "group_gain", "n_flip")]
    + [
        ("score", pa.float32()),
        ("needed", pa.bool_()),
        ("crop", pa.binary()),
        ("landed", pa.list_(pa.int32())),
    ]
)


def conclude(out: Folder, rounds: int, g_K: Tensor, y_F: Tensor, false_alarm_rate: float) -> dict[str, Any]:
    """Write triggers.parquet and evidence.json into the search's folder; returns the evidence.

    `g_K`: group of each cluster; `y_F`: clusters of the flip-test images as they are.
    """
    names = [(out / f"round={i:03d}") for i in range(rounds)]
    columns = ["image_id", "cluster", "score", "needed", "n_flip"]
    table = pa.concat_tables([folder.read_table(CANDIDATES_FILE, columns) for folder in names])
    table = table.append_column("row", pa.array(np.arange(len(table))))
    # One order whatever the rounds' sizes: ties by image id.
    table = table.sort_by([("score", "descending"), ("image_id", "ascending")])
    score_N = torch.from_numpy(table["score"].to_numpy().astype(np.float64))
    cluster_N = torch.from_numpy(table["cluster"].to_numpy().astype(np.int64))
    step = 1 / max(1, table["n_flip"][0].as_py())
    needed_N = torch.tensor(table["needed"].to_pylist())
    group_N = bundle_N = g_K[cluster_N]
    asked = false_alarm_rate < 1
    if asked:
        look_NCss = _looks(names)[torch.tensor(table["row"].to_pylist())]
        bundle_N = bundles(look_NCss, group_N)
    found = weigh(score_N, needed_N, bundle_N, false_alarm_rate, step)
    # Where nobody asked for evidence all candidates are of one family, as the paper has it.
    family_N = torch.ones(len(table), dtype=torch.int64)
    if asked:
        family_N = _families(names, table, found, score_N, bundle_N != group_N, y_F, len(g_K))
    kept = _kept(family_N)
    shown = [name for name in CANDIDATES.names if name != "landed"]
    triggers = _rows(names, shown, table["row"].to_numpy()[kept])
    triggers = triggers.append_column("family", pa.array(family_N.numpy()[kept], pa.int32()))
    out.write_table(TRIGGERS, triggers.append_column("rank", pa.array(np.arange(len(triggers)), pa.int32())))
    evidence = _evidence(found, score_N, cluster_N, bundle_N, family_N, false_alarm_rate, triggers)
    out.write_json(EVIDENCE, evidence)
    return evidence


def _looks(names: list[Folder]) -> Tensor:
    """look_NCss of all candidates, a round at a time."""
    crops = (folder.read_table(CANDIDATES_FILE, ["crop"])["crop"] for folder in names)
    return torch.stack([look(from_png(data)) for column in crops for data in column.to_pylist()])


def _families(
    names: list[Folder],
    table: pa.Table,
    found: Evidence,
    score_N: Tensor,
    by_look_N: Tensor,
    y_F: Tensor,
    n_clusters: int,
) -> Tensor:
    """family_N of all candidates; 0: in none."""
    family_N = torch.zeros(len(table), dtype=torch.int64)
    suspects = found.suspect_N.nonzero()[:, 0]
    if len(suspects):
        suspects = suspects[:GROUPED]
        rows = _rows(names, ["landed", "crop"], table["row"].to_numpy()[suspects.numpy()])
        landed_SF = torch.tensor(rows["landed"].to_pylist())
        windows = [from_png(data) for data in rows["crop"].to_pylist()]
        effect_SK = effects(landed_SF, y_F, n_clusters)
        family_N[suspects] = families(windows, effect_SK, score_N[suspects], by_look_N[suspects])
    return family_N


def _rows(rounds: list[Folder], columns: list[str], wanted: np.ndarray) -> pa.Table:
    """The `wanted` candidates, counted through all rounds, in the order given.

    Windows and where the flip-test images landed are most of a candidate's bytes: a round at a time is read.
    """
    ascending, parts, first = np.sort(wanted), [], 0
    for folder in rounds:
        part = folder.read_table(CANDIDATES_FILE, columns)
        here = ascending[(ascending >= first) & (ascending < first + len(part))]
        parts.append(part.take(pa.array(here - first)))
        first += len(part)
    return pa.concat_tables(parts).take(pa.array(np.searchsorted(ascending, wanted)))


def _kept(family_N: Tensor) -> np.ndarray:
    """Positions of the KEPT best, and of the KEPT best of each family, best first."""
    best = [np.arange(min(KEPT, len(family_N)))]
    for family in range(1, int(family_N.max()) + 1):
        best.append((family_N == family).nonzero()[:KEPT, 0].numpy())
    return np.unique(np.concatenate(best))


def _evidence(
    found: Evidence,
    score_N: Tensor,
    cluster_N: Tensor,
    bundle_N: Tensor,
    family_N: Tensor,
    false_alarm_rate: float,
    triggers: pa.Table,
) -> dict[str, Any]:
    def p_value(bundle_score: float | None) -> float | None:
        return found.null.p_value(bundle_score) if found.null and bundle_score is not None else None

    best_bundle = max(found.score_U.values(), default=None)
    listed = []
    for family in range(1, int(family_N.max()) + 1):
        own_N = family_N == family
        heard = [found.score_U[u] for u in bundle_N[own_N].unique().tolist() if u in found.score_U]
        listed.append(
            {
                "family": family,
                "best_score": float(score_N[own_N].max()),
                "p_value": p_value(max(heard, default=None)),
                "n_candidates": int(own_N.sum()),
                "cluster": int(cluster_N[own_N][0]),
                "ranks": pc.indices_nonzero(pc.equal(triggers["family"], family)).to_pylist(),
            }
        )
    return {
        "verdict": POISON if listed else NO_EVIDENCE,
        "false_alarm_rate": false_alarm_rate,
        "p_value": p_value(best_bundle),
        "best_score": float(score_N.max()),
        "threshold": found.threshold if found.null else None,
        "n_candidates": len(score_N),
        "best_bundle": best_bundle,
        "bundle_scores": _falling(list(found.score_U.values())),
        "null_scores": _falling([found.score_U[u] for u in found.null_U]),
        "families": listed,
    }


def _falling(scores: list[float]) -> list[float]:
    return [round(score, 4) for score in sorted(scores, reverse=True)]
