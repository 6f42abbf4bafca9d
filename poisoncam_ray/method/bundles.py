"""Bundles of windows that speak together: those that look alike, and what is left of each group of clusters.

An attacker's windows look alike wherever in feature space their images lie, and many weak voices that say the
same are heard where each alone is not. A trigger whose look changes from image to image still fills a place:
so the windows that look like nobody speak with their group.

N candidates   B founders   C channels   s = looks.LOOK_SIDE
"""

import torch
from torch import Tensor

from poisoncam_ray.method.looks import likeness

LIKE = 0.85
"""Of one patch's windows 73 to 99 % were that like the founder of their bundle; of benign windows, among
which skies and lawns are alike, too, at most 14 % were that like any one (photographs, tuning; with 0.8 and
0.9 the verdicts were the same)."""
LEAST_ALIKE = 8
FOUNDERS_AMONG = 4096
"""Founders are looked for among so many windows, the best: all pairs of 100,000 would take hours of a CPU,
and what is to be heard are windows that pull images. All others may join them, as many at a time."""


def bundles(look_NCss: Tensor, group_N: Tensor) -> Tensor:
    """bundle_N, int64: numbers below G are groups of clusters (`group_N`, 0 … G-1), those above are looks.
    The windows come in falling order of their scores.

    The window that most others look like founds a bundle of them, again and again while LEAST_ALIKE are left;
    then every window joins the founder it is most like, if it is.
    """
    bundle_N = group_N.to(torch.int64, copy=True)
    founder_B = founders(look_NCss[:FOUNDERS_AMONG])
    if len(founder_B):
        first = int(group_N.max()) + 1
        for i_M in torch.arange(len(look_NCss)).split(FOUNDERS_AMONG):
            best_M, nearest_M = likeness(look_NCss[i_M], look_NCss[founder_B]).max(dim=1)
            bundle_N[i_M] = torch.where(best_M >= LIKE, first + nearest_M, bundle_N[i_M])
    return bundle_N


def founders(look_NCss: Tensor) -> Tensor:
    """index_B, int64: of the windows that found a bundle of at least LEAST_ALIKE, themselves included."""
    alike_NN = likeness(look_NCss, look_NCss) >= LIKE
    alike_NN.fill_diagonal_(True)
    free_N = torch.ones(len(alike_NN), dtype=torch.bool)
    found: list[int] = []
    while bool(free_N.any()):
        size_N = (alike_NN & free_N).sum(dim=1) * free_N
        founder = int(size_N.argmax())
        if size_N[founder] < LEAST_ALIKE:
            break
        free_N &= ~alike_NN[founder]
        found.append(founder)
    return torch.tensor(found, dtype=torch.int64)
