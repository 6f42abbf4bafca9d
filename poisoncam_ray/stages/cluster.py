"""Cluster: k-means on a bounded sample of the features, then the nearest centroid of every image.

N images   K clusters   D feature dimensions
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from poisoncam_ray import artifact, facts, metrics
from poisoncam_ray.config import Config, Resources
from poisoncam_ray.corpus import Slice
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, Ledger, part_name
from poisoncam_ray.method.clusters import assign, auto_k, kmeans
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.compute import set_up
from poisoncam_ray.stages.dataflow import fill_parts, stream_slices
from poisoncam_ray.stages.embed import read_features
from poisoncam_ray.stages.pool import PARTS_AT_ONCE, image_seed
from poisoncam_ray.stages.ray_cluster import RESTARTS
from poisoncam_ray.store import in_parallel

# Parts that k-means reads at most, however large the corpus.
PARTS_READ = 4096
SAY_EVERY_S = 1.0


class Cluster(Stage):
    name = artifact.CLUSTERS
    title = "Cluster"
    version = 2
    inputs = (artifact.INDEX, artifact.FEATURES)
    sections = ("cluster",)

    def check(self, config: Config, rows: int | None) -> None:
        k = config.cluster.k
        if rows is not None and rows < (k or 2):
            raise UserError(f"cluster.k={k or 2} is more than the {rows} images there are: lower it.")

    def run(self, run: Run) -> Outcome:
        settings = run.config.cluster
        rows = run.slice_rows()
        k = settings.k or auto_k(sum(rows))
        chosen = sample_parts(rows, settings.sample, run.config.seed)
        if k > sum(n for _, n in chosen):
            raise UserError(
                f"cluster.sample={settings.sample} is too small a sample for {k} clusters: raise it."
            )
        features = run.folder / artifact.FEATURES
        if not run.out.exists(artifact.CENTROIDS):
            task = ray.remote(fit_centroids).options(
                num_cpus=run.config.resources.cpus_per_actor, num_gpus=0, max_retries=RESTARTS
            )
            fitted = task.remote(
                features, run.out, chosen, k, settings.iterations, run.config.seed, run.config.resources
            )
            rows_read = sum(n for _, n in chosen)
            note = f"k-means: {k:,} clusters of {rows_read:,} features, {settings.iterations} iterations"
            while not ray.wait([fitted], timeout=SAY_EVERY_S)[0]:
                run.progress.update(0, note=note)
            ray.get(fitted)
        work = partial(assign_slice, features=features, out=run.out, seed=run.config.seed)
        done = fill_parts(run, lambda todo: stream_slices(run, todo, work))
        said = facts.Clustered(len(read_centroids(run.out)), done.reused)
        return Outcome(said, Ledger(sum(rows), done.rows))


def read_centroids(folder: Folder) -> torch.Tensor:
    """The centroids c_KD, float32."""
    return folder.read_tensors(artifact.CENTROIDS)["centroids_KD"]


def sample_parts(rows: list[int], most: int, seed: int) -> list[tuple[str, int]]:
    """Choose the rows that k-means is fitted to: the same share of every part.

    Args:
        rows: rows of each part.
        most: rows of the sample, at most; every part that is read gives at least one.
        seed: draws PARTS_READ of the parts, where there are more.

    Returns:
        Names of the parts, and how many rows to take of each.
    """
    filled = [i for i, n in enumerate(rows) if n]
    if len(filled) > PARTS_READ:
        drawn = np.random.default_rng(seed).choice(len(filled), PARTS_READ, replace=False)
        filled = [filled[i] for i in sorted(drawn)]
    share = min(1.0, most / max(1, sum(rows[i] for i in filled)))
    return [(part_name(i), int(rows[i] * share) or 1) for i in filled]


def fit_centroids(
    features: Folder,
    out: Folder,
    parts: list[tuple[str, int]],
    k: int,
    iterations: int,
    seed: int,
    resources: Resources,
) -> None:
    """The task on a worker: k-means on the sample `parts`, and its centroids written to `out`."""
    set_up(resources, processes=1)
    c_KD = kmeans(read_sample(features, parts, seed), k, iterations, seed)
    out.write_tensors(artifact.CENTROIDS, {"centroids_KD": c_KD})


def read_sample(features: Folder, parts: list[tuple[str, int]], seed: int) -> torch.Tensor:
    """f_ND of a sample that `sample_parts` has chosen; the seed draws the rows within each part."""
    generator = torch.Generator().manual_seed(seed)
    sample = []
    for first in range(0, len(parts), PARTS_AT_ONCE):
        some = parts[first : first + PARTS_AT_ONCE]
        tables = in_parallel(lambda part: read_features(features, part[0]), some)
        for (_, n), (_, f_ND) in zip(some, tables, strict=True):
            sample.append(f_ND[torch.randperm(len(f_ND), generator=generator)[:n].sort().values])
    return torch.cat(sample)


def assign_slice(slice_: Slice, features: Folder, out: Folder, seed: int) -> dict[str, Any]:
    """The task on a slice: the nearest centroid of each image, written as the slice's part."""
    ids, f_ND = read_features(features, part_name(slice_.index))
    y_N, distance_N = assign(f_ND, read_centroids(out))
    columns = {
        "image_id": ids,
        "cluster": y_N.numpy().astype(np.int32),
        "distance": distance_N.numpy(),
        "draw": [image_seed(seed, image_id) for image_id in ids],
    }
    out.write_table(part_name(slice_.index), pa.table(columns, schema=artifact.CLUSTER_SCHEMA))
    metrics.count("rows", len(ids), stage=Cluster.title)
    return {"index": slice_.index}
