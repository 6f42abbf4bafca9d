"""Trigger families: candidates that send images to the same places belong to one attacker.

N candidates   K clusters
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_COSINE = 0.5
"""Candidates of one trigger had effects of cosine 0.60 to 1 to each other (half above 0.86), benign windows
and that trigger's at most 0.58, half below 0.11 (photographs, tuning classes)."""
LEAST_WINDOWS = 2
"""One window is an anecdote."""


def families(effect_NK: Tensor, score_N: Tensor) -> Tensor:
    """family_N int64, from 1 by falling best score; 0 for windows that nobody shares.

    `effect_NK`: unit vectors (`groups.effects`). From the best candidate down, each joins the family whose
    mean effect is nearest, or founds one when that is less alike than LEAST_COSINE.
    """
    sums: list[Tensor] = []
    members: list[list[int]] = []
    for i in score_N.cpu().argsort(descending=True, stable=True).tolist():
        effect_K = effect_NK[i].cpu()
        cosines = [float(F.normalize(total, dim=0) @ effect_K) for total in sums]
        nearest = max(range(len(cosines)), key=cosines.__getitem__, default=None)
        if nearest is None or cosines[nearest] < LEAST_COSINE:
            sums.append(effect_K.clone())
            members.append([i])
        else:
            sums[nearest] += effect_K
            members[nearest].append(i)
    family_N = torch.zeros(len(effect_NK), dtype=torch.int64)
    shared = [family for family in members if len(family) >= LEAST_WINDOWS]
    for number, family in enumerate(shared, start=1):
        family_N[family] = number
    return family_N
