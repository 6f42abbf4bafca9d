"""Search: Cluster Activation Masking and poison scores, in rounds.

Each round is committed on its own. The driver holds the clusters, counters and a bounded pool of images of
each cluster, never all rows.

N candidates   P images of the pool, also those picked   F flip-test images   C channels   H = W image side
B masks   K clusters   D feature dimensions   box_N4 integer [x0, y0, x1, y1)
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
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
from poisoncam_ray.method.cam import gradcam_windows, mean_colour, refine_windows, windows_in_one_pass
from poisoncam_ray.method.clusters import assign, auto_k, superclusters
from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.method.geometry import about_centres, crop
from poisoncam_ray.method.masked import Hiding
from poisoncam_ray.method.masks import cell_of_patches, keep_only, make_masks
from poisoncam_ray.method.score import occlusion_flips, poison_scores, supercluster_gain
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.actors import ActorGroup, run_on
from poisoncam_ray.stages.cluster import read_centroids
from poisoncam_ray.stages.compute import device, set_up
from poisoncam_ray.stages.crops import to_png
from poisoncam_ray.stages.embed import embed_images, load_encoder
from poisoncam_ray.stages.pixels import Pixels, fetch_images
from poisoncam_ray.stages.pool import Pool, gather_pool, image_seed
from poisoncam_ray.stages.ray_cluster import RESTARTS, actors_at_most


class Search(Stage):
    name = artifact.SEARCH
    title = "Search"
    version = 17
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
        return Outcome(facts.Searched(state.scored, state.round, stopped, best_score=max(state.best)))


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


def flip_test_table(pool: Pool) -> pa.Table:
    """The flip-test images and their clusters, as the verdict needs them."""
    columns = {"image_id": pool.flip_ids, "cluster": pool.flip_y_F.tolist()}
    return pa.table(columns, schema=artifact.FLIP_TEST_SCHEMA)


def start_scorers(run: Run, pool: Pool, supercluster_K: Tensor) -> ActorGroup:
    """Start as many scorers as a stage may have. Those without a node wait, and an autoscaler sees them."""
    resources = run.config.resources
    actor: Any = ray.remote(Scorer).options(
        num_cpus=resources.cpus_per_actor, num_gpus=resources.gpus_per_actor, max_restarts=RESTARTS
    )
    folders = (run.folder / artifact.ENCODER, run.folder / artifact.CLUSTERS)
    flip_FCHW = fetch_images(run.corpus, run.config, pool.flip_ids)
    n = actors_at_most(resources)
    return ActorGroup.start(actor, n, run.config, run.corpus, *folders, flip_FCHW, supercluster_K)


def score_round(
    scorers: ActorGroup, run: Run, pool: Pool, picks: list[int], state: prune.SearchState
) -> pa.Table:
    """Find and score the candidates of one round.

    Args:
        scorers: the actors.
        run: the run.
        pool: the images that the search draws from.
        picks: places in the pool of the images of this round.
        state: the search before the round.

    Returns:
        The candidates (CANDIDATE_SCHEMA), sorted by cluster and image id.
    """
    size = run.config.search.chunk
    ids = pool.ids.take(pa.array(picks)).to_pylist()
    # Sorted by id: images of one row group come into one chunk, and the row group is read once.
    ordered = sorted(zip(ids, pool.y_P[picks].tolist(), strict=True))
    chunks = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    # As tables: `landed` as Python numbers needs far more memory.
    found: list[pa.Table] = []
    done = state.scored
    # Later rounds score fewer where clusters run out of images.
    most = done + len(picks) + prune.most_after(state, rules_of(run.config))
    note = f"round {state.round + 1}, {len(state.live):,} live clusters"
    run.progress.update(done, most, "candidates", note)
    for rows in run_on(scorers, chunks):
        found.append(pa.Table.from_pylist(rows, schema=CANDIDATE_SCHEMA))
        done += len(rows)
        run.progress.update(done, most, "candidates", note)
    return pa.concat_tables(found).sort_by([("cluster", "ascending"), ("image_id", "ascending")])


class Scorer:
    """The actor: holds encoder, centroids and flip-test images; finds and scores candidates."""

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
        self.m_BHW = search_masks(config, self.encoder)

    @ray.method(max_task_retries=-1)
    def ready(self) -> None:
        """Return when the actor is up, also after a restart on another node."""

    def work(self, chunk: list[tuple[str, int]]) -> list[dict[str, Any]]:
        """Find the candidate trigger of each image and score it at every scale.

        Args:
            chunk: image ids, each with the cluster that its stored feature lies in. Rounding can move an
                image at a boundary, so masks and pastes are compared with the cluster found beside them.

        Returns:
            A row of CANDIDATE_SCHEMA for each image: the scale of its best score.
        """
        ids = [image_id for image_id, _ in chunk]
        pixels = torch.from_numpy(fetch_images(self.corpus, self.config, ids))
        x_NCHW = pixels.to(self.device).float() / 255
        own_N, box_N4 = find_windows(self.config, self.encoder, x_NCHW, self.c_KD, self.m_BHW)
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
        """Columns of CANDIDATE_SCHEMA, one row for each window."""
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
            self.encoder, x_NCHW, box_N4, own_N, self.c_KD, fill_NC, settings.batch_size,
            hiding_of(self.config, self.encoder),
        )  # fmt: skip
        score_N = readings[settings.reading].clamp(min=0) / len(self.y_F)
        return readings | {"score": score_N, "occlusion_flips": flips_N, "landed": landed_NF}


def hiding_of(config: Config, encoder: Encoder) -> Hiding:
    """How masks hide pixels from this encoder."""
    return config.search.hiding if encoder.is_vit else "paint"


def search_masks(config: Config, encoder: Encoder) -> Tensor | None:
    """The masks m_BHW of the configured strategy; None for Grad-CAM, which uses none.

    Where tokens are dropped, cells are made of whole patches.
    """
    settings, cell = config.search, config.cell_px
    if settings.strategy == "gradcam":
        return None
    if hiding_of(config, encoder) == "drop" and encoder.patch_size:
        cell = cell_of_patches(cell, encoder.patch_size)
    generator = torch.Generator().manual_seed(config.seed)
    side = config.encoder.image_size
    return make_masks(settings.strategy, settings.masks, side, cell, config.window_px, generator)


def find_windows(
    config: Config, encoder: Encoder, x_NCHW: Tensor, c_KD: Tensor, m_BHW: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Find each image's cluster, and its candidate trigger by the configured strategy.

    Args:
        config: the configuration.
        encoder: the encoder.
        x_NCHW: images, floats in [0, 1].
        c_KD: the centroids.
        m_BHW: the masks, from `search_masks`.

    Returns:
        own_N, the clusters, and box_N4 in pixels of x_NCHW.
    """
    settings, fill_NC, hiding = config.search, mean_colour(x_NCHW), hiding_of(config, encoder)
    if m_BHW is None or settings.strategy == "gradcam":
        with torch.no_grad():
            own_N, _ = assign(encoder.embed(x_NCHW), c_KD)
        box_N4 = gradcam_windows(encoder, x_NCHW, own_N, c_KD, config.window_px, settings.batch_size)
    else:
        keep_B = keep_only(settings.strategy, len(m_BHW))
        own_N, box_N4, _ = windows_in_one_pass(
            encoder, x_NCHW, c_KD, m_BHW, settings.score, keep_B, config.window_px, fill_NC,
            settings.batch_size, hiding,
        )  # fmt: skip
    if settings.refine:
        box_N4 = refine_windows(
            encoder, x_NCHW, box_N4, own_N, c_KD, settings.score, fill_NC, settings.batch_size, hiding,
            settings.refine_hidden,
        )  # fmt: skip
    return own_N, box_N4
