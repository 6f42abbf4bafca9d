"""The images that Search and Classify draw from: a bounded number from every cluster, in a random order that
depends only on the seed and the image ids.

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

# Parts that are read at once.
PARTS_AT_ONCE = 64
# Rows that are sorted at once: cheaper than to sort part by part.
ROWS_AT_ONCE = 2**18


@dataclass(frozen=True)
class Pool:
    """The images that the search draws from.

    Attributes:
        ids: P image ids, the first of each cluster in a seeded random order.
        y_P: their clusters.
        flip_ids: F ids of the flip-test images, the nearest to their centroids, from all clusters in turn.
        n_clusters: K.
    """

    ids: pa.ChunkedArray
    y_P: Tensor
    flip_ids: list[str]
    n_clusters: int


def image_seed(seed: int, image_id: str) -> int:
    """A 63-bit random number that depends only on the seed and the image id, not on the order of work."""
    digest = hashlib.blake2b(f"{seed}:{image_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def assignments(clusters: Folder) -> Iterator[pa.Table]:
    """Every image's id, cluster, distance and draw (its `image_seed`), many parts at a time."""
    names = clusters.parts()
    for first in range(0, len(names), PARTS_AT_ONCE):
        yield pa.concat_tables(in_parallel(clusters.read_table, names[first : first + PARTS_AT_ONCE]))


def gather_pool(clusters: Folder, per_cluster: int, n_flip: int, n_clusters: int, seed: int) -> Pool:
    """Choose the images of the search in one pass over the assignments.

    Memory holds at most 2 · (per_cluster + n_flip / K) rows of each cluster, and the rows just read.

    Args:
        clusters: the artifact of Cluster.
        per_cluster: images of each cluster, at most.
        n_flip: flip-test images, at most.
        n_clusters: K.
        seed: draws the order in which clusters take turns to give a flip-test image: any first images lie in
            clusters from everywhere.
    """
    near = -(-n_flip // n_clusters)
    unmerged: list[pa.Table] = []
    drawn = nearest = None
    n_unmerged = 0

    def merge() -> tuple[pa.Table, pa.Table]:
        everything = pa.concat_tables([t for t in (drawn, *unmerged) if t is not None])
        close = pa.concat_tables([t for t in (nearest, *unmerged) if t is not None])
        return lowest_of_each(everything, "draw", per_cluster), lowest_of_each(close, "distance", near)

    for table in assignments(clusters):
        unmerged.append(table)
        n_unmerged += len(table)
        if n_unmerged >= max(ROWS_AT_ONCE, 0 if drawn is None else len(drawn)):
            drawn, nearest = merge()
            unmerged, n_unmerged = [], 0
    if unmerged or drawn is None:
        drawn, nearest = merge()
    assert drawn is not None and nearest is not None
    # The nearest image of every cluster comes first, then the second nearest of every cluster, and so on.
    turn_K = np.array([image_seed(seed, f"cluster {k}") for k in range(n_clusters)])
    turns = np.lexsort((turn_K[nearest["cluster"].to_numpy()], _place_in_cluster(nearest)))[:n_flip]
    y_P = torch.from_numpy(drawn["cluster"].to_numpy().astype(np.int64))
    flip_ids = nearest["image_id"].take(pa.array(turns)).to_pylist()
    return Pool(drawn["image_id"], y_P, flip_ids, n_clusters)


def lowest_of_each(table: pa.Table, key: str, most: int) -> pa.Table:
    """The `most` rows of lowest `key` of every cluster (ties by id), sorted by cluster, key and id."""
    order = [("cluster", "ascending"), (key, "ascending"), ("image_id", "ascending")]
    ranked = table.sort_by(order)
    return ranked.filter(pa.array(_place_in_cluster(ranked) < most))


def _place_in_cluster(ranked: pa.Table) -> np.ndarray:
    """The number of rows of the same cluster before each row."""
    y_N = ranked["cluster"].to_numpy()
    return np.arange(len(y_N)) - np.searchsorted(y_N, y_N)
