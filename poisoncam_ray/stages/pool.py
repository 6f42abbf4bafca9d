"""What Search and Classify draw from: a bounded part of every cluster, in a random order that depends on the
seed and the ids alone.

P images of the pool   K clusters
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from poisoncam_ray.folder import Folder
from poisoncam_ray.store import in_parallel

PARTS_AT_ONCE = 64
# Sorting so many rows at once costs less than sorting part by part.
ROWS_AT_ONCE = 2**18


@dataclass(frozen=True)
class Pool:
    """What the search draws from: of each cluster the first images in a seeded random order (P in all), and
    the flip-test images (F) and their clusters, the nearest of their centroids, spread over clusters."""

    ids: pa.ChunkedArray
    y_P: Tensor
    flip_ids: list[str]
    flip_y_F: Tensor
    n_clusters: int


def image_seed(seed: int, image_id: str) -> int:
    """A 63-bit number of (seed, image): random places that no batching and no order of work can change."""
    digest = hashlib.blake2b(f"{seed}:{image_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def assignments(clusters: Folder) -> Iterator[pa.Table]:
    """Every image's id, cluster, distance and draw (its `image_seed`), many parts at a time."""
    names = clusters.parts()
    for first in range(0, len(names), PARTS_AT_ONCE):
        yield pa.concat_tables(in_parallel(clusters.read_table, names[first : first + PARTS_AT_ONCE]))


def gather_pool(clusters: Folder, per_cluster: int, n_flip: int, n_clusters: int) -> Pool:
    """One pass over the assignments; in memory are at most twice `per_cluster` + n_flip / K rows of each
    cluster, and the rows at hand."""
    near = -(-n_flip // n_clusters)
    kept: list[pa.Table] = []
    drawn = nearest = None
    fresh = 0

    def merge() -> tuple[pa.Table, pa.Table]:
        everything = pa.concat_tables([t for t in (drawn, *kept) if t is not None])
        close = pa.concat_tables([t for t in (nearest, *kept) if t is not None])
        return lowest_of_each(everything, "draw", per_cluster), lowest_of_each(close, "distance", near)

    for table in assignments(clusters):
        kept.append(table)
        fresh += len(table)
        if fresh >= max(ROWS_AT_ONCE, 0 if drawn is None else len(drawn)):
            drawn, nearest = merge()
            kept, fresh = [], 0
    if kept or drawn is None:
        drawn, nearest = merge()
    assert drawn is not None and nearest is not None
    # The nearest of every cluster first, then the second nearest …: clusters take turns.
    turns = np.argsort(_place_in_cluster(nearest), kind="stable")[:n_flip]
    y_P = torch.from_numpy(drawn["cluster"].to_numpy().astype(np.int64))
    flip = nearest.take(pa.array(turns))
    flip_y_F = torch.from_numpy(flip["cluster"].to_numpy().astype(np.int64))
    return Pool(drawn["image_id"], y_P, flip["image_id"].to_pylist(), flip_y_F, n_clusters)


def lowest_of_each(table: pa.Table, key: str, most: int) -> pa.Table:
    """Of every cluster the `most` rows of lowest `key` (ties by id), ordered by cluster, key and id."""
    order = [("cluster", "ascending"), (key, "ascending"), ("image_id", "ascending")]
    ranked = table.sort_by(order)
    return ranked.filter(pa.array(_place_in_cluster(ranked) < most))


def _place_in_cluster(ranked: pa.Table) -> np.ndarray:
    y_N = ranked["cluster"].to_numpy()
    return np.arange(len(y_N)) - np.searchsorted(y_N, y_N)
