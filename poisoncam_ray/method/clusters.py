"""Clusters of the corpus's features by k-means, and superclusters: clusters that lie together.

The search treats each cluster as one kind of image. A backdoor usually fills several neighbouring clusters,
so flips are also counted by supercluster.

N features f_ND   K clusters with centroids c_KD   D feature dimensions   y_N assignments, 0 … K−1
"""

import math

import faiss
import torch
import torch.nn.functional as F
from torch import Tensor

# Bounds the N × K distances that are held at once: 2²⁴ float32 are 64 MiB.
DISTANCES_AT_ONCE = 1 << 24
# A backdoor fills several small clusters that lie together; one supercluster should hold them.
CLUSTERS_PER_SUPERCLUSTER = 8
# Centroids are few, so k-means over them can afford more iterations than k-means over the features.
SUPERCLUSTER_ITERATIONS = 30


def auto_k(n: int, factor: float = 3) -> int:
    """Choose the number of clusters for a corpus.

    It must be several times the number of natural categories, so that poison gets clusters of its own. The
    default factor gives 1068 for the 126,689 images of the paper's ImageNet-100; the paper uses 1000. See
    jobs/results/constants.md.

    Args:
        n: images, at least 2.
        factor: clusters per √n.

    Returns:
        factor · √n, rounded, at least 2 and at most a quarter of n.

    Raises:
        ValueError: n is below 2.
    """
    if n < 2:
        raise ValueError(f"clustering needs at least 2 images, got {n}")
    return max(2, min(round(factor * math.sqrt(n)), n // 4))


def kmeans(f_ND: Tensor, k: int, iterations: int, seed: int) -> Tensor:
    """Run Lloyd's algorithm from k features chosen at random.

    The same arguments give the same centroids. While the algorithm runs, empty clusters are re-seeded by
    splitting large ones; what is still empty at the end (fewer distinct features than k) is left out.

    Args:
        f_ND: features, any float type.
        k: clusters, 1 … N.
        iterations: of Lloyd's algorithm.
        seed: of the initial centroids.

    Returns:
        c_KD, float32, on the device of f_ND, with K ≤ k. Each centroid is finite and is the nearest one of at
        least one feature.

    Raises:
        ValueError: k is not in 1 … N, or a feature is not finite.
    """
    n, dim = f_ND.shape
    if not 1 <= k <= n:
        raise ValueError(f"k-means cannot make {k} clusters from {n} features")
    if not torch.isfinite(f_ND).all():
        raise ValueError("k-means got features that are not finite")
    # The caller bounds the sample: faiss must neither subsample again nor warn about small clusters.
    lloyd = faiss.Kmeans(
        dim, k, niter=iterations, seed=seed, min_points_per_centroid=1, max_points_per_centroid=n
    )
    lloyd.train(f_ND.float().cpu().contiguous().numpy())
    c_KD = torch.from_numpy(lloyd.centroids).clone().to(f_ND.device)
    y_N, _ = assign(f_ND, c_KD)
    return c_KD[y_N.unique(sorted=True)]


def assign(f_ND: Tensor, c_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest centroid of each feature, in bounded memory.

    Args:
        f_ND: features.
        c_KD: centroids.

    Returns:
        y_N, int64: the nearest centroid; among equals the lowest index.
        distance_N, float32: the Euclidean distance to it.
    """
    rows = max(1, DISTANCES_AT_ONCE // len(c_KD))
    nearest = [distances(part_ND, c_KD).min(dim=1) for part_ND in f_ND.split(rows)]
    return torch.cat([part.indices for part in nearest]), torch.cat([part.values for part in nearest])


def distances(f_ND: Tensor, c_KD: Tensor) -> Tensor:
    """Euclidean distances d_NK, float32. The mode is fixed, because torch would choose another formula for
    small inputs."""
    return torch.cdist(f_ND.float(), c_KD.float(), compute_mode="use_mm_for_euclid_dist")


def superclusters(c_KD: Tensor, seed: int) -> Tensor:
    """Group the clusters that lie together, by k-means over the directions of their centroids.

    Args:
        c_KD: centroids.
        seed: of k-means.

    Returns:
        supercluster_K, int64: about an eighth as many superclusters as clusters, at least 2 (1 for a single
        cluster).
    """
    k = len(c_KD)
    direction_KD = F.normalize(c_KD.float(), dim=1)
    n_super = min(k, max(2, k // CLUSTERS_PER_SUPERCLUSTER))
    return assign(direction_KD, kmeans(direction_KD, n_super, SUPERCLUSTER_ITERATIONS, seed))[0]
