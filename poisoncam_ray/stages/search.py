"""Search: Cluster Activation Masking and poison scores, round by round.

Each round is committed on its own. The driver holds clusters, counters and a bounded pool of images a
cluster, never all rows.

N candidates   P images of the pool, also those picked   F flip-test images   C channels   H = W image side
B masks   K clusters   D feature dimensions   box_N4 integer [x0, y0, x1, y1)
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import ray
import torch
from torch import Tensor

from poisoncam_ray import metrics
from poisoncam_ray.artifact import SIDES, Folder
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.method import prune
from poisoncam_ray.method.boxes import about_centres
from poisoncam_ray.method.cam import candidate_windows, mean_colour
from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.method.gradcam import gradcam_windows
from poisoncam_ray.method.groups import group_clusters, group_gain
from poisoncam_ray.method.kmeans import assign, auto_k
from poisoncam_ray.method.masks import keep_only, make_masks
from poisoncam_ray.method.need import needed
from poisoncam_ray.method.paste import crop
from poisoncam_ray.method.refine import refine_windows
from poisoncam_ray.method.score import poison_scores
from poisoncam_ray.pipeline import Outcome, Run, Stage
from poisoncam_ray.stages.actors import Crew, spread
from poisoncam_ray.stages.cluster import read_centroids
from poisoncam_ray.stages.compute import device, set_up
from poisoncam_ray.stages.crops import to_png
from poisoncam_ray.stages.dataflow import RESTARTS, Pixels, fetch_images
from poisoncam_ray.stages.embed import embed_images, load_encoder
from poisoncam_ray.stages.pool import Pool, gather_pool, image_seed
from poisoncam_ray.stages.triggers import CANDIDATES, CANDIDATES_FILE, conclude

GROUPS = "groups.json"


class Search(Stage):
    name = "04_search"
    title = "Search"
    version = 14
    inputs = ("00_index", "01_encoder", "03_clusters")
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
        clusters = run.artifact("03_clusters")
        c_KD = read_centroids(clusters)
        k, g_K = len(c_KD), groups_of(run.out, c_KD, seed)
        if k < 2 and settings.score == "margin":
            raise UserError(
                "search.score=margin needs two clusters, and all images look alike to this encoder: use "
                "search.score=distance."
            )
        most = settings.per_cluster * prune.most_rounds(k, rules)
        pool = gather_pool(clusters, most, settings.flip_images, k)
        state = prune.start(pool.y_P, pool.n_clusters)
        turn_P = prune.turns(pool.y_P, seed)
        scorers = None
        while True:
            picks = prune.picks(state, rules, pool.y_P, turn_P).tolist()
            stopped = prune.reason_to_stop(state, rules, len(picks))
            if stopped:
                break
            folder = run.out / f"round={state.round:03d}"
            if not folder.exists("live.json"):
                scorers = scorers or start_scorers(run, pool, g_K)
                found = score_round(scorers, run, pool, picks, state)
                folder.write_table(CANDIDATES_FILE, found)
            table = folder.read_table(CANDIDATES_FILE, ["cluster", "score"])
            cluster_P, score_P = (torch.tensor(table[name].to_pylist()) for name in ("cluster", "score"))
            before = state
            state = prune.advance(state, rules, cluster_P, score_P)
            if not folder.exists("live.json"):
                best = {k: state.best[k] for k in before.live}
                folder.write_json(
                    "live.json", {"live": list(state.live), "best": best, "scored": state.scored}
                )
        evidence = conclude(run.out, state.round, g_K, pool.flip_y_F, settings.false_alarm_rate)
        n = len(evidence["families"])
        said = {0: "no evidence of poison", 1: "1 trigger family"}.get(n, f"{n} trigger families")
        facts = {
            "summary": f"{state.scored:,} candidates in {state.round} rounds, best score "
            f"{evidence['best_score']:.2f}: {said}",
            "verdict": evidence["verdict"],
            "families": n,
            "candidates": state.scored,
            "rounds": state.round,
            "stopped": stopped,
        }
        return Outcome(facts=facts)


def groups_of(out: Folder, c_KD: Tensor, seed: int) -> Tensor:
    """g_K, made once: on another machine the last bit of a distance may differ, and rounds that are done have
    counted by these groups."""
    if not out.exists(GROUPS):
        out.write_json(GROUPS, group_clusters(c_KD, seed).tolist())
    return torch.tensor(out.read_json(GROUPS))


def start_scorers(run: Run, pool: Pool, g_K: Tensor) -> Crew:
    """As many as the cluster may come to have room for; an autoscaler sees those that still wait."""
    resources = run.config.resources
    actor: Any = ray.remote(Scorer).options(
        num_cpus=resources.cpus_per_actor, num_gpus=resources.gpus_per_actor, max_restarts=RESTARTS
    )
    folders = (run.artifact("01_encoder"), run.artifact("03_clusters"))
    flip_FCHW = fetch_images(run.corpus, run.config, pool.flip_ids)
    return Crew.start(actor, resources.actors, run.config, run.corpus, *folders, flip_FCHW, g_K)


def score_round(scorers: Crew, run: Run, pool: Pool, picks: list[int], state: prune.SearchState) -> pa.Table:
    """CANDIDATES of the round, by cluster and image id."""
    size = run.config.search.chunk
    ids = pool.ids.take(pa.array(picks)).to_pylist()
    # Neighbours in the corpus share a row group: fetched together they are read once.
    ordered = sorted(zip(ids, pool.y_P[picks].tolist(), strict=True))
    chunks = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    # As tables: Python's numbers would take ten times the room of `landed`.
    found: list[pa.Table] = []
    done = state.scored
    for rows in spread(scorers, chunks):
        found.append(pa.Table.from_pylist(rows, schema=CANDIDATES))
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
        g_K: Tensor,
    ) -> None:
        set_up(config.resources)
        self.config, self.corpus, self.device = config, corpus, device()
        self.encoder = load_encoder(encoder)
        self.c_KD, self.g_K = read_centroids(clusters).to(self.device), g_K.to(self.device)
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
        """Columns of CANDIDATES, a row a window."""
        settings, fill_NC = self.config.search, mean_colour(x_NCHW)
        changed_N, gain_N, landed_NF = poison_scores(
            self.encoder, crop(x_NCHW, box_N4), self.x_FCHW, self.y_F, own_N, self.c_KD, seeds_N,
            settings.batch_size,
        )  # fmt: skip
        readings = {
            "changed": changed_N,
            "gain": gain_N,
            "group_gain": group_gain(landed_NF, self.y_F, own_N, self.g_K),
        }
        is_needed_N = needed(self.encoder, x_NCHW, box_N4, own_N, self.c_KD, fill_NC, settings.batch_size)
        score_N = readings[settings.reading].clamp(min=0) / len(self.y_F)
        return readings | {"score": score_N, "needed": is_needed_N, "landed": landed_NF}


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
