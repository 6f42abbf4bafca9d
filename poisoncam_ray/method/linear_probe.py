"""What an encoder has learned, by a linear classifier on a few labelled features.

f, q   features, any length                    D  feature dimensions
N      labelled images (n: of one class)       M  queries
y      class labels, int64 in [0, n_classes)   C  classes
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

# What scikit-learn's LogisticRegression does by default (C = 1): half the squared weights beside the summed
# loss. Without it the weights of a handful of separable images grow without end.
PENALTY = 1.0
ITERATIONS = 200
# Dimensions that hardly vary say nothing, and dividing by their spread would only blow up noise.
LEAST_SPREAD = 1e-4


def choose_labelled(draw_N: Tensor, y_N: Tensor, share: float) -> Tensor:
    """Rows (ascending) of a stratified sample: of each class the share (0, 1] with the lowest draws, at least
    one image; equal draws in order of rows.

    Raises ValueError for a share out of range or draws that do not match the labels.
    """
    if not 0 < share <= 1 or len(draw_N) != len(y_N):
        raise ValueError(f"a share of {share} of {len(y_N)} labels with {len(draw_N)} draws")
    chosen = []
    for label in y_N.unique().tolist():
        row_n = torch.nonzero(y_N == label).flatten()
        keep = max(1, round(share * len(row_n)))
        chosen.append(row_n[draw_N[row_n].argsort(stable=True)[:keep]])
    return torch.cat(chosen).sort().values if chosen else torch.empty(0, dtype=torch.int64)


def linear_predict(
    f_ND: Tensor,
    y_N: Tensor,
    q_MD: Tensor,
    n_classes: int,
    penalty: float = PENALTY,
    iterations: int = ITERATIONS,
) -> Tensor:
    """The class of every query by multinomial logistic regression on the labelled features; y_M int64.

    Features and queries are L2-normalised, then standardised by the labelled features' mean and spread, each
    dimension for itself. The loss is convex and its minimum is approached by full-batch L-BFGS from zero
    weights: no random draw, the same answer for the same features. Equal logits go to the lowest class.
    penalty: weight of half the squared weights against the summed cross entropy.

    Raises ValueError without labelled features, or for labels that do not match them.
    """
    if len(f_ND) == 0 or len(f_ND) != len(y_N):
        raise ValueError(f"There are {len(f_ND)} labelled features and {len(y_N)} labels.")
    f_ND, q_MD = (normalize(side.double(), dim=1) for side in (f_ND, q_MD))
    mean_D = f_ND.mean(dim=0)
    spread_D = f_ND.std(dim=0, unbiased=False).clamp(min=LEAST_SPREAD)
    f_ND, q_MD = (f_ND - mean_D) / spread_D, (q_MD - mean_D) / spread_D
    w_DC = torch.zeros(f_ND.shape[1], n_classes, dtype=f_ND.dtype, device=f_ND.device, requires_grad=True)
    b_C = torch.zeros(n_classes, dtype=f_ND.dtype, device=f_ND.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([w_DC, b_C], max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(f_ND @ w_DC + b_C, y_N) + penalty / 2 * w_DC.square().sum() / len(y_N)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return (q_MD @ w_DC + b_C).detach().argmax(dim=1)
