"""Where to cut the poison classifier's logits, from data that the defence has.

h  logits of held-out pastes, V of them        G  points of the search grid
l  logits of the corpus, N of them
"""

from statistics import median

import torch
from torch import Tensor

# A twentieth of the searched range smooths single images away and still resolves the gap between two modes.
SMOOTHING = 0.05


def choose_threshold(
    held_out_logit_V: Tensor, corpus_logit_N: Tensor, n_crops: int = 1, least_recall: float = 0.98
) -> dict[str, float]:
    """Above which logit an image counts as poisoned, and what speaks for it.

    The corpus's own logits have a mode of clean images and, if it is poisoned, one of poisoned images where
    the held-out pastes lie. The threshold is the low end of the gap between them: where the corpus is
    thinnest from its median to the logit that `least_recall` of a held-out crop's pastes exceed. Of `n_crops`
    held-out crops (paste v carries crop v mod n_crops) the median one sets that logit: the search errs on
    some crops, and those look clean. Pastes no higher than the corpus's median mean a classifier that
    learned nothing: it shall flag nothing, also when rounding moves a logit. corpus_logit_N: a random sample
    of the whole corpus; without its suspicious images their mode is missing.

    Facts: threshold_logit; recall, share of the median crop's pastes above the threshold; flagged_share of
    the corpus above it; unsure_share of the corpus within one logit of it (near 0 where the cut is clear);
    auc of pastes against the corpus. Raises ValueError without logits of both kinds.
    """
    if len(held_out_logit_V) == 0 or len(corpus_logit_N) == 0:
        raise ValueError("A threshold needs the logits of held-out pastes and of the corpus.")
    h_V, l_N = held_out_logit_V.double().cpu(), corpus_logit_N.double().cpu()
    by_crop = [h_V[crop::n_crops] for crop in range(min(n_crops, len(h_V)))]
    low, high = float(l_N.median()), median(float(torch.quantile(h, 1 - least_recall)) for h in by_crop)
    threshold = _thinnest(l_N, low, high) if high > low else float(l_N.max()) + 1
    return {
        "threshold_logit": threshold,
        "recall": median(float((h > threshold).double().mean()) for h in by_crop),
        "flagged_share": float((l_N > threshold).double().mean()),
        "unsure_share": float(((l_N - threshold).abs() < 1).double().mean()),
        "auc": _auc(h_V, l_N),
    }


def _thinnest(l_N: Tensor, low: float, high: float) -> float:
    """The least point of [low, high] where a Gaussian-smoothed count of l is within one image of its minimum.

    The low end of the gap, for its cost is bounded by that image and poison that looks weaker than the
    pastes is still found: in ten measured ensembles this raised the lowest recall and cost 0.01 % of the
    clean images.
    """
    grid_G = torch.linspace(low, high, 201, dtype=l_N.dtype)
    width = SMOOTHING * (high - low)
    count_G = torch.stack([torch.exp(-0.5 * ((l_N - g) / width) ** 2).sum() for g in grid_G])
    return float(grid_G[count_G <= count_G.min() + 1][0])


def _auc(h_V: Tensor, l_N: Tensor) -> float:
    """Share of (paste, corpus image) pairs in the right order, ties counting half."""
    l_N = l_N.sort().values
    below_V = torch.searchsorted(l_N, h_V) + torch.searchsorted(l_N, h_V, right=True)
    return float(below_V.double().mean()) / (2 * len(l_N))
