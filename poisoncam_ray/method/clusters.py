"""k-means over the corpus's features.

N features   K clusters   D feature dimensions
f_ND features   c_KD centroids   y_N assignments, 0 … K−1

Clusters that lie together are one place: a backdoor fills many small clusters, and a trigger moves images
into any of them.

K clusters   G groups   D feature dimensions   F flip-test images   N candidates
"""

import math

import faiss
import torch
import torch.nn.functional as F
from torch import Tensor

# --- kmeans ---

# Bounds the N × K distance table held at once: 2²⁴ float32 are 64 MiB.
DISTANCES_AT_ONCE = 1 << 24


def auto_k(n: int, factor: float = 3) -> int:
    """How many clusters for n images: `factor`·√n, at least 2 and at most a quarter of n.

    K must be several times the number of natural categories, so that poison gets clusters of its own;
    the factor 3 gives 1068 for the 126,689 images of the paper's ImageNet-100, which uses 1000.

    Raises ValueError below two images.
    """
    if n < 2:
        raise ValueError(f"clustering needs at least 2 images, got {n}")
    return max(2, min(round(factor * math.sqrt(n)), n // 4))


def kmeans(f_ND: Tensor, k: int, iterations: int, seed: int) -> Tensor:
    """Lloyd's algorithm from `k` random features; returns float32 c_KD on the device of `f_ND`.

    The same features, k, iterations and seed give the same centroids. Every returned centroid is finite and
    owns at least one feature: clusters that run empty are re-seeded by splitting large ones while the
    algorithm runs, and what is still empty at the end (fewer distinct features than k) is left out, so
    K ≤ k.

    Raises ValueError when k is not in 1 … N or a feature is not finite.
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
    """The nearest centroid of each feature: (y_N int64, Euclidean distance_N float32).

    Ties go to the lowest index. Memory is bounded however many features come.
    """
    rows = max(1, DISTANCES_AT_ONCE // len(c_KD))
    nearest = [distances(part_ND, c_KD).min(dim=1) for part_ND in f_ND.split(rows)]
    return torch.cat([part.indices for part in nearest]), torch.cat([part.values for part in nearest])


def distances(f_ND: Tensor, c_KD: Tensor) -> Tensor:
    """Euclidean distances d_NK, float32; always by matrix product, whatever N."""
    return torch.cdist(f_ND.float(), c_KD.float(), compute_mode="use_mm_for_euclid_dist")


# --- groups ---

CLUSTERS_PER_SUPERCLUSTER = 8
"""A backdoor fills many small clusters, which lie together. See the table of constants."""
SUPERCLUSTER_ITERATIONS = 30


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
