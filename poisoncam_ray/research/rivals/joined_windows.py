"""Windows of other images that look the same, found list by list.

All windows of a sample of images are whitened and put into lists by their nearest centroid. A window is
compared with those of the few lists that lie nearest to it.

W windows of the sample   Q windows that are looked up   I images of the sample   D numbers of a descriptor
L lists, with centroids c_LD   P lists that a window is compared with   M windows of one list
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from poisoncam_ray.method.clusters import kmeans

SAME = 0.9
"""Cosine of whitened descriptors from which two windows look the same. Lower, textures match everything."""
RIDGE = 0.02
"""Added to each eigenvalue, in mean eigenvalues: directions with nearly no variance are mostly noise."""
MOST_LISTS, PER_LIST, PROBES = 1024, 300, 2
PER_CENTROID, ITERATIONS = 32, 3
"""K-means on so many windows a list. The lists need not be good: equal windows share one anyway."""
COSINES_AT_ONCE = 1 << 24
QUERIES_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Whitening:
    """x ↦ (x − mean) · map, at unit length.

    Attributes:
        mean_D: the mean of the windows.
        map_DD: their principal axes, each divided by its standard deviation.
    """

    mean_D: Tensor
    map_DD: Tensor

    def __call__(self, x_WD: Tensor) -> Tensor:
        """The whitened descriptors, of unit length."""
        return F.normalize((x_WD.float() - self.mean_D) @ self.map_DD, dim=1)


def whitening(x_WD: Tensor) -> Whitening:
    """Learn the whitening from windows."""
    mean_D = x_WD.float().mean(dim=0)
    total_DD = torch.zeros(x_WD.shape[1], x_WD.shape[1], dtype=torch.float64)
    for part_WD in x_WD.split(QUERIES_AT_ONCE):
        centred_WD = part_WD.float() - mean_D
        total_DD += (centred_WD.T @ centred_WD).double()
    value_D, axis_DD = torch.linalg.eigh(total_DD / len(x_WD))
    value_D = value_D.clamp(min=0)
    return Whitening(mean_D, (axis_DD / (value_D + RIDGE * value_D.mean()).sqrt()).float())


@dataclass(frozen=True)
class Joined:
    """The windows of a sample, ready to be compared with.

    Attributes:
        whiten: their whitening.
        z_WD: the whitened windows, list after list.
        image_W: the image of each, 0 … I − 1.
        n_images: I.
        c_LD: the lists' centroids.
        first_L: the first window of each list, and at the end W.
    """

    whiten: Whitening
    z_WD: Tensor
    image_W: Tensor
    n_images: int
    c_LD: Tensor
    first_L: list[int]

    def look_up(self, x_QD: Tensor, own_Q: Tensor) -> Tensor:
        """How many other images of the sample have a window that looks the same.

        Args:
            x_QD: descriptors.
            own_Q: the image of each; -1 for one that is not in the sample.

        Returns:
            n_Q, int64: an image counts once, however many of its windows look the same.
        """
        parts = zip(x_QD.split(QUERIES_AT_ONCE), own_Q.split(QUERIES_AT_ONCE), strict=True)
        return torch.cat([self._look_up(*part) for part in parts]) if len(x_QD) else own_Q.new_zeros(0)

    def flops(self, n_queries: int) -> float:
        """Multiplications and additions of so many look-ups, where windows fall into lists as the sample's
        do."""
        size_L = torch.tensor(self.first_L).diff().double()
        compared = min(PROBES, len(self.c_LD)) * float((size_L**2).sum() / size_L.sum())
        return 2.0 * n_queries * self.c_LD.shape[1] * (self.c_LD.shape[1] + len(self.c_LD) + compared)

    def _look_up(self, x_QD: Tensor, own_Q: Tensor) -> Tensor:
        z_QD = self.whiten(x_QD)
        probed_QP = (z_QD @ self.c_LD.T).topk(min(PROBES, len(self.c_LD)), dim=1).indices
        list_R, order_R = probed_QP.flatten().sort(stable=True)
        query_R = order_R // probed_QP.shape[1]
        lists, sizes = list_R.unique_consecutive(return_counts=True)
        pairs = [query_R.new_zeros(0)]
        for number, query_M in zip(lists.tolist(), query_R.split(sizes.tolist()), strict=True):
            first, stop = self.first_L[number], self.first_L[number + 1]
            for query_B in query_M.split(max(1, COSINES_AT_ONCE // max(1, stop - first))):
                same_BM = z_QD[query_B] @ self.z_WD[first:stop].T >= SAME
                b, m = same_BM.nonzero(as_tuple=True)
                query_S, image_S = query_B[b], self.image_W[first + m]
                other_S = image_S != own_Q[query_S]
                pairs.append((query_S[other_S] * self.n_images + image_S[other_S]).unique())
        return (torch.cat(pairs).unique() // self.n_images).bincount(minlength=len(z_QD))


def join(x_WD: Tensor, image_W: Tensor, n_images: int, seed: int) -> Joined:
    """Whiten the windows of a sample and put them into lists.

    Args:
        x_WD: the descriptors, float16 or float32, at least one.
        image_W: the image of each.
        n_images: I.
        seed: of the lists.
    """
    whiten = whitening(x_WD)
    n_lists = max(1, min(MOST_LISTS, len(x_WD) // PER_LIST))
    chosen = torch.randperm(len(x_WD), generator=torch.Generator().manual_seed(seed))[
        : PER_CENTROID * n_lists
    ]
    c_LD = F.normalize(kmeans(whiten(x_WD[chosen]), n_lists, ITERATIONS, seed), dim=1)
    nearest = [(whiten(part_WD) @ c_LD.T).argmax(dim=1) for part_WD in x_WD.split(QUERIES_AT_ONCE)]
    list_W, order_W = torch.cat(nearest).sort(stable=True)
    z_WD = torch.empty(x_WD.shape)
    # Whitened twice: the unsorted windows would need as much memory again.
    for start, rows_B in enumerate(order_W.split(QUERIES_AT_ONCE)):
        z_WD[start * QUERIES_AT_ONCE :][: len(rows_B)] = whiten(x_WD[rows_B])
    first_L = torch.searchsorted(list_W, torch.arange(len(c_LD) + 1)).tolist()
    return Joined(whiten, z_WD, image_W[order_W], n_images, c_LD, first_L)
