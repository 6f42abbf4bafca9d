"""Scores of images from an encoder's features: local outliers, spectral signatures, activation clustering.

The last two were made for labelled data and look at one class at a time. Without labels a cluster stands for
a class. In all, a higher score means poison.

N images   D feature dimensions   n images of one cluster   K nearest other images
f_ND features   y_N clusters
"""

from __future__ import annotations

import faiss
import numpy as np
import torch
from torch import Tensor

from poisoncam_ray.method.clusters import distances, kmeans

NEIGHBOURS = 20
LEAST = 4
"""Of the images of a cluster: below, it has no directions to speak of."""
COMPONENTS = 10
SMALL = 0.35
"""Activation clustering suspects the smaller of two parts when it has at most this share of its class."""
SPLIT_ITERATIONS = 20


def neighbour_distance(f_ND: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """score_N: the mean distance of an image to its k nearest others."""
    return _nearest(f_ND, k)[0].mean(dim=1)


def local_outlier_factor(f_ND: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """score_N: the local outlier factor (Breunig et al., 2000): how much sparser it is around an image than
    around its neighbours."""
    distance_NK, nearest_NK = _nearest(f_ND, k)
    reach_N = distance_NK[:, -1]
    reachable_NK = torch.maximum(distance_NK, reach_N[nearest_NK])
    density_N = 1 / reachable_NK.mean(dim=1).clamp(min=1e-12)
    return density_N[nearest_NK].mean(dim=1) / density_N


def spectral_signature(f_ND: Tensor, y_N: Tensor) -> Tensor:
    """score_N: the squared projection on the first singular vector of the image's cluster (Tran et al.,
    arXiv 1811.00636). Images of clusters below LEAST score 0."""
    score_N = torch.zeros(len(f_ND))
    for rows_n in _clusters(y_N):
        centred_nD = f_ND[rows_n] - f_ND[rows_n].mean(dim=0)
        first_D = torch.linalg.svd(centred_nD, full_matrices=False).Vh[0]
        score_N[rows_n] = (centred_nD @ first_D) ** 2
    return score_N


def activation_clustering(f_ND: Tensor, y_N: Tensor, seed: int = 0) -> Tensor:
    """score_N: each cluster is halved by 2-means of its first principal components (Chen et al., arXiv
    1811.03728). Images of the smaller part score the silhouette of the halving, where that part has at most
    SMALL of the cluster; all others score 0."""
    score_N = torch.zeros(len(f_ND))
    for rows_n in _clusters(y_N):
        centred_nD = f_ND[rows_n] - f_ND[rows_n].mean(dim=0)
        axes_Dc = torch.linalg.svd(centred_nD, full_matrices=False).Vh[:COMPONENTS].T
        reduced_nc = centred_nD @ axes_Dc
        half_n = distances(reduced_nc, kmeans(reduced_nc, 2, SPLIT_ITERATIONS, seed)).argmin(dim=1)
        small_n = half_n == int((half_n == 1).sum() * 2 <= len(half_n))
        if 0 < int(small_n.sum()) <= SMALL * len(half_n):
            score_N[rows_n[small_n]] = max(0.0, _silhouette(reduced_nc, small_n))
    return score_N


def neighbour_flops(n: int, dim: int) -> float:
    """Multiplications and additions of all distances between n features."""
    return 2.0 * n * n * dim


def svd_flops(y_N: Tensor, dim: int) -> float:
    """About the multiplications and additions of one thin singular value decomposition a cluster."""
    return sum(
        6.0 * len(rows) * dim * min(len(rows), dim) + 20.0 * min(len(rows), dim) ** 3
        for rows in _clusters(y_N)
    )


def _nearest(f_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """distance_NK, ascending, and nearest_NK: the k nearest other images of each."""
    k = min(k, len(f_ND) - 1)
    data_ND = np.ascontiguousarray(f_ND.float().numpy())
    squared_NK, nearest_NK = faiss.knn(data_ND, data_ND, k + 1)
    # An image is among its own neighbours unless more than k are its equals.
    own_NK = nearest_NK == np.arange(len(data_ND))[:, None]
    own_NK[~own_NK.any(axis=1), -1] = True
    shape = len(data_ND), k
    distance_NK = torch.from_numpy(squared_NK[~own_NK].reshape(shape)).clamp(min=0).sqrt()
    return distance_NK, torch.from_numpy(nearest_NK[~own_NK].reshape(shape))


def _clusters(y_N: Tensor) -> list[Tensor]:
    """The rows of each cluster of at least LEAST images."""
    order_N = y_N.argsort(stable=True)
    sizes = y_N[order_N].unique_consecutive(return_counts=True)[1]
    return [rows_n for rows_n in order_N.split(sizes.tolist()) if len(rows_n) >= LEAST]


def _silhouette(x_nc: Tensor, half_n: Tensor) -> float:
    """The mean silhouette of two halves; a half of one image counts as 0."""
    d_nn = distances(x_nc, x_nc)
    size_2 = torch.stack([(~half_n).sum(), half_n.sum()])
    sum_n2 = torch.stack([d_nn[:, ~half_n].sum(dim=1), d_nn[:, half_n].sum(dim=1)], dim=1)
    own_n = half_n.long()
    rows_n = torch.arange(len(x_nc))
    inner_n = sum_n2[rows_n, own_n] / (size_2[own_n] - 1).clamp(min=1)
    outer_n = sum_n2[rows_n, 1 - own_n] / size_2[1 - own_n].clamp(min=1)
    value_n = (outer_n - inner_n) / torch.maximum(inner_n, outer_n).clamp(min=1e-12)
    return float(torch.where(size_2[own_n] > 1, value_n, 0).mean())
