"""A run's artifacts, joined with the truth on image_id.

P poisoned images   N rows of a part   K clusters
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from poisoncam_ray import artifact
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, Manifest
from poisoncam_ray.stages.cluster import read_centroids

NEEDED = ("image_id", "poisoned", *SIDES)
OPTIONAL = ("target", "boxes", "decoy")
"""Columns that a truth may lack."""

Metrics = dict[str, float | int | None]


@dataclass(frozen=True)
class Truth:
    """What the attack did.

    Attributes:
        n_images: number of images of the corpus.
        poisoned: the rows of poisoned images, with the columns NEEDED and those of OPTIONAL that exist.
        decoys: the rows of clean images with a trigger that means nothing.
    """

    n_images: int
    poisoned: pa.Table
    decoys: pa.Table

    def row(self, image_id: pa.ChunkedArray) -> np.ndarray:
        """The row of each image in `poisoned`; -1 for a clean image."""
        return index_in(image_id, self.poisoned["image_id"])

    def is_decoy(self, image_id: pa.ChunkedArray) -> np.ndarray:
        """Whether each image is a decoy."""
        return index_in(image_id, self.decoys["image_id"]) >= 0


def read_truth(uri: str) -> Truth:
    """Read truth.parquet.

    Raises:
        UserError: there is no such file, or it is no truth.
    """
    parent, _, name = uri.rpartition("/")
    folder = Folder(parent or ("/" if uri.startswith("/") else "."))
    if not folder.exists(name):
        raise UserError(f"There is no truth at {uri}: give the truth.parquet that the attack wrote.")
    no_truth = f"{uri} is no truth: give the truth.parquet that the attack wrote."
    with folder.filesystem.open(f"{folder.path}/{name}", "rb") as raw:
        try:
            file = pq.ParquetFile(raw)
        except pa.ArrowInvalid as error:
            raise UserError(no_truth) from error
        there = file.schema_arrow
        columns = [*NEEDED, *(name for name in OPTIONAL if name in there.names)]
        if not set(NEEDED) <= set(there.names):
            raise UserError(no_truth)
        schema = pa.schema([there.field(column) for column in columns])
        poisoned, decoys = [], []
        for batch in file.iter_batches(columns=columns):
            poisoned.append(batch.filter(batch["poisoned"]))
            if "decoy" in columns:
                decoys.append(batch.filter(pc.and_not(batch["decoy"], batch["poisoned"])))
        tables = (pa.Table.from_batches(batches, schema) for batches in (poisoned, decoys))
        return Truth(file.metadata.num_rows, *tables)


def committed(run: Folder, name: str) -> Folder:
    """The folder of a committed artifact.

    Args:
        run: the run folder.
        name: the artifact, as in poisoncam_ray.artifact.

    Raises:
        UserError: it is not committed.
    """
    if Manifest.read(run / name) is None:
        raise UserError(f"The run {run.uri} has no finished {name}: let the defence run to its end first.")
    return run / name


def parts(run: Folder, name: str, columns: list[str]) -> Iterator[pa.Table]:
    """These columns of every part of a committed artifact.

    Raises:
        UserError: the artifact is not committed.
    """
    folder = committed(run, name)
    return (folder.read_table(part, columns) for part in folder.parts())


def candidates(run: Folder) -> pa.Table:
    """Every scored window of every round. Their number is bounded by the search's budget.

    Raises:
        UserError: the search is not finished, or scored no image.
    """
    search = committed(run, artifact.SEARCH)
    columns = ["image_id", "cluster", *SIDES, "score"]
    rounds = [search / name for name in search.names() if name.startswith("round=")]
    if not rounds:
        raise UserError(f"The search of the run {run.uri} scored no image: there is nothing to evaluate.")
    return pa.concat_tables([folder.read_table(artifact.CANDIDATES, columns) for folder in rounds])


def poison_clusters(run: Folder, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """`clusters_of_poison` for the clusters of the run."""
    return clusters_of_poison(truth, _assigned(run), len(read_centroids(committed(run, artifact.CLUSTERS))))


def poison_shares(run: Folder, truth: Truth, k: int) -> np.ndarray:
    """share_K: of poisoned images in each of the run's k clusters; 0 for an empty cluster."""
    cluster_P, size_K = _counted(truth, _assigned(run), k)
    return np.bincount(cluster_P[cluster_P >= 0], minlength=k) / np.maximum(size_K, 1)


def _assigned(run: Folder) -> Iterator[tuple[pa.ChunkedArray, np.ndarray]]:
    for table in parts(run, artifact.CLUSTERS, ["image_id", "cluster"]):
        yield table["image_id"], table["cluster"].to_numpy()


def clusters_of_poison(
    truth: Truth, assigned: Iterable[tuple[pa.ChunkedArray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The cluster of every poisoned image, and whether it is mostly poison.

    Args:
        truth: the truth.
        assigned: for every part of the corpus, image_id and cluster_N.
        k: the number of clusters.

    Returns:
        cluster_P, -1 for an image that has no cluster; pure_P, whether more than half of it is poison.
    """
    cluster_P, size_K = _counted(truth, assigned, k)
    return cluster_P, mostly_poison(cluster_P, size_K)


def _counted(
    truth: Truth, assigned: Iterable[tuple[pa.ChunkedArray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """cluster_P, and the number of images in each cluster, size_K."""
    cluster_P, size_K = np.full(len(truth.poisoned), -1), np.zeros(k, np.int64)
    for image_id, cluster_N in assigned:
        size_K += np.bincount(cluster_N, minlength=k)
        row_N = truth.row(image_id)
        cluster_P[row_N[row_N >= 0]] = cluster_N[row_N >= 0]
    return cluster_P, size_K


def mostly_poison(cluster_P: np.ndarray, size_K: np.ndarray) -> np.ndarray:
    """pure_P: whether more than half of an image's cluster is poison; False where it has none (-1)."""
    poison_K = np.bincount(cluster_P[cluster_P >= 0], minlength=len(size_K))
    return (poison_K > size_K / 2)[cluster_P] & (cluster_P >= 0)


def index_in(image_id: pa.ChunkedArray, ids: pa.ChunkedArray) -> np.ndarray:
    """The position of each image_id in `ids`; -1 where it is not among them."""
    row_N = pc.index_in(image_id.cast(pa.string()), value_set=ids.cast(pa.string()))
    return pc.fill_null(row_N, -1).to_numpy().astype(np.int64)


def mean(value_N: Tensor | np.ndarray) -> float | None:
    """The mean; None for no values."""
    return float(torch.as_tensor(value_N).double().mean()) if len(value_N) else None
