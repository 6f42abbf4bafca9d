"""Search: Cluster Activation Masking and poison scores, round by round.

Each round is committed on its own. The driver holds clusters, counters and a bounded pool of images a
cluster, never all rows.

N candidates   P images of the pool, also those picked   F flip-test images   C channels   H = W image side
B masks   K clusters   D feature dimensions   box_N4 integer [x0, y0, x1, y1)
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from torch import Tensor

from poisoncam_ray import artifact, facts, metrics
from poisoncam_ray.artifact import CANDIDATE_SCHEMA, SIDES
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method import prune
from poisoncam_ray.method.cam import candidate_windows, gradcam_windows, mean_colour, refine_windows
from poisoncam_ray.method.clusters import assign, auto_k, superclusters
from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.method.geometry import about_centres, crop
from poisoncam_ray.method.masks import keep_only, make_masks
from poisoncam_ray.method.score import occlusion_flips, poison_scores, supercluster_gain
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.actors import ActorGroup, spread
from poisoncam_ray.stages.cluster import read_centroids
from poisoncam_ray.stages.compute import device, set_up
from poisoncam_ray.stages.crops import to_png
from poisoncam_ray.stages.dataflow import RESTARTS, Pixels, fetch_images
from poisoncam_ray.stages.embed import embed_images, load_encoder
from poisoncam_ray.stages.pool import Pool, gather_pool, image_seed


class Search(Stage):
    name = artifact.SEARCH
    title = "Search"
    version = 15
    inputs = (artifact.INDEX, artifact.ENCODER, artifact.CLUSTERS)
    sections = ("encoder", "search")

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
        rules = prune.SearchRules(
            settings.per_cluster,
            settings.prune,
            settings.min_live,
            settings.max_rounds,
            settings.max_candidates,
        )
        clusters = run.folder / artifact.CLUSTERS
        c_KD = read_centroids(clusters)
        k, supercluster_K = len(c_KD), superclusters_of(run.out, c_KD, seed)
        if k < 2 and settings.score == "margin":
            raise UserError(
                "search.score=margin needs two clusters, and all images look alike to this encoder: use "
                "search.score=distance."
            )
        most = settings.per_cluster * prune.most_rounds(k, rules)
        pool = gather_pool(clusters, most, settings.flip_images, k)
        run.out.write_table(artifact.FLIP_TEST, flip_test_table(pool))
        state = prune.start(pool.y_P, pool.n_clusters)
        turn_P = prune.turns(pool.y_P, seed)
        scorers = None
        while True:
            picks = prune.picks(state, rules, pool.y_P, turn_P).tolist()
            stopped = prune.reason_to_stop(state, rules, len(picks))
            if stopped:
                break
            folder = run.out / artifact.round_name(state.round)
            if not folder.exists(artifact.ROUND_STATE):
                scorers = scorers or start_scorers(run, pool, supercluster_K)
                found = score_round(scorers, run, pool, picks, state)
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
        tables = [
            (run.out / artifact.round_name(i)).read_table(artifact.CANDIDATES, ["score"])
            for i in range(state.round)
        ]
        best = max(pc.max(table["score"]).as_py() for table in tables)
        return Outcome(facts.Searched(state.scored, state.round, stopped, best))


def superclusters_of(out: Folder, c_KD: Tensor, seed: int) -> Tensor:
    """supercluster_K, made once and stored: on another machine the last bit of a distance may differ, and the
    rounds that are done have counted by these superclusters."""
    if not out.exists(artifact.SUPERCLUSTERS):
        out.write_json(artifact.SUPERCLUSTERS, superclusters(c_KD, seed).tolist())
    return torch.tensor(out.read_json(artifact.SUPERCLUSTERS))


def flip_test_table(pool: Pool) -> pa.Table:
    """The flip-test images and their clusters, as the verdict needs them."""
    columns = {"image_id": pool.flip_ids, "cluster": pool.flip_y_F.tolist()}
    return pa.table(columns, schema=artifact.FLIP_TEST_SCHEMA)


def start_scorers(run: Run, pool: Pool, supercluster_K: Tensor) -> ActorGroup:
    """As many as the cluster may come to have room for; an autoscaler sees those that still wait."""
    resources = run.config.resources
    actor: Any = ray.remote(Scorer).options(
        num_cpus=resources.cpus_per_actor, num_gpus=resources.gpus_per_actor, max_restarts=RESTARTS
    )
    folders = (run.folder / artifact.ENCODER, run.folder / artifact.CLUSTERS)
    flip_FCHW = fetch_images(run.corpus, run.config, pool.flip_ids)
    return ActorGroup.start(
        actor, resources.actors, run.config, run.corpus, *folders, flip_FCHW, supercluster_K
    )


def score_round(
    scorers: ActorGroup, run: Run, pool: Pool, picks: list[int], state: prune.SearchState
) -> pa.Table:
    """The candidates of the round, by cluster and image id."""
    size = run.config.search.chunk
    ids = pool.ids.take(pa.array(picks)).to_pylist()
    # Neighbours in the corpus share a row group: fetched together they are read once.
    ordered = sorted(zip(ids, pool.y_P[picks].tolist(), strict=True))
    chunks = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    # As tables: Python's numbers would take ten times the room of `landed`.
    found: list[pa.Table] = []
    done = state.scored
    for rows in spread(scorers, chunks):
        found.append(pa.Table.from_pylist(rows, schema=CANDIDATE_SCHEMA))
        done += len(rows)
        run.progress.update(
            f"round {state.round}: {len(state.live)} live clusters, {done:,} candidates scored"
        )
    return pa.concat_tables(found).sort_by([("cluster", "ascending"), ("image_id", "ascending")])


class Scorer:
    """An actor that finds and scores candidates; holds encoder, centroids and flip-test images."""

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        encoder: Folder,
        clusters: Folder,
        x_FCHW: Pixels,
        supercluster_K: Tensor,
    ) -> None:
        set_up(config.resources)
        self.config, self.corpus, self.device = config, corpus, device()
        self.encoder = load_encoder(encoder)
        self.c_KD = read_centroids(clusters).to(self.device)
        self.supercluster_K = supercluster_K.to(self.device)
        flip_FCHW = torch.from_numpy(x_FCHW.copy())
        f_FD = embed_images(self.encoder, flip_FCHW, config.search.batch_size).to(self.device)
        self.y_F = assign(f_FD, self.c_KD)[0]
        self.x_FCHW = flip_FCHW.to(self.device).float() / 255
        self.m_BHW = search_masks(config)

    @ray.method(max_task_retries=-1)
    def ready(self) -> None:
        """Returns once the actor stands, also after it has been started again elsewhere."""

    def work(self, chunk: list[tuple[str, int]]) -> list[dict[str, Any]]:
        ids = [image_id for image_id, _ in chunk]
        pixels = torch.from_numpy(fetch_images(self.corpus, self.config, ids))
        x_NCHW = pixels.to(self.device).float() / 255
        own_N = torch.tensor([cluster for _, cluster in chunk], device=self.device)
        box_N4 = find_windows(self.config, self.encoder, x_NCHW, own_N, self.c_KD, self.m_BHW)
        seeds_N = torch.tensor([image_seed(self.config.seed, image_id) for image_id in ids])
        sizes = self.config.scales_px
        scaled = [about_centres(box_N4, size, x_NCHW.shape[-1]) for size in sizes]
        tried = [self._score(x_NCHW, own_N, box_N4, seeds_N) for box_N4 in scaled]
        # Among equal scores the first scale wins.
        best_N = torch.stack([columns["score"] for columns in tried]).argmax(dim=0).tolist()
        metrics.count("rows", len(ids), stage=Search.title)
        listed = [{name: column.tolist() for name, column in columns.items()} for columns in tried]
        return [
            {
                "image_id": image_id,
                "cluster": cluster,
                **dict(zip(SIDES, scaled[scale][i].tolist(), strict=True)),
                **{name: column[i] for name, column in listed[scale].items()},
                "n_flip": len(self.y_F),
                "crop": to_png(crop(x_NCHW[i : i + 1], scaled[scale][i : i + 1])[0]),
            }
            for i, ((image_id, cluster), scale) in enumerate(zip(chunk, best_N, strict=True))
        ]

    def _score(self, x_NCHW: Tensor, own_N: Tensor, box_N4: Tensor, seeds_N: Tensor) -> dict[str, Tensor]:
        """Columns of the candidates, a row a window."""
        settings, fill_NC = self.config.search, mean_colour(x_NCHW)
        changed_N, gain_N, landed_NF = poison_scores(
            self.encoder, crop(x_NCHW, box_N4), self.x_FCHW, self.y_F, own_N, self.c_KD, seeds_N,
            settings.batch_size,
        )  # fmt: skip
        readings = {
            "changed": changed_N,
            "gain": gain_N,
            "supercluster_gain": supercluster_gain(landed_NF, self.y_F, own_N, self.supercluster_K),
        }
        flips_N = occlusion_flips(
            self.encoder, x_NCHW, box_N4, own_N, self.c_KD, fill_NC, settings.batch_size
        )
        score_N = readings[settings.reading].clamp(min=0) / len(self.y_F)
        return readings | {"score": score_N, "occlusion_flips": flips_N, "landed": landed_NF}


def search_masks(config: Config) -> Tensor | None:
    """m_BHW; None for Grad-CAM, which hides nothing."""
    settings = config.search
    if settings.strategy == "gradcam":
        return None
    generator = torch.Generator().manual_seed(config.seed)
    side = config.encoder.image_size
    return make_masks(settings.strategy, settings.masks, side, config.cell_px, config.window_px, generator)


def find_windows(
    config: Config, encoder: Encoder, x_NCHW: Tensor, own_N: Tensor, c_KD: Tensor, m_BHW: Tensor | None
) -> Tensor:
    """box_N4 of the candidate trigger of each image, by the configured strategy."""
    settings, fill_NC = config.search, mean_colour(x_NCHW)
    if m_BHW is None or settings.strategy == "gradcam":
        box_N4 = gradcam_windows(encoder, x_NCHW, own_N, c_KD, config.window_px, settings.batch_size)
    else:
        keep_B = keep_only(settings.strategy, len(m_BHW))
        box_N4, _ = candidate_windows(
            encoder, x_NCHW, own_N, c_KD, m_BHW, settings.score, keep_B, config.window_px, fill_NC,
            settings.batch_size,
        )  # fmt: skip
    if not settings.refine:
        return box_N4
    return refine_windows(encoder, x_NCHW, box_N4, own_N, c_KD, settings.score, fill_NC, settings.batch_size)
