"""Removed images against poisoned ones: in all, for each target, and for each trigger family.

P poisoned images   N rows of a part   F families   target_P index into `targets`
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from poisoncam_ray import artifact
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.research.evaluate.joined import Truth, mean

NO_TARGET = "any"


class Removed:
    """Counts fates, part by part. Memory grows with the poisoned images only."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.judged_P, self.removed_P = np.zeros((2, len(truth.poisoned)), bool)
        self.family_P = np.zeros(len(truth.poisoned), np.int64)
        self.box_P4 = np.zeros((len(truth.poisoned), 4), np.int64)
        self.family_sizes: Counter[int] = Counter()
        self.n_judged = self.n_removed = self.n_decoys_judged = self.n_decoys_removed = 0

    def add(self, part: pa.Table) -> None:
        """Count one part of the scores, with the columns image_id, fate, family and the box."""
        removed_N = pc.equal(part["fate"], artifact.REMOVE).to_numpy()
        family_N = part["family"].to_numpy()
        row_N, decoy_N = self.truth.row(part["image_id"]), self.truth.is_decoy(part["image_id"])
        poisoned_N = row_N >= 0
        self.judged_P[row_N[poisoned_N]] = True
        self.family_P[row_N[poisoned_N]] = family_N[poisoned_N]
        gone_N = poisoned_N & removed_N
        self.removed_P[row_N[gone_N]] = True
        for i, side in enumerate(SIDES):
            self.box_P4[row_N[gone_N], i] = part[side].to_numpy()[gone_N]
        self.family_sizes.update(family_N[removed_N & ~decoy_N].tolist())
        self.n_judged, self.n_removed = self.n_judged + len(row_N), self.n_removed + int(removed_N.sum())
        self.n_decoys_judged += int(decoy_N.sum())
        self.n_decoys_removed += int((decoy_N & removed_N).sum())

    def precision(self) -> float | None:
        """Share of the removed images, without decoys, that are poisoned."""
        n_counted = self.n_removed - self.n_decoys_removed
        return int(self.removed_P.sum()) / n_counted if n_counted else None

    def false_positive_rate(self) -> float | None:
        """Share of the clean images, without decoys, that were removed."""
        n_clean = self.n_judged - int(self.judged_P.sum()) - self.n_decoys_judged
        n_wrong = self.n_removed - int(self.removed_P.sum()) - self.n_decoys_removed
        return n_wrong / n_clean if n_clean else None

    def decoys_removed(self) -> float | None:
        """Share of the decoys that were removed."""
        return self.n_decoys_removed / self.n_decoys_judged if self.n_decoys_judged else None

    def recall_by_target(self) -> dict[str, float | None]:
        """{target: recall}; empty for a truth without targets."""
        targets, target_P = self._targets()
        return {target: mean(self.removed_P[target_P == i]) for i, target in enumerate(targets)}

    def families(self) -> dict[str, dict[str, Any]]:
        """The figures of every family with removed images (`detection_metrics`), without decoys.

        For a truth without targets only their numbers are known.
        """
        targets, target_P = self._targets()
        purity = 0.0 if self._names_targets else None
        found = {}
        for family, size in sorted(self.family_sizes.items()):
            mine_P = self.removed_P & (self.family_P == family)
            figures: dict[str, Any] = {"n_removed": size, "main_target": None}
            figures |= {"purity": purity, "recall": None}
            if targets and mine_P.any():
                counts_T = np.bincount(target_P[mine_P], minlength=len(targets))
                main = int(counts_T.argmax())
                figures["main_target"] = targets[main]
                figures["purity"] = int(counts_T[main]) / size
                figures["recall"] = int(counts_T[main]) / int((target_P == main).sum())
            found[str(family)] = figures
        return found

    @property
    def _names_targets(self) -> bool:
        return "target" in self.truth.poisoned.column_names

    def _targets(self) -> tuple[list[str], np.ndarray]:
        if not self._names_targets:
            return [], np.zeros(len(self.truth.poisoned), np.int64)
        names = [name or NO_TARGET for name in self.truth.poisoned["target"].to_pylist()]
        targets = sorted(set(names))
        place = {target: i for i, target in enumerate(targets)}
        return targets, np.array([place[name] for name in names], np.int64)
