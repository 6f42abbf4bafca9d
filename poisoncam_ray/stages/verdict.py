"""Verdict: decides from the committed candidates of the search, and keeps the triggers.

N candidates   M kept triggers   F flip-test images   K clusters   C channels   s a thumbnail's side
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from poisoncam_ray import artifact, facts
from poisoncam_ray.config import Config
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.similarity import thumbnail
from poisoncam_ray.method.verdict import Candidates, Decision, VerdictRules, decide
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.crops import from_png
from poisoncam_ray.stages.ranking import read_ranking

RULES = VerdictRules()
ORDER = [("score", "descending"), ("image_id", "ascending")]
"""Best first. Ties are broken by image, so the order does not depend on how the rounds were cut."""


class Verdict(Stage):
    name = artifact.VERDICT
    title = "Verdict"
    version = 2
    inputs = (artifact.SEARCH,)
    sections = ("verdict",)

    def __init__(self, rules: VerdictRules = RULES) -> None:
        self.rules = rules

    def depends_on(self, config: Config) -> dict[str, Any]:
        return {"rules": asdict(self.rules)}

    def run(self, run: Run) -> Outcome:
        search, rate = run.folder / artifact.SEARCH, run.config.verdict.false_alarm_rate
        rounds = facts.of_manifest(facts.Searched, run.manifest(artifact.SEARCH)).rounds
        row_N, tried = read_candidates(search, rounds, self.rules.thumbnail_side)
        decision = decide(tried, rate, self.rules)
        triggers = with_ranking(read_rows(search, rounds, row_N[decision.kept_M.numpy()]), search)
        family_M = decision.family_N[decision.kept_M].numpy()
        triggers = triggers.append_column("family", pa.array(family_M, pa.int32()))
        triggers = triggers.append_column("rank", pa.array(np.arange(len(triggers)), pa.int32()))
        run.out.write_table(artifact.TRIGGERS, triggers.cast(artifact.TRIGGER_SCHEMA))
        found = as_verdict(tried, decision, rate)
        found.write(run.out)
        return Outcome(facts.Decided(found.verdict, len(found.families)))


def read_candidates(
    search: Folder, rounds: int, side: int = RULES.thumbnail_side
) -> tuple[np.ndarray, Candidates]:
    """Read what the verdict needs of every candidate.

    Args:
        search: the artifact of the search.
        rounds: its number of rounds.
        side: of the thumbnails, in pixels.

    Returns:
        row_N, the place of each candidate in the rounds' files, counted through; the candidates, best score
        first, with the ranking by the race, if there was one.
    """
    columns = ["image_id", "cluster", "score", "occlusion_flips"]
    table = pa.concat_tables([_round(search, i, columns) for i in range(rounds)])
    table = table.append_column("row", pa.array(np.arange(len(table)))).sort_by(ORDER)
    row_N = table["row"].to_numpy()
    landed, thumbnails = [], []
    # Crops and landings are most of a candidate's bytes: one round at a time is decoded.
    for i in range(rounds):
        part = _round(search, i, ["landed", "crop"])
        landed.append(np.stack(part["landed"].to_numpy(zero_copy_only=False)))
        thumbnails += [thumbnail(from_png(data), side) for data in part["crop"].to_pylist()]
    flip_test = search.read_table(artifact.FLIP_TEST, ["cluster"])
    raced, score_N, ranking_N = read_ranking(search), table["score"], None
    if raced is not None:
        # Evidence keeps the order by the first flip-test images.
        raced = raced.take(pc.index_in(table["image_id"], value_set=raced["image_id"]))
        score_N, ranking_N = raced["score"], torch.from_numpy(raced["rank"].to_numpy().argsort())
    tried = Candidates(
        cluster_N=torch.from_numpy(table["cluster"].to_numpy().astype(np.int64)),
        score_N=torch.from_numpy(score_N.to_numpy().astype(np.float64)),
        flips_N=torch.tensor(table["occlusion_flips"].to_pylist()),
        landed_NF=torch.from_numpy(np.concatenate(landed)[row_N]),
        thumbnail_NCss=torch.stack(thumbnails)[torch.tensor(row_N)],
        y_F=torch.from_numpy(flip_test["cluster"].to_numpy().astype(np.int64)),
        supercluster_K=torch.tensor(search.read_json(artifact.SUPERCLUSTERS)),
        ranking_N=ranking_N,
    )
    return row_N, tried


def with_ranking(triggers: pa.Table, search: Folder) -> pa.Table:
    """The triggers with their counts over all flip-test images that they were pasted on."""
    raced = read_ranking(search)
    if raced is None:
        return triggers
    own = raced.take(pc.index_in(triggers["image_id"], value_set=raced["image_id"]))
    for name in ("n_flip", *artifact.READINGS, "score"):
        triggers = triggers.set_column(triggers.column_names.index(name), name, own[name])
    return triggers


def read_rows(search: Folder, rounds: int, row_M: np.ndarray) -> pa.Table:
    """The candidates of these rows, counted through the rounds' files, without where their pastes landed."""
    columns = [name for name in artifact.CANDIDATE_SCHEMA.names if name in artifact.TRIGGER_SCHEMA.names]
    ascending, parts, first = np.sort(row_M), [], 0
    for i in range(rounds):
        part = _round(search, i, columns)
        here = ascending[(ascending >= first) & (ascending < first + len(part))]
        parts.append(part.take(pa.array(here - first)))
        first += len(part)
    return pa.concat_tables(parts).take(pa.array(np.searchsorted(ascending, row_M)))


def as_verdict(tried: Candidates, decision: Decision, false_alarm_rate: float) -> artifact.Verdict:
    """The decision as verdict.json holds it."""
    suspects, family_N = decision.suspects, decision.family_N

    def p_value(score: float | None) -> float | None:
        return suspects.null.p_value(score) if suspects.null and score is not None else None

    families = []
    for family in range(1, int(family_N.max()) + 1):
        own_N = family_N == family
        groups = decision.group_N[own_N].unique().tolist()
        best_group = max((suspects.score_U[u] for u in groups if u in suspects.score_U), default=None)
        best = int(tried.order_N[own_N[tried.order_N]][0])
        families.append(
            artifact.Family(
                family,
                best_score=float(tried.score_N[best]),
                p_value=p_value(best_group),
                n_candidates=int(own_N.sum()),
                cluster=int(tried.cluster_N[best]),
                ranks=tuple(own_N[decision.kept_M].nonzero()[:, 0].tolist()),
            )
        )
    best_group = max(suspects.score_U.values(), default=None)
    return artifact.Verdict(
        artifact.POISON if families else artifact.NO_EVIDENCE,
        false_alarm_rate,
        p_value(best_group),
        best_score=float(tried.score_N[tried.order_N[0]]),
        threshold=suspects.threshold if suspects.null else None,
        n_candidates=len(tried.score_N),
        best_group=best_group,
        group_scores=_falling(suspects.score_U.values()),
        null_scores=_falling(suspects.null_U.values()),
        families=tuple(families),
    )


def _round(search: Folder, number: int, columns: Sequence[str]) -> pa.Table:
    return (search / artifact.round_name(number)).read_table(artifact.CANDIDATES, list(columns))


def _falling(scores: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(score, 4) for score in sorted(scores, reverse=True))
