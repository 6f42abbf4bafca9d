"""A run's artifacts joined with the truth, on image_id.

P poisoned images   S poisoned images that the search scored   N rows of a part   K clusters
box_S4 integer [x0, y0, x1, y1) in encoder pixels   own_S the cluster an image was assigned to
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from poisoncam_ray.artifact import Folder, Manifest
from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.method.boxes import iou, map_box
from poisoncam_ray.stages.cluster import read_centroids

HIT_IOU = 0.5
"""A window finds a trigger from this intersection over union on (DESIGN §3)."""
SIDES = ["x0", "y0", "x1", "y1"]

Metrics = dict[str, float | int | None]


@dataclass(frozen=True)
class Truth:
    """The poisoned rows of the truth; the clean ones are only counted."""

    n_images: int
    poisoned: pa.Table

    def row(self, image_id: pa.ChunkedArray) -> np.ndarray:
        """Each image's row among the poisoned ones, -1 for a clean image."""
        return index_in(image_id, self.poisoned["image_id"])


@dataclass(frozen=True)
class Scored:
    """The poisoned images that the search scored: the recorded window, the true box, and how much of that
    the centre crop left (0 … 1); `pure_S`: more than half of the image's cluster is poison."""

    image_id: list[str]
    box_S4: Tensor
    true_S4: Tensor
    visible_S: Tensor
    own_S: Tensor
    pure_S: Tensor

    def marks(self, box_S4: Tensor) -> Metrics:
        """How well windows find the triggers, over all scored poisoned images and over poison clusters."""
        iou_S = iou(box_S4, self.true_S4)
        return {
            "accuracy": mean(iou_S >= HIT_IOU),
            "mean_iou": mean(iou_S),
            "accuracy_poison_clusters": mean(iou_S[self.pure_S] >= HIT_IOU),
            "mean_iou_poison_clusters": mean(iou_S[self.pure_S]),
        }


def read_truth(uri: str) -> Truth:
    """Raises UserError when there is none."""
    parent, _, name = uri.rpartition("/")
    folder = Folder(parent or ("/" if uri.startswith("/") else "."))
    if not folder.exists(name):
        raise UserError(f"There is no truth at {uri}: give the truth.parquet that the attack wrote.")
    columns = ["image_id", "poisoned", *SIDES]
    with folder.filesystem.open(f"{folder.path}/{name}", "rb") as raw, pq.ParquetFile(raw) as file:
        poisoned = [batch.filter(batch["poisoned"]) for batch in file.iter_batches(columns=columns)]
        schema = pa.schema([file.schema_arrow.field(column) for column in columns])
        return Truth(file.metadata.num_rows, pa.Table.from_batches(poisoned, schema))


def settings(run: Folder) -> Config:
    """What the run was made with."""
    if not run.exists("run.json"):
        raise UserError(f"{run.uri} is not a run folder: give the --output of a defence.")
    return Config.model_validate(run.read_json("run.json")["config"])


def artifact(run: Folder, name: str) -> Folder:
    """A committed artifact; UserError when the run has not got that far."""
    if Manifest.read(run / name) is None:
        raise UserError(f"The run {run.uri} has no finished {name}: let the defence run to its end first.")
    return run / name


def parts(run: Folder, name: str, columns: list[str]) -> Iterator[pa.Table]:
    folder = artifact(run, name)
    return (folder.read_table(part, columns) for part in folder.parts())


def candidates(run: Folder) -> pa.Table:
    """Every scored window of every round: bounded by the search's budget, not by the corpus."""
    search = artifact(run, "04_search")
    columns = ["image_id", "cluster", *SIDES, "score"]
    rounds = [search / name for name in search.names() if name.startswith("round=")]
    if not rounds:
        raise UserError(f"The search of the run {run.uri} scored no image: there is nothing to evaluate.")
    return pa.concat_tables([folder.read_table("candidates.parquet", columns) for folder in rounds])


def poison_clusters(run: Folder, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Of every poisoned image: its cluster (-1: it never got that far), and whether that is mostly poison."""
    cluster_P = np.full(len(truth.poisoned), -1)
    size_K = np.zeros(len(read_centroids(artifact(run, "03_clusters"))), np.int64)
    for part in parts(run, "03_clusters", ["image_id", "cluster"]):
        cluster_N = part["cluster"].to_numpy()
        size_K += np.bincount(cluster_N, minlength=len(size_K))
        row_N = truth.row(part["image_id"])
        cluster_P[row_N[row_N >= 0]] = cluster_N[row_N >= 0]
    poison_K = np.bincount(cluster_P[cluster_P >= 0], minlength=len(size_K))
    return cluster_P, (poison_K > size_K / 2)[cluster_P] & (cluster_P >= 0)


def scored_poisoned(run: Folder, truth: Truth, cluster_P: np.ndarray, pure_P: np.ndarray) -> Scored:
    """Takes what `poison_clusters` gives."""
    windows = candidates(run)
    row_C = truth.row(windows["image_id"])
    # One window an image, the first recorded; in the truth's order, so that fetching reads each shard once.
    row_S, first_S = np.unique(row_C, return_index=True)
    row_S, first_S = row_S[row_S >= 0], first_S[row_S >= 0]
    poisoned, recorded = truth.poisoned.take(row_S), windows.take(first_S)
    size_S2 = torch.ones(len(row_S), 2, dtype=torch.int64)
    for part in parts(run, "00_index", ["image_id", "width", "height"]):
        row_N = index_in(part["image_id"], poisoned["image_id"])
        size_N2 = np.stack([part["width"].to_numpy(), part["height"].to_numpy()], axis=1).astype(np.int64)
        size_S2[row_N[row_N >= 0]] = torch.from_numpy(size_N2[row_N >= 0])
    image_size = artifact(run, "01_encoder").read_json("config.json")["image_size"]
    true_S4, visible_S = map_box(_boxes(poisoned), size_S2[:, 0], size_S2[:, 1], image_size)
    return Scored(
        image_id=poisoned["image_id"].to_pylist(),
        box_S4=_boxes(recorded),
        true_S4=true_S4,
        visible_S=visible_S,
        own_S=torch.from_numpy(cluster_P[row_S]),
        pure_S=torch.from_numpy(pure_P[row_S]),
    )


def index_in(image_id: pa.ChunkedArray, ids: pa.ChunkedArray) -> np.ndarray:
    """Position of each image_id in `ids`, -1 where it is not one of them."""
    row_N = pc.index_in(image_id.cast(pa.string()), value_set=ids.cast(pa.string()))
    return pc.fill_null(row_N, -1).to_numpy().astype(np.int64)


def mean(value_N: Tensor | np.ndarray) -> float | None:
    """None of nothing."""
    return float(torch.as_tensor(value_N).double().mean()) if len(value_N) else None


def _boxes(table: pa.Table) -> Tensor:
    return torch.from_numpy(np.stack([table[side].to_numpy() for side in SIDES], axis=1).astype(np.int64))
