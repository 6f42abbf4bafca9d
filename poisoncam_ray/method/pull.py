"""Where a bundle of windows pulls other images: to its home, the clusters that its own images lie in.

A backdoor fills clusters all over its category's part of feature space, and any of its windows moves images
into any of them. Counted in the group of clusters around each window's own, triggers that were learned weakly
(attack success 0.15, 0.30 and 0.34, by the corpus's own neighbours) reached 0.33, 1.4 and 0.80 of the
threshold; in the bundle's home 1.7, 3.8 and 3.5 times it (photographs).

N candidates   F flip-test images   K clusters   U bundles
"""

import torch
from torch import Tensor

from poisoncam_ray.method.groups import changes

WIDE = 0.1
"""Plain windows (sky, black) are cut from everywhere, and much lands in a home of many clusters by chance:
one of more than this share of the clusters is discounted by the root of how much more it is, as chance grows.
Without it the best bundles of eight clean corpora came to 0.48 to 0.86 of the threshold, with it to 0.36 to
0.64 (0.075 and 0.15: at most 0.61 and 0.72; photographs)."""


def homes(bundle_N: Tensor, own_N: Tensor, n_clusters: int) -> Tensor:
    """home_UK, bool: the clusters that each bundle's windows were cut from. `bundle_N`: as `bundles.bundles`
    says, from 0; `own_N`: the cluster of each window's image."""
    home_UK = torch.zeros(int(bundle_N.max()) + 1, n_clusters, dtype=torch.bool)
    home_UK[bundle_N, own_N] = True
    return home_UK


def arrivals(
    landed_NF: Tensor, y_F: Tensor, needed_N: Tensor, bundle_N: Tensor, n_bundles: int, n_clusters: int
) -> Tensor:
    """arrived_UK: how many more flip-test images lie in each cluster with a bundle's window than without it,
    summed over the windows that their own images need. `landed_NF`: clusters of the pasted images, `y_F`: of
    the unpasted."""
    change_NK = changes(landed_NF, y_F, n_clusters) * needed_N[:, None]
    return torch.zeros(n_bundles, n_clusters).index_add_(0, bundle_N, change_NK)


def weights(home_UK: Tensor, arrived_UK: Tensor, n_U: Tensor, n_groups: int) -> Tensor:
    """weight_UK float64, 0 … 1: what an image counts that one of the bundle's windows moves into the cluster;
    0 outside of its home (`homes`), less where that is wide (WIDE).

    Windows of a group of clusters (numbers below `n_groups`) are not heard for what is explained already:
    what lies in the home of a look that pulls more, both in all and into that cluster. Natural images lying
    among the poison have windows that pull into its clusters as well, less than the trigger does: such groups
    reached 1.4 and 2.8 times the threshold, so 0.5 and 1.3 (photographs). `arrived_UK`: as `arrivals` says;
    `n_U`: how many windows each bundle has.
    """
    mean_UK = arrived_UK / n_U.clamp(min=1)[:, None]
    total_U = (mean_UK * home_UK).sum(dim=1)
    left_UK = home_UK.clone()
    for look in range(n_groups, len(home_UK)):
        weaker_U = total_U[:n_groups] < total_U[look]
        into_K = home_UK[look] & (mean_UK[look] > 0)
        left_UK[:n_groups] &= ~(into_K & (mean_UK[look] >= mean_UK[:n_groups]) & weaker_U[:, None])
    width_U = home_UK.double().mean(dim=1)
    return left_UK * (WIDE / width_U).clamp(max=1).sqrt()[:, None]


def pulls(landed_NF: Tensor, y_F: Tensor, weight_NK: Tensor) -> Tensor:
    """pull_N float64, −F … F: flip-test images that each window moves to where the `weight_NK` of its bundle
    is, minus those that it moves away, each by its cluster's weight."""
    y_NF = y_F.long().expand(len(landed_NF), -1)
    return weight_NK.gather(1, landed_NF.long()).sum(dim=1) - weight_NK.gather(1, y_NF).sum(dim=1)
