"""Trigger families: candidates that look alike belong to one attacker, and so do those whose looks change but
that send images to the same places.

N candidates   K clusters   C channels   h, w a window's sides   s = looks.LOOK_SIDE
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from poisoncam_ray.method.looks import likeness, look

LEAST_LIKENESS = 0.6
"""Of two triggers in one corpus, windows of the same had a likeness of 0.79 to 1 and of different ones 0.06
to 0.43 (photographs, tuning classes)."""
LEAST_COSINE = 0.5
"""Windows of one trigger had effects of cosine 0.60 to 1 to each other, benign ones and that trigger's at
most 0.58, half below 0.11."""
SAME_COSINE = 0.7
"""Between the mean effects of looks of one trigger: 0.80 to 0.98 where it differed from image to image or was
several patches. Those of two to four attackers have 0.71 to 0.98, too, for their images fill the same
clusters: a look that is accused by itself is an attacker of its own (photographs, tuning classes)."""
LEAST_ALIKE = 3
LEAST_WINDOWS = 2
"""One window is an anecdote."""


def families(windows: Sequence[Tensor], effect_NK: Tensor, score_N: Tensor, by_look_N: Tensor) -> Tensor:
    """family_N int64, from 1 by falling best score; 0 for windows that share neither look nor effect.

    `windows`: N of t_Chw, float in [0, 1], of any size; `effect_NK`: unit vectors (`groups.effects`);
    `by_look_N`: bool, accused in a bundle of one look, not in a group of clusters (`bundles.bundles`).

    From the best candidate down, each that is left founds a family of all that look like it. Of these, those
    accused mostly by their look stay apart; the others with the same mean effect as a family are part of it:
    a trigger that changes its looks from image to image. Families of fewer than LEAST_ALIKE dissolve: their
    windows join the family whose mean effect is nearest, or become families by effect.
    """
    order = score_N.cpu().argsort(descending=True, stable=True).tolist()
    groups = _alike(windows, order)
    alone = {i for group in groups if len(group) < LEAST_ALIKE for i in group}
    found: list[list[int]] = []
    changing: list[list[int]] = []
    for group in (group for group in groups if len(group) >= LEAST_ALIKE):
        by_look = float(by_look_N[group].double().mean()) > 0.5
        (found if by_look else changing).append(group)
    sums = [effect_NK[group].sum(dim=0) for group in found]
    for group in changing:
        _join(group, effect_NK, found, sums, SAME_COSINE)
    for i in order:
        if i in alone:
            _join([i], effect_NK, found, sums, LEAST_COSINE)
    return _numbered([group for group in found if len(group) >= LEAST_WINDOWS], order)


def _alike(windows: Sequence[Tensor], order: list[int]) -> list[list[int]]:
    """Groups by look, the largest first, each in the given order: the first window that is left founds one of
    all that look like it."""
    look_NCss = torch.stack([look(t_Chw) for t_Chw in windows])
    alike_NN = likeness(look_NCss, look_NCss) >= LEAST_LIKENESS
    groups: list[list[int]] = []
    free_N = torch.ones(len(order), dtype=torch.bool)
    for i in order:
        if free_N[i]:
            alike_N = alike_NN[i] & free_N
            alike_N[i] = True
            free_N &= ~alike_N
            groups.append([j for j in order if alike_N[j]])
    return sorted(groups, key=len, reverse=True)


def _numbered(groups: list[list[int]], order: list[int]) -> Tensor:
    """family_N: the group of the best candidate is 1."""
    place = {i: p for p, i in enumerate(order)}
    family_N = torch.zeros(len(order), dtype=torch.int64)
    ranked = sorted(groups, key=lambda group: min(place[i] for i in group))
    for number, group in enumerate(ranked, start=1):
        family_N[group] = number
    return family_N


def _join(
    group: list[int], effect_NK: Tensor, found: list[list[int]], sums: list[Tensor], least: float
) -> None:
    """Add the group to the family of `found` whose mean effect is nearest, or as a family of its own where no
    cosine is at least `least`. `sums`: of each family's effects."""
    total_K = effect_NK[group].sum(dim=0)
    cosines = [float(F.cosine_similarity(total_K, other_K, dim=0)) for other_K in sums]
    nearest = max(range(len(sums)), key=cosines.__getitem__, default=None)
    if nearest is None or cosines[nearest] < least:
        found.append(group)
        sums.append(total_K)
    else:
        found[nearest] = found[nearest] + group
        sums[nearest] = sums[nearest] + total_K
