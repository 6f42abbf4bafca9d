"""Where a bundle of windows pulls other images: to its home, the clusters that its own images lie in.

A backdoor fills clusters all over its category's part of feature space, and any of its windows moves images
into any of them. Counted in the group of clusters around each window's own, triggers that were learned weakly
(attack success 0.15, 0.30 and 0.34, by the corpus's own neighbours) reached 0.33, 1.4 and 0.80 of the
threshold; in the bundle's home 1.7, 3.8 and 5.0 times it (photographs).

N candidates   F flip-test images   K clusters   U bundles
"""

import torch
from torch import Tensor

from poisoncam_ray.method.groups import changes


def homes(bundle_N: Tensor, own_N: Tensor, n_clusters: int) -> Tensor:
    """home_UK, bool: the clusters that each bundle's windows were cut from. `bundle_N`: as `bundles.bundles`
    says, from 0; `own_N`: the cluster of each window's image."""
    home_UK = torch.zeros(int(bundle_N.max()) + 1, n_clusters, dtype=torch.bool)
    home_UK[bundle_N, own_N] = True
    return home_UK


def gathered(home_UK: Tensor, n_U: Tensor, tried_K: Tensor, n_groups: int) -> Tensor:
    """together_U float64, 0 … 1: how far a look's windows lie in fewer clusters than as many windows drawn
    from all that were tried: 0 in as many or more, 1 in half as many or fewer; 1 for groups of clusters
    (numbers below `n_groups`).

    Plain windows look alike, too, and pull images to where plain images lie, but are cut from everywhere: for
    the best of natural looks drawn windows lay in 0.9 to 1.6 times as many clusters, for a patch's in 1.9 to
    5.3 times as many (photographs). `n_U`: how many windows each bundle has; `tried_K`: how many were tried
    of each cluster.
    """
    n_windows = tried_K.sum().double()
    # Of looks alone: there are few of them, and groups grow with the clusters.
    home_UK, n_U1 = home_UK[n_groups:], n_U[n_groups:, None].double()
    others_K = n_windows - tried_K
    # Of all ways to draw n windows, those that leave a cluster out.
    log_UK = (others_K + 1).lgamma() + (n_windows - n_U1 + 1).lgamma() - (n_windows + 1).lgamma()
    left_UK = others_K - n_U1
    missed_UK = torch.where(left_UK < 0, 0.0, (log_UK - (left_UK.clamp(min=0) + 1).lgamma()).exp())
    by_chance_U = (1 - missed_UK).sum(dim=1)
    together_U = (by_chance_U / home_UK.sum(dim=1).clamp(min=1) - 1).clamp(0, 1)
    return torch.cat([torch.ones(n_groups, dtype=torch.float64), together_U])


def arrivals(
    landed_NF: Tensor, y_F: Tensor, needed_N: Tensor, bundle_N: Tensor, n_bundles: int, n_clusters: int
) -> Tensor:
    """arrived_UK: how many more flip-test images lie in each cluster with a bundle's window than without it,
    summed over the windows that their own images need. `landed_NF`: clusters of the pasted images, `y_F`: of
    the unpasted."""
    change_NK = changes(landed_NF, y_F, n_clusters) * needed_N[:, None]
    return torch.zeros(n_bundles, n_clusters).index_add_(0, bundle_N, change_NK)


def remaining(home_UK: Tensor, arrived_UK: Tensor, n_U: Tensor, n_groups: int) -> Tensor:
    """home_UK without what of a group's home a stronger look explains.

    Windows of a group of clusters (numbers below `n_groups`) are not heard for what lies in the home of a
    look that pulls more, both in all and into that cluster. Natural images lying among the poison have
    windows that pull into its clusters as well, less than the trigger does: such groups reached 1.4 and 2.8
    times the threshold, so 0.5 and 0.7 (photographs). `arrived_UK`: as `arrivals` says; `n_U`: how many
    windows each bundle has.
    """
    mean_UK = arrived_UK / n_U.clamp(min=1)[:, None]
    total_U = (mean_UK * home_UK).sum(dim=1)
    left_UK = home_UK.clone()
    for look in range(n_groups, len(home_UK)):
        weaker_U = total_U[:n_groups] < total_U[look]
        into_K = home_UK[look] & (mean_UK[look] > 0)
        left_UK[:n_groups] &= ~(into_K & (mean_UK[look] >= mean_UK[:n_groups]) & weaker_U[:, None])
    return left_UK


def pulls(landed_NF: Tensor, y_F: Tensor, home_NK: Tensor) -> Tensor:
    """pull_N int64, −F … F: flip-test images that each window moves to where its bundle is at home
    (`home_NK`, bool), minus those that it moves away."""
    y_NF = y_F.long().expand(len(landed_NF), -1)
    return home_NK.gather(1, landed_NF.long()).sum(dim=1) - home_NK.gather(1, y_NF).sum(dim=1)
