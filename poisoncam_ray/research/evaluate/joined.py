"""A run's artifacts joined with the truth, on image_id.

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
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, open_corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, Manifest
from poisoncam_ray.stages.cluster import read_centroids

NEEDED = ("image_id", "poisoned", *SIDES)
OPTIONAL = ("target", "boxes", "decoy")
"""Columns of the truth that not every attack writes; the others it has."""

Metrics = dict[str, float | int | None]


@dataclass(frozen=True)
class Truth:
    """The poisoned rows of the truth, and the decoys (clean images that carry a patch which means nothing);
    the other clean rows are only counted. Columns that the truth lacks are missing in `poisoned`, too."""

    n_images: int
    poisoned: pa.Table
    decoys: pa.Table

    def row(self, image_id: pa.ChunkedArray) -> np.ndarray:
        """Each image's row among the poisoned ones, -1 for a clean image."""
        return index_in(image_id, self.poisoned["image_id"])

    def is_decoy(self, image_id: pa.ChunkedArray) -> np.ndarray:
        return index_in(image_id, self.decoys["image_id"]) >= 0


def read_truth(uri: str) -> Truth:
    """Raises UserError when there is none, or the file is another one."""
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


def settings(run: Folder) -> Config:
    """What the run was made with."""
    if not run.exists(artifact.RUN):
        raise UserError(f"{run.uri} is not a run folder: give the --output of a defence.")
    return Config.model_validate(run.read_json(artifact.RUN)["config"])


def corpus_of(run: Folder) -> Corpus:
    """What the run read; UserError when it is not there any more."""
    corpus = settings(run).corpus
    return open_corpus(run.read_json(artifact.RUN)["input"], corpus.format, corpus.image_column)


def committed(run: Folder, name: str) -> Folder:
    """A committed artifact; UserError when the run has not got that far."""
    if Manifest.read(run / name) is None:
        raise UserError(f"The run {run.uri} has no finished {name}: let the defence run to its end first.")
    return run / name


def parts(run: Folder, name: str, columns: list[str]) -> Iterator[pa.Table]:
    folder = committed(run, name)
    return (folder.read_table(part, columns) for part in folder.parts())


def candidates(run: Folder) -> pa.Table:
    """Every scored window of every round: bounded by the search's budget, not by the corpus."""
    search = committed(run, artifact.SEARCH)
    columns = ["image_id", "cluster", *SIDES, "score"]
    rounds = [search / name for name in search.names() if name.startswith("round=")]
    if not rounds:
        raise UserError(f"The search of the run {run.uri} scored no image: there is nothing to evaluate.")
    return pa.concat_tables([folder.read_table(artifact.CANDIDATES, columns) for folder in rounds])


def poison_clusters(run: Folder, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """`clusters_of_poison` in the clusters of the run."""
    tables = parts(run, artifact.CLUSTERS, ["image_id", "cluster"])
    assigned = ((table["image_id"], table["cluster"].to_numpy()) for table in tables)
    return clusters_of_poison(truth, assigned, len(read_centroids(committed(run, artifact.CLUSTERS))))


def clusters_of_poison(
    truth: Truth, assigned: Iterable[tuple[pa.ChunkedArray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of every poisoned image: its cluster (-1: it never got that far), and whether that is mostly poison.

    assigned: of every part of the corpus image_id and cluster_N     k: clusters that there are
    """
    cluster_P, size_K = np.full(len(truth.poisoned), -1), np.zeros(k, np.int64)
    for image_id, cluster_N in assigned:
        size_K += np.bincount(cluster_N, minlength=k)
        row_N = truth.row(image_id)
        cluster_P[row_N[row_N >= 0]] = cluster_N[row_N >= 0]
    return cluster_P, mostly_poison(cluster_P, size_K)


def mostly_poison(cluster_P: np.ndarray, size_K: np.ndarray) -> np.ndarray:
    """pure_P: whether more than half of a poisoned image's cluster is poison; never of none (-1)."""
    poison_K = np.bincount(cluster_P[cluster_P >= 0], minlength=len(size_K))
    return (poison_K > size_K / 2)[cluster_P] & (cluster_P >= 0)


def index_in(image_id: pa.ChunkedArray, ids: pa.ChunkedArray) -> np.ndarray:
    """Position of each image_id in `ids`, -1 where it is not one of them."""
    row_N = pc.index_in(image_id.cast(pa.string()), value_set=ids.cast(pa.string()))
    return pc.fill_null(row_N, -1).to_numpy().astype(np.int64)


def mean(value_N: Tensor | np.ndarray) -> float | None:
    """None of nothing."""
    return float(torch.as_tensor(value_N).double().mean()) if len(value_N) else None
