"""What an encoder has learned, without training anything more: a weighted k-nearest-neighbour probe.

f, bank, q  L2-normalised features                   D  feature dimensions
N           labelled images in the bank              M  queries
y           class labels, int64 in [0, n_classes)

What an encoder has learned, by a linear classifier on a few labelled features.

f, q   features, any length                    D  feature dimensions
N      labelled images (n: of one class)       M  queries
y      class labels, int64 in [0, n_classes)   C  classes
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

# --- probe ---

# Wu et al. 2018 (Instance Discrimination), section 3.4: votes weigh exp(similarity / 0.07).
TEMPERATURE = 0.07


def knn_predict(
    bank_ND: Tensor,
    labels_N: Tensor,
    q_MD: Tensor,
    k: int = 20,
    temperature: float = TEMPERATURE,
    n_classes: int | None = None,
    batch: int = 1024,
) -> Tensor:
    """The class of every query by the votes of its k most similar bank images; y_M int64.

    k: clipped to the size of the bank. n_classes: largest label + 1 when not given. batch: queries at a
    time, which bounds memory to batch × N similarities and does not change the answer. Equal votes go to
    the lowest class. Raises ValueError for an empty bank or labels that do not match it.
    """
    if len(bank_ND) == 0 or len(bank_ND) != len(labels_N):
        raise ValueError(f"The bank has {len(bank_ND)} features and {len(labels_N)} labels.")
    if k < 1 or temperature <= 0:
        raise ValueError("The probe needs k ≥ 1 and a temperature above 0.")
    n_classes = int(labels_N.max()) + 1 if n_classes is None else n_classes
    k = min(k, len(bank_ND))
    y_M = torch.empty(len(q_MD), dtype=torch.int64, device=q_MD.device)
    for start in range(0, len(q_MD), batch):
        similarity_BN = q_MD[start : start + batch] @ bank_ND.T
        top_Bk, index_Bk = similarity_BN.topk(k, dim=1)
        # Only ratios of votes count; the nearest one's weight of 1 keeps exp from overflowing.
        weight_Bk = ((top_Bk - top_Bk[:, :1]) / temperature).exp()
        vote_BY = torch.zeros(len(top_Bk), n_classes, device=q_MD.device, dtype=weight_Bk.dtype)
        vote_BY.scatter_add_(1, labels_N[index_Bk], weight_Bk)
        y_M[start : start + batch] = vote_BY.argmax(dim=1)
    return y_M


def accuracy(predicted_M: Tensor, y_M: Tensor) -> float:
    """Share of queries whose class was predicted right, 0 to 1; ValueError without queries."""
    if len(y_M) == 0 or len(predicted_M) != len(y_M):
        raise ValueError(f"There are {len(predicted_M)} predictions for {len(y_M)} labels.")
    return float((predicted_M == y_M).double().mean())


def attack_success(predicted_M: Tensor, y_M: Tensor, target: int) -> float:
    """Share of patched images of other classes that are predicted as the target (ASR), 0 to 1.

    predicted_M: predictions for images with the trigger pasted in. ValueError when all are the target's own.
    """
    other_M = y_M != target
    if not bool(other_M.any()):
        raise ValueError("Attack success needs images of classes other than the target.")
    return float((predicted_M[other_M] == target).double().mean())


def false_positives(predicted_M: Tensor, y_M: Tensor, target: int) -> int:
    """How many images of other classes are predicted as the target."""
    return int(((y_M != target) & (predicted_M == target)).sum())


# --- linear_probe ---

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
