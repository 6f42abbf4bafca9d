"""Where a bundle of windows pulls other images: to its home, the clusters that its own images lie in.

A backdoor fills clusters all over its category's part of feature space, and any of its windows moves images
into any of them. Counted in the group of clusters around each window's own, triggers that were learned weakly
(attack success 0.15, 0.30 and 0.34, by the corpus's own neighbours) reached 0.49, 1.4 and 0.80 of the
threshold; in the bundle's home 1.6, 3.0 and 3.4 times it (photographs).

N candidates   F flip-test images   K clusters   U bundles
"""

import torch
from torch import Tensor

WIDE = 0.1
"""Plain windows (sky, black) are cut from everywhere, and much lands in a home of many clusters by chance:
one of more than this share of the clusters is discounted by the root of how much more it is, as chance grows.
Without it the best bundles of seven clean corpora came to 0.48 to 0.86 of the threshold, with it to 0.36 to
0.64 (0.075 and 0.15: at most 0.61 and 0.72; photographs)."""


def homes(bundle_N: Tensor, own_N: Tensor, n_clusters: int) -> Tensor:
    """home_UK, bool: the clusters that each bundle's windows were cut from. `bundle_N`: as `bundles.bundles`
    says, from 0; `own_N`: the cluster of each window's image."""
    home_UK = torch.zeros(int(bundle_N.max()) + 1, n_clusters, dtype=torch.bool)
    home_UK[bundle_N, own_N] = True
    return home_UK


def pulls(landed_NF: Tensor, y_F: Tensor, home_NK: Tensor) -> Tensor:
    """pull_N, −F … F: flip-test images that each window moves into the clusters `home_NK` (bool, the home of
    its bundle) minus those that it moves out of them, less where the home is wide. `landed_NF`: clusters of
    the pasted images, `y_F`: of the unpasted."""
    y_NF = y_F.long().expand(len(landed_NF), -1)
    moved_N = home_NK.gather(1, landed_NF.long()).sum(dim=1) - home_NK.gather(1, y_NF).sum(dim=1)
    share_N = home_NK.double().mean(dim=1)
    return moved_N / (share_N / WIDE).clamp(min=1).sqrt()
