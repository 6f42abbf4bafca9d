"""What the search concludes from its candidates: the evidence, the trigger families, the best windows.

N candidates   S suspects   K clusters   F flip-test images   s = looks.LOOK_SIDE
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from poisoncam_ray.artifact import SIDES, Folder
from poisoncam_ray.config import TRIGGERS_KEPT
from poisoncam_ray.method.bundles import bundles
from poisoncam_ray.method.copies import COPIES_COUNT, copied
from poisoncam_ray.method.evidence import Weighing, weigh
from poisoncam_ray.method.families import families
from poisoncam_ray.method.groups import effects
from poisoncam_ray.method.looks import look
from poisoncam_ray.method.pull import arrivals, gathered, homes, pulls, remaining
from poisoncam_ray.stages.crops import from_png
from poisoncam_ray.verdict import EVIDENCE, NO_EVIDENCE, POISON

TRIGGERS = "triggers.parquet"
GROUPED = 2000
"""Suspects grouped into families, about: of more the best of each bundle, lest a strong attacker's windows
leave no room for a weaker one's."""
LANDED_AT_ONCE = 4096
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


@dataclass(frozen=True)
class _Candidates:
    """All that the search scored, best first, ties by image id: one order whatever the rounds' sizes.

    `row_N`: where each is, counted through the rounds' files; `step`: the score of one flip-test image.
    """

    rounds: Sequence[Folder]
    row_N: np.ndarray
    cluster_N: Tensor
    score_N: Tensor
    needed_N: Tensor
    step: float

    @classmethod
    def read(cls, rounds: Sequence[Folder]) -> _Candidates:
        columns = ["image_id", "cluster", "score", "needed", "n_flip"]
        table = pa.concat_tables([folder.read_table(CANDIDATES_FILE, columns) for folder in rounds])
        table = table.append_column("row", pa.array(np.arange(len(table))))
        table = table.sort_by([("score", "descending"), ("image_id", "ascending")])
        return cls(
            rounds,
            row_N=table["row"].to_numpy(),
            cluster_N=torch.from_numpy(table["cluster"].to_numpy().astype(np.int64)),
            score_N=torch.from_numpy(table["score"].to_numpy().astype(np.float64)),
            needed_N=torch.tensor(table["needed"].to_pylist()),
            step=1 / max(1, table["n_flip"][0].as_py()),
        )

    def rows(self, columns: list[str], wanted: np.ndarray) -> pa.Table:
        """`columns` of the `wanted` candidates, in the order given.

        Windows and where the flip-test images landed are most of a candidate's bytes: a round at a time is
        read.
        """
        row_n = self.row_N[wanted]
        ascending, parts, first = np.sort(row_n), [], 0
        for folder in self.rounds:
            part = folder.read_table(CANDIDATES_FILE, columns)
            here = ascending[(ascending >= first) & (ascending < first + len(part))]
            parts.append(part.take(pa.array(here - first)))
            first += len(part)
        return pa.concat_tables(parts).take(pa.array(np.searchsorted(ascending, row_n)))

    def pulls(self, bundle_N: Tensor, home_UK: Tensor, n_U: Tensor, y_F: Tensor, n_groups: int) -> Tensor:
        """pull_N, 0 … 1: the share of the flip-test images that each window moves to its bundle's home; twice
        through the rounds, one at a time."""
        arrived_UK = torch.zeros(home_UK.shape)
        for i_M, landed_MF in self._landed():
            arrived_UK += arrivals(landed_MF, y_F, self.needed_N[i_M], bundle_N[i_M], *home_UK.shape)
        left_UK = remaining(home_UK, arrived_UK, n_U, n_groups)
        pull_N = torch.zeros(len(bundle_N), dtype=torch.float64)
        for i_M, landed_MF in self._landed():
            pull_N[i_M] = pulls(landed_MF, y_F, left_UK[bundle_N[i_M]]).double()
        return pull_N.clamp(min=0) * self.step

    def _landed(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(i_M, landed_MF): which candidates, and where each pasted image landed."""
        place_of_row, first = torch.from_numpy(np.argsort(self.row_N)), 0
        for folder in self.rounds:
            for batch in folder.read_table(CANDIDATES_FILE, ["landed"]).to_batches(LANDED_AT_ONCE):
                landed = np.stack(batch["landed"].to_numpy(zero_copy_only=False))
                yield place_of_row[first : first + len(batch)], torch.from_numpy(landed)
                first += len(batch)

    def looks(self) -> Tensor:
        """look_NCss, a round at a time."""
        crops = (folder.read_table(CANDIDATES_FILE, ["crop"])["crop"] for folder in self.rounds)
        looks = [look(from_png(data)) for column in crops for data in column.to_pylist()]
        return torch.stack(looks)[torch.tensor(self.row_N)]


def conclude(out: Folder, rounds: int, g_K: Tensor, y_F: Tensor, false_alarm_rate: float) -> dict[str, Any]:
    """Write triggers.parquet and evidence.json into the search's folder; returns the evidence.

    `g_K`: group of each cluster; `y_F`: clusters of the flip-test images as they are.
    """
    tried = _Candidates.read([(out / f"round={i:03d}") for i in range(rounds)])
    group_N = bundle_N = g_K[tried.cluster_N]
    asked = false_alarm_rate < 1
    if asked:
        look_NCss = tried.looks()
        bundle_N = bundles(look_NCss, group_N)
    n_groups = int(group_N.max()) + 1
    home_UK, n_U = homes(bundle_N, tried.cluster_N, len(g_K)), torch.bincount(bundle_N)
    pull_N = tried.pulls(bundle_N, home_UK, n_U, y_F, n_groups)
    tried_K = torch.bincount(tried.cluster_N, minlength=len(g_K))
    weight_U = gathered(home_UK, n_U, tried_K, n_groups)
    if asked:
        weight_U[copied(look_NCss, bundle_N, home_UK, n_groups)] *= COPIES_COUNT
    found = weigh(pull_N, tried.needed_N, bundle_N, weight_U, false_alarm_rate, tried.step)
    # Where nobody asked for evidence all candidates are of one family, as the paper has it.
    family_N = torch.full_like(group_N, 0 if asked else 1)
    if asked:
        suspects = _best_suspects(found.suspect_N, bundle_N)
        family_N[suspects] = _families(tried, suspects, bundle_N != group_N, y_F, len(g_K))
    kept = _kept(family_N)
    shown = [name for name in CANDIDATES.names if name != "landed"]
    triggers = tried.rows(shown, kept)
    triggers = triggers.append_column("family", pa.array(family_N.numpy()[kept], pa.int32()))
    out.write_table(TRIGGERS, triggers.append_column("rank", pa.array(np.arange(len(triggers)), pa.int32())))
    evidence = _evidence(tried, found, bundle_N, family_N, kept) | {"false_alarm_rate": false_alarm_rate}
    out.write_json(EVIDENCE, evidence)
    return evidence


def _best_suspects(suspect_N: Tensor, bundle_N: Tensor) -> Tensor:
    """i_S: all suspects, or of each bundle the first, which are the best."""
    i_S = suspect_N.nonzero()[:, 0]
    if len(i_S) <= GROUPED:
        return i_S
    bundles_U = bundle_N[i_S].unique()
    share = max(1, GROUPED // len(bundles_U))
    return torch.cat([i_S[bundle_N[i_S] == bundle][:share] for bundle in bundles_U]).sort().values


def _families(tried: _Candidates, i_S: Tensor, by_look_N: Tensor, y_F: Tensor, k: int) -> Tensor:
    """family_S; 0: in none. `k`: the number of clusters."""
    if not len(i_S):
        return i_S
    rows = tried.rows(["landed", "crop"], i_S.numpy())
    windows = [from_png(data) for data in rows["crop"].to_pylist()]
    effect_SK = effects(torch.tensor(rows["landed"].to_pylist()), y_F, k)
    return families(windows, effect_SK, tried.score_N[i_S], by_look_N[i_S])


def _kept(family_N: Tensor) -> np.ndarray:
    """Positions of the TRIGGERS_KEPT best, and of as many of each family, best first."""
    best = [np.arange(min(TRIGGERS_KEPT, len(family_N)))]
    for family in range(1, int(family_N.max()) + 1):
        best.append((family_N == family).nonzero()[:TRIGGERS_KEPT, 0].numpy())
    return np.unique(np.concatenate(best))


def _evidence(
    tried: _Candidates, found: Weighing, bundle_N: Tensor, family_N: Tensor, kept: np.ndarray
) -> dict[str, Any]:
    """`kept`: which candidates are kept as triggers, in the order of their ranks."""

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
                "best_score": float(tried.score_N[own_N].max()),
                "p_value": p_value(max(heard, default=None)),
                "n_candidates": int(own_N.sum()),
                "cluster": int(tried.cluster_N[own_N][0]),
                "ranks": own_N[torch.from_numpy(kept)].nonzero()[:, 0].tolist(),
            }
        )
    return {
        "verdict": POISON if listed else NO_EVIDENCE,
        "p_value": p_value(best_bundle),
        "best_score": float(tried.score_N.max()),
        "threshold": found.threshold if found.null else None,
        "n_candidates": len(tried.score_N),
        "best_bundle": best_bundle,
        "bundle_scores": _falling(list(found.score_U.values())),
        "null_scores": _falling(list(found.null_U.values())),
        "families": listed,
    }


def _falling(scores: list[float]) -> list[float]:
    return [round(score, 4) for score in sorted(scores, reverse=True)]
