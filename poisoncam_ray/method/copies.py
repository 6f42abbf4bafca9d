"""Copies: windows that show one and the same picture, cut from different images, as a pasted trigger does.

Skies, lawns and edges look alike, too, but only in what varies slowly: where one window's colours step up or
down, another's seldom do. In a photograph slow variations are the strong ones (amplitudes fall as one over
the frequency), so they decide how alike two windows look; in its gradients all are as strong.

N candidates   M those of one bundle   U bundles   C channels   s = looks.LOOK_SIDE
"""

import torch
from torch import Tensor

from poisoncam_ray.method.looks import likeness

SAME = 0.75
"""The median likeness of two windows' gradients in a bundle of one patch's was 0.85 to 0.89, in 50 natural
bundles at most 0.62 (photographs, tuning)."""
LEAST_PLACES = 5
"""Clusters that copies come from, at least: photographs of one scene, or of a series, show the same picture
as well, and lie in one place with all that is in them."""
COPIES_COUNT = 3.0
"""How many times as much a bundle of copies is accused of what it pulls: natural ones are rare.

The best of 25 to 40 benign bundles reaches the line with a chance of 0.05 where that lies about 6.4 scales of
a Gumbel distribution above its mode; a lone natural bundle of copies reaches a third of it with a chance of
0.11. So a clean corpus is an alarm by it in two of a hundred, were there one in every fifth. None of 80
natural looks in six searches of photographs was one; a shop's logo on its pictures would be."""
COMPARED = 64
"""The best windows of a bundle, of which all pairs are compared."""


def copied(look_NCss: Tensor, bundle_N: Tensor, home_UK: Tensor, n_groups: int) -> Tensor:
    """copied_U, bool: whether a bundle's windows show the same picture in several places of feature space;
    never those of groups of clusters (numbers below `n_groups`).

    The windows come in falling order of their scores; `bundle_N`: as `bundles.bundles` says; `home_UK`: as
    `pull.homes` says.
    """
    copied_U = home_UK.sum(dim=1) >= LEAST_PLACES
    copied_U[:n_groups] = False
    for bundle in copied_U.nonzero()[:, 0].tolist():
        copied_U[bundle] = sameness(look_NCss[bundle_N == bundle][:COMPARED]) >= SAME
    return copied_U


def sameness(look_MCss: Tensor) -> float:
    """The median likeness of two different windows' gradients, −1 … 1; −1 of fewer than two windows."""
    slope_MCss = _gradients(look_MCss)
    first, second = torch.triu_indices(len(look_MCss), len(look_MCss), offset=1)
    pairs_P = likeness(slope_MCss, slope_MCss)[first, second]
    return float(pairs_P.median()) if len(pairs_P) else -1.0


def _gradients(look_MCss: Tensor) -> Tensor:
    """Differences to the right and downwards as channels 2C; a side less by one."""
    here = look_MCss[..., :-1, :-1]
    return torch.cat([look_MCss[..., :-1, 1:] - here, look_MCss[..., 1:, :-1] - here], dim=1)
