"""The poisoned images of one run that a study measures, their true boxes, and their clusters for every K.

No image is embedded again: k-means runs on the features that the run stored.

P poisoned images   S measured images   N features   K clusters   D feature dimensions
T most patches on one image   true_ST4 integer [x0, y0, x1, y1) in encoder pixels
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from poisoncam_ray import artifact
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.clusters import assign, auto_k, kmeans
from poisoncam_ray.research.evaluate.joined import clusters_of_poison, committed, read_truth
from poisoncam_ray.research.evaluate.scored import true_boxes
from poisoncam_ray.research.study.flops import forward_flops, gradcam_flops
from poisoncam_ray.research.study.grid import Grid
from poisoncam_ray.research.study.runs import StudyRun
from poisoncam_ray.runner import config_of
from poisoncam_ray.stages.cluster import read_sample, sample_parts
from poisoncam_ray.stages.embed import load_encoder, read_features
from poisoncam_ray.stages.pool import image_seed

CENTROIDS, FACTS, IMAGES = "centroids.safetensors", "facts.json", "images.parquet"


@dataclass(frozen=True)
class StudyImages:
    """The measured images of a run. Each has a true box.

    Attributes:
        image_id: their ids.
        true_ST4: their true boxes.
        own_S: for every K factor, the image's cluster.
        pure_S: for every K factor, whether more than half of that cluster is poison.
        c_KD: for every K factor, the centroids.
        poison_rate: the share of the corpus that is poisoned.
        flops_forward: floating-point operations of one forward pass.
        flops_gradcam: floating-point operations of one Grad-CAM map.
    """

    image_id: list[str]
    true_ST4: Tensor
    own_S: dict[float, Tensor]
    pure_S: dict[float, Tensor]
    c_KD: dict[float, Tensor]
    poison_rate: float
    flops_forward: int
    flops_gradcam: int


def prepare(one: StudyRun, grid: Grid, out: Folder) -> None:
    """Choose the images, cluster the features, and write both for `read_images`, the images last.

    Args:
        one: the run.
        grid: the grid.
        out: the run's folder in the study.

    Raises:
        UserError: no poisoned image of the run has a true box, or its encoder has no tokens to drop.
    """
    run, truth = Folder(one.run_uri), read_truth(one.truth_uri)
    config = config_of(run)
    encoder = load_encoder(committed(run, artifact.ENCODER), config.resources.precision)
    if "drop" in grid.hidings and encoder.patch_size is None:
        raise UserError(
            f"The encoder of the run {one.run_uri} is no ViT and has no tokens to drop: leave drop "
            "out of hidings."
        )
    true_PT4, patched_P = true_boxes(run, truth.poisoned)
    ids = truth.poisoned["image_id"].to_pylist()
    patched = np.flatnonzero(patched_P.numpy())
    if not len(patched):
        raise UserError(f"No poisoned image of the run {one.run_uri} has a box in the truth: leave it out.")
    drawn = sorted(patched, key=lambda row: image_seed(grid.seed, f"{one.name}:{ids[row]}"))
    row_S = np.sort(drawn[: grid.images])

    features = committed(run, artifact.FEATURES)
    rows = [features.rows(name) for name in features.parts()]
    f_ND = read_sample(features, sample_parts(rows, config.cluster.sample, config.seed), config.seed)
    n_rows, centroids = sum(rows), {}
    columns: dict[str, np.ndarray] = {}
    for i, factor in enumerate(grid.k_factors):
        k = min(auto_k(n_rows, factor), len(f_ND))
        centroids[f"c_{i}"] = c_KD = kmeans(f_ND, k, config.cluster.iterations, config.seed)
        cluster_P, pure_P = clusters_of_poison(truth, _assigned(features, c_KD), len(c_KD))
        columns |= {f"own_{i}": cluster_P[row_S], f"pure_{i}": pure_P[row_S]}
    out.write_tensors(CENTROIDS, centroids)
    facts = {
        "poison_rate": len(truth.poisoned) / max(1, truth.n_images),
        "flops_forward": forward_flops(encoder),
        "flops_gradcam": gradcam_flops(encoder),
    }
    out.write_json(FACTS, facts)
    boxes = true_PT4[torch.from_numpy(row_S)].flatten(1).tolist()
    out.write_table(IMAGES, pa.table({"image_id": [ids[row] for row in row_S], "boxes": boxes, **columns}))


def read_images(out: Folder, grid: Grid) -> StudyImages:
    """What `prepare` wrote."""
    images, centroids = out.read_table(IMAGES), out.read_tensors(CENTROIDS)
    keys = list(enumerate(grid.k_factors))
    return StudyImages(
        image_id=images["image_id"].to_pylist(),
        true_ST4=torch.tensor(images["boxes"].to_pylist()).unflatten(1, (-1, 4)),
        own_S={factor: torch.from_numpy(images[f"own_{i}"].to_numpy().copy()) for i, factor in keys},
        pure_S={
            factor: torch.from_numpy(images[f"pure_{i}"].to_numpy(zero_copy_only=False).copy())
            for i, factor in keys
        },
        c_KD={factor: centroids[f"c_{i}"] for i, factor in keys},
        **out.read_json(FACTS),
    )


def _assigned(features: Folder, c_KD: Tensor) -> Iterator[tuple[pa.ChunkedArray, np.ndarray]]:
    for name in features.parts():
        ids, f_ND = read_features(features, name)
        yield pa.chunked_array([ids], pa.string()), assign(f_ND, c_KD)[0].numpy()
