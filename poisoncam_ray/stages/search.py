"""Search: Cluster Activation Masking and poison scores, in rounds.

Each round is committed on its own. The driver holds the clusters, counters and a bounded pool of images of
each cluster, never all rows. After the last round the best candidates of all rounds race (ranking.py).

P images of the pool, also those picked   F flip-test images   K clusters   D feature dimensions
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from torch import Tensor

from poisoncam_ray import artifact, facts
from poisoncam_ray.artifact import CANDIDATE_SCHEMA
from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method import prune
from poisoncam_ray.method.clusters import auto_k, superclusters
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.actors import ActorGroup, run_on
from poisoncam_ray.stages.cluster import read_centroids
from poisoncam_ray.stages.pixels import fetch_images, images_of
from poisoncam_ray.stages.pool import Pool, gather_pool
from poisoncam_ray.stages.ranking import first_images, rank_candidates, read_round
from poisoncam_ray.stages.ray_cluster import RESTARTS, actors_at_most
from poisoncam_ray.stages.scorer import Chunk, Scorer

CALLS_AT_ONCE = 2
"""Of one actor: one reads and decodes its images while the other computes."""


class Search(Stage):
    name = artifact.SEARCH
    title = "Search"
    version = 21
    inputs = (artifact.INDEX, artifact.ENCODER, artifact.CLUSTERS)
    sections = ("encoder", "search")

    def depends_on(self, config: Config) -> dict[str, Any]:
        return {"resources.precision": config.resources.precision}

    def check(self, config: Config, rows: int | None) -> None:
        settings = config.search
        if rows is None:
            return
        first = settings.per_cluster * min(rows, config.cluster.k or auto_k(rows))
        if first > settings.max_candidates:
            raise UserError(
                f"search.max_candidates={settings.max_candidates} does not allow one round over the clusters "
                f"of {rows} images: set it to {first} or more (about {4 * first} lets the search come to its "
                "end), or set cluster.k lower."
            )

    def run(self, run: Run) -> Outcome:
        settings, seed = run.config.search, run.config.seed
        rules = rules_of(run.config)
        clusters = run.folder / artifact.CLUSTERS
        c_KD = read_centroids(clusters)
        k, supercluster_K = len(c_KD), superclusters_of(run.out, c_KD, seed)
        if k < 2 and settings.score == "margin":
            raise UserError(
                "search.score=margin needs two clusters, and this encoder puts all images into one: use "
                "search.score=distance."
            )
        most = settings.per_cluster * prune.most_rounds(k, rules)
        run.progress.update(0, note="reading the clusters of all images")
        pool = gather_pool(clusters, most, settings.flip_images, k, seed)
        scorers = cache(lambda: start_scorers(run, pool, supercluster_K))
        y_F, unchanged = flip_test(run.out, pool, first_images(settings, len(pool.flip_ids)), scorers)
        first_y_F = y_F[: first_images(settings, len(y_F))]
        state = prune.start(pool.y_P, pool.n_clusters)
        turn_P = prune.turns(pool.y_P, seed)
        while True:
            picks = prune.picks(state, rules, pool.y_P, turn_P).tolist()
            stopped = prune.reason_to_stop(state, rules, len(picks))
            if stopped:
                break
            folder = run.out / artifact.round_name(state.round)
            if not folder.exists(artifact.ROUND_STATE):
                found = score_round(scorers(), run, pool, picks, state, first_y_F)
                folder.write_table(artifact.CANDIDATES, found)
            table = folder.read_table(artifact.CANDIDATES, ["cluster", "score"])
            cluster_P, score_P = (torch.tensor(table[name].to_pylist()) for name in ("cluster", "score"))
            before = state
            state = prune.advance(state, rules, cluster_P, score_P)
            if not folder.exists(artifact.ROUND_STATE):
                best = {k: state.best[k] for k in before.live}
                folder.write_json(
                    artifact.ROUND_STATE, {"live": list(state.live), "best": best, "scored": state.scored}
                )
        rank_candidates(run, y_F, state.round, scorers)
        said = facts.Searched(
            state.scored,
            state.round,
            stopped,
            best_score=max(state.best),
            flip_images=len(y_F),
            unchanged_flips=unchanged,
            other_own=sum(count_other_own(run.out, i) for i in range(state.round)),
        )
        return Outcome(said)


def rules_of(config: Config) -> prune.SearchRules:
    """The rules of the search."""
    settings = config.search
    return prune.SearchRules(
        settings.per_cluster,
        settings.prune,
        settings.min_live,
        settings.max_rounds,
        settings.max_candidates,
    )


def superclusters_of(out: Folder, c_KD: Tensor, seed: int) -> Tensor:
    """The supercluster of each cluster, supercluster_K: computed once, and read by a resumed search.

    On another machine the last bit of a distance may differ, and committed rounds have used these.
    """
    if not out.exists(artifact.SUPERCLUSTERS):
        out.write_json(artifact.SUPERCLUSTERS, superclusters(c_KD, seed).tolist())
    return torch.tensor(out.read_json(artifact.SUPERCLUSTERS))


def flip_test(
    out: Folder, pool: Pool, first: int, scorers: Callable[[], ActorGroup]
) -> tuple[list[int], int]:
    """The clusters of the flip-test images, and how many of the images leave theirs unchanged: computed once,
    by the actors, at the precision of the pastes, and read by a resumed search.

    Writes FLIP_TEST for the verdict: the `first` images, which every candidate is pasted on.
    """
    if not out.exists(artifact.FLIP_CLUSTERS):
        (found,) = run_on(scorers(), [None], "flip_clusters")
        out.write_json(artifact.FLIP_CLUSTERS, {"clusters": found[0], "unchanged_flips": found[1]})
    made = out.read_json(artifact.FLIP_CLUSTERS)
    columns = {"image_id": pool.flip_ids[:first], "cluster": made["clusters"][:first]}
    out.write_table(artifact.FLIP_TEST, pa.table(columns, schema=artifact.FLIP_TEST_SCHEMA))
    return made["clusters"], made["unchanged_flips"]


def count_other_own(search: Folder, number: int) -> int:
    """How many images of a round rounding has moved out of the cluster of their stored feature."""
    table = read_round(search, number, ["cluster", "own"])
    return pc.sum(pc.not_equal(table["cluster"], table["own"])).as_py() or 0


def start_scorers(run: Run, pool: Pool, supercluster_K: Tensor) -> ActorGroup:
    """Start as many scorers as a stage may have. Those without a node wait, and an autoscaler sees them."""
    resources = run.config.resources
    actor: Any = ray.remote(Scorer).options(
        num_cpus=resources.cpus_per_actor,
        num_gpus=resources.gpus_per_actor,
        max_restarts=RESTARTS,
        max_concurrency=CALLS_AT_ONCE,
    )
    folders = (run.folder / artifact.ENCODER, run.folder / artifact.CLUSTERS)
    images = images_of(run.corpus, run.config, run.folder / artifact.INDEX)
    flip_FCHW = fetch_images(images, run.config, pool.flip_ids)
    n = actors_at_most(resources, run.config.pretrain.workers)
    return ActorGroup.start(actor, n, run.config, images, *folders, flip_FCHW, supercluster_K)


def score_round(
    scorers: ActorGroup, run: Run, pool: Pool, picks: list[int], state: prune.SearchState, y_F: list[int]
) -> pa.Table:
    """Find and score the candidates of one round.

    Args:
        scorers: the actors.
        run: the run.
        pool: the images that the search draws from.
        picks: places in the pool of the images of this round.
        state: the search before the round.
        y_F: the clusters of the flip-test images that are pasted on.

    Returns:
        The candidates (CANDIDATE_SCHEMA), sorted by cluster and image id.
    """
    size = run.config.search.chunk
    ids = pool.ids.take(pa.array(picks)).to_pylist()
    # Sorted by id: images of one row group come into one chunk, and the row group is read once.
    ordered = sorted(zip(ids, pool.y_P[picks].tolist(), strict=True))
    chunks = [Chunk(ordered[i : i + size], y_F) for i in range(0, len(ordered), size)]
    # As tables: `landed` as Python numbers needs far more memory.
    found: list[pa.Table] = []
    done = state.scored
    # Later rounds score fewer where clusters run out of images.
    most = done + len(picks) + prune.most_after(state, rules_of(run.config))
    note = f"round {state.round + 1}, {len(state.live):,} live clusters"
    run.progress.update(done, most, "candidates", note)
    for rows in run_on(scorers, chunks, at_once=CALLS_AT_ONCE):
        found.append(pa.Table.from_pylist(rows, schema=CANDIDATE_SCHEMA))
        done += len(rows)
        run.progress.update(done, most, "candidates", note)
    return pa.concat_tables(found).sort_by([("cluster", "ascending"), ("image_id", "ascending")])
