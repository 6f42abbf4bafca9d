"""What an encoder has learned, without training anything more: a weighted k-nearest-neighbour probe.

f, bank, q  L2-normalised features                   D  feature dimensions
N           labelled images in the bank              M  queries
y           class labels, int64 in [0, n_classes)
"""

import torch
from torch import Tensor

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
