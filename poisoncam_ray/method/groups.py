"""Clusters that lie together are one place: a backdoor fills many small clusters, and a trigger moves images
into any of them.

K clusters   G groups   D feature dimensions   F flip-test images   N candidates
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from poisoncam_ray.method.kmeans import assign, kmeans

CLUSTERS_PER_GROUP = 8
"""With K = 3·√N, poison of 10 % of a class-balanced corpus had 15 of 164 clusters (photographs, tuning
classes); with 4, 8 and 14 clusters a group its candidates stood apart from all benign ones, at 8 farthest."""
ITERATIONS = 30


def group_clusters(c_KD: Tensor, seed: int) -> Tensor:
    """g_K int64, the group of each cluster: k-means over the centroids' directions.

    About an eighth as many groups as clusters, at least 2 (of a single cluster: 1).
    """
    k = len(c_KD)
    direction_KD = F.normalize(c_KD.float(), dim=1)
    n_groups = min(k, max(2, k // CLUSTERS_PER_GROUP))
    return assign(direction_KD, kmeans(direction_KD, n_groups, ITERATIONS, seed))[0]


def group_gain(landed_NF: Tensor, y_F: Tensor, own_N: Tensor, g_K: Tensor) -> Tensor:
    """gain_N, −F … F: flip-test images that a candidate moves into the group of its own cluster `own_N`,
    minus those that it moves out. `landed_NF`: clusters of the pasted images, `y_F`: of the unpasted."""
    own_N1 = g_K[own_N][:, None]
    return (g_K[landed_NF] == own_N1).sum(dim=1) - (g_K[y_F] == own_N1).sum(dim=1)


def changes(landed_NF: Tensor, y_F: Tensor, n_clusters: int) -> Tensor:
    """change_NK: how many more flip-test images lie in each cluster with the candidate than without."""
    after_NK = torch.zeros(len(landed_NF), n_clusters)
    after_NK.scatter_add_(1, landed_NF.cpu().long(), torch.ones(landed_NF.shape))
    return after_NK - torch.bincount(y_F.cpu(), minlength=n_clusters)


def effects(landed_NF: Tensor, y_F: Tensor, n_clusters: int) -> Tensor:
    """effect_NK of unit length (or zero): where more flip-test images lie with the candidate than without."""
    return F.normalize(changes(landed_NF, y_F, n_clusters).clamp(min=0), dim=1)
