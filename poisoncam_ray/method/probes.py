"""What an encoder has learned, measured by classifiers on its frozen features.

`knn_predict` is the weighted k-nearest-neighbour probe of Instance Discrimination (arXiv 1805.01978 §3.4);
`linear_predict` is multinomial logistic regression on a few labelled features, whose penalty `choose_penalty`
can choose. `accuracy`, `attack_success` and `false_positives` count their predictions.

N labelled images (n of one class)   M queries   B queries at once   k neighbours   C classes
D feature dimensions   f, bank, q features   y, labels classes, int64 in 0 … C−1
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

# Instance Discrimination: a neighbour's vote weighs exp(similarity / 0.07).
TEMPERATURE = 0.07
# Half the squared weights against the summed loss: the default of scikit-learn's LogisticRegression (C = 1).
# Without it the weights grow without bound where a few images are separable.
PENALTY = 1.0
# What `choose_penalty` tries. A victim tunes it, and attack success depends on it more than accuracy does.
PENALTIES = (1.0, 10.0, 100.0, 1000.0)
FOLDS = 5
ITERATIONS = 200
# Dimensions that hardly vary carry noise only, which a division by their standard deviation would amplify.
MIN_DEVIATION = 1e-4


def knn_predict(
    bank_ND: Tensor,
    labels_N: Tensor,
    q_MD: Tensor,
    k: int = 20,
    temperature: float = TEMPERATURE,
    n_classes: int | None = None,
    batch: int = 1024,
) -> Tensor:
    """Predict the class of every query by the votes of its most similar labelled features.

    Args:
        bank_ND: labelled features, L2-normalised.
        labels_N: their classes.
        q_MD: queries, L2-normalised.
        k: neighbours that vote, at least 1; at most N of them exist.
        temperature: above 0; a vote weighs exp(cosine similarity / temperature).
        n_classes: C; the largest label + 1 if None.
        batch: queries at once; bounds memory to batch × N similarities and does not change the result.

    Returns:
        y_M, int64; among equal votes the lowest class.

    Raises:
        ValueError: the bank is empty or does not match its labels, or k or temperature is out of range.
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
        # Only ratios of votes matter. Relative to the nearest neighbour, exp cannot overflow.
        weight_Bk = ((top_Bk - top_Bk[:, :1]) / temperature).exp()
        vote_BC = torch.zeros(len(top_Bk), n_classes, device=q_MD.device, dtype=weight_Bk.dtype)
        vote_BC.scatter_add_(1, labels_N[index_Bk], weight_Bk)
        y_M[start : start + batch] = vote_BC.argmax(dim=1)
    return y_M


def choose_labelled(draw_N: Tensor, y_N: Tensor, share: float) -> Tensor:
    """Choose a stratified sample: of each class the images with the lowest draws, at least one.

    Args:
        draw_N: a random number for each image; equal draws keep the order of rows.
        y_N: the class of each image.
        share: of each class, in (0, 1].

    Returns:
        The chosen rows, int64, ascending.

    Raises:
        ValueError: the share is out of range, or the draws do not match the labels.
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
    """Predict the class of every query by multinomial logistic regression on the labelled features.

    Features and queries are L2-normalised and then standardised by the mean and standard deviation of the
    labelled features in each dimension. Full-batch L-BFGS minimises the convex loss from zero weights;
    nothing is drawn at random.

    Args:
        f_ND: labelled features, of any length.
        y_N: their classes.
        q_MD: queries, of any length.
        n_classes: C.
        penalty: weight of half the squared weights against the summed cross entropy.
        iterations: of L-BFGS, at most.

    Returns:
        y_M, int64; among equal logits the lowest class.

    Raises:
        ValueError: there is no labelled feature, or the labels do not match.
    """
    if len(f_ND) == 0 or len(f_ND) != len(y_N):
        raise ValueError(f"There are {len(f_ND)} labelled features and {len(y_N)} labels.")
    f_ND, q_MD = (normalize(side.double(), dim=1) for side in (f_ND, q_MD))
    mean_D = f_ND.mean(dim=0)
    deviation_D = f_ND.std(dim=0, unbiased=False).clamp(min=MIN_DEVIATION)
    f_ND, q_MD = (f_ND - mean_D) / deviation_D, (q_MD - mean_D) / deviation_D
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


def choose_penalty(
    f_ND: Tensor, y_N: Tensor, n_classes: int, penalties: Sequence[float] = PENALTIES, folds: int = FOLDS
) -> float:
    """Choose the penalty of `linear_predict` by cross-validation on the labelled features.

    Args:
        f_ND: labelled features, of any length.
        y_N: their classes. The images of each class are dealt to the folds in turn, in their order.
        n_classes: C.
        penalties: those to try. Each is tried on the images outside a fold, a fifth fewer than it is used on.
        folds: at least 2; of fewer images than folds, some are empty.

    Returns:
        The penalty with which most held-out images are predicted right; of equals the first.

    Raises:
        ValueError: there are fewer than 2 labelled features, or the labels do not match.
    """
    if len(f_ND) < 2 or len(f_ND) != len(y_N) or folds < 2:
        raise ValueError(f"There are {len(f_ND)} labelled features and {len(y_N)} labels for {folds} folds.")
    fold_N = torch.empty_like(y_N)
    fold_N[y_N.argsort(stable=True)] = torch.arange(len(y_N), device=y_N.device) % folds
    right = dict.fromkeys(penalties, 0)
    for fold in range(folds):
        held_N = fold_N == fold
        if not bool(held_N.any()):
            continue
        for penalty in penalties:
            found_m = linear_predict(f_ND[~held_N], y_N[~held_N], f_ND[held_N], n_classes, penalty)
            right[penalty] += int((found_m == y_N[held_N]).sum())
    return max(penalties, key=lambda penalty: right[penalty])


def accuracy(predicted_M: Tensor, y_M: Tensor) -> float:
    """The share of queries whose class is predicted right, 0 … 1.

    Raises:
        ValueError: there is no query, or the predictions do not match the labels.
    """
    if len(y_M) == 0 or len(predicted_M) != len(y_M):
        raise ValueError(f"There are {len(predicted_M)} predictions for {len(y_M)} labels.")
    return float((predicted_M == y_M).double().mean())


def attack_success(predicted_M: Tensor, y_M: Tensor, target: int) -> float:
    """The attack success rate (ASR): the share of patched images of other classes predicted as the target.

    Args:
        predicted_M: predictions for images with the trigger pasted in.
        y_M: their true classes.
        target: the class that the attacker wants.

    Returns:
        0 … 1.

    Raises:
        ValueError: all images are of the target class.
    """
    other_M = y_M != target
    if not bool(other_M.any()):
        raise ValueError("Attack success needs images of classes other than the target.")
    return float((predicted_M[other_M] == target).double().mean())


def false_positives(predicted_M: Tensor, y_M: Tensor, target: int) -> int:
    """The number of images of other classes that are predicted as the target."""
    return int(((y_M != target) & (predicted_M == target)).sum())
