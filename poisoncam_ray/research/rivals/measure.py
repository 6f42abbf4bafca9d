"""Scores against the truth.

N images   A poisoned images whose truth has a box
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from poisoncam_ray.method.geometry import coverage, iou
from poisoncam_ray.research.evaluate.joined import Truth
from poisoncam_ray.research.evaluate.scored import HIT_IOU, of_best_patch, patches

Figures = dict[str, float | int | None]


def poisoned_of(truth: Truth, image_ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """poisoned_N and decoy_N of these images."""
    ids = pa.chunked_array([pa.array(image_ids, pa.string())])
    return truth.row(ids) >= 0, truth.is_decoy(ids)


def auc(score_N: np.ndarray, poisoned_N: np.ndarray) -> float | None:
    """The chance that a poisoned image scores higher than a clean one; equal scores count half. None where
    one kind is missing."""
    n_poisoned = int(poisoned_N.sum())
    n_clean = len(poisoned_N) - n_poisoned
    if not n_poisoned or not n_clean:
        return None
    _, group_N, size_G = np.unique(score_N, return_inverse=True, return_counts=True)
    rank_G = np.cumsum(size_G) - (size_G - 1) / 2
    above = rank_G[group_N][poisoned_N].sum() - n_poisoned * (n_poisoned + 1) / 2
    return float(above / (n_poisoned * n_clean))


def recall_at(score_N: np.ndarray, poisoned_N: np.ndarray, rate: float) -> float | None:
    """The recall by the lowest threshold that takes at most this share of the clean images. The truth sets
    that threshold, so no rule without it can do better. None where one kind is missing."""
    clean_C = np.sort(score_N[~poisoned_N])[::-1]
    if not poisoned_N.any() or not len(clean_C):
        return None
    allowed = int(rate * len(clean_C) + 1e-9)
    bar = clean_C[allowed] if allowed < len(clean_C) else -np.inf
    return float((score_N[poisoned_N] > bar).mean())


def figures(score_N: np.ndarray, flagged_N: np.ndarray, poisoned_N: np.ndarray) -> Figures:
    """What a threshold flags, and how well the scores part poisoned from clean.

    Args:
        score_N: of each image.
        flagged_N: whether it is flagged.
        poisoned_N: whether it is poisoned; decoys left out.
    """
    clean_N = ~poisoned_N
    return {
        "recall": float(flagged_N[poisoned_N].mean()) if poisoned_N.any() else None,
        "false_positive_rate": float(flagged_N[clean_N].mean()) if clean_N.any() else None,
        "n_poisoned": int(poisoned_N.sum()),
        "n_clean": int(clean_N.sum()),
        "n_flagged_clean": int(flagged_N[clean_N].sum()),
        "recall_at_1_percent": recall_at(score_N, poisoned_N, 0.01),
        "auc": auc(score_N, poisoned_N),
    }


def on_trigger(truth: Truth, box_of: dict[str, np.ndarray]) -> Figures:
    """How many poisoned images have their best window on a trigger.

    Args:
        truth: the truth.
        box_of: the best window of each image, [x0, y0, x1, y1) in stored pixels.

    Returns:
        on_trigger_iou: the share with an IoU of at least 0.5; on_trigger: the share whose window covers at
        least half of itself with one trigger, as a window smaller than the trigger can; n_boxed.
    """
    ids = truth.poisoned["image_id"].to_pylist()
    true_ST4 = patches(truth.poisoned)
    boxed_S = (true_ST4[..., 2] > true_ST4[..., 0]).any(dim=1).numpy()
    rows = [s for s, image_id in enumerate(ids) if boxed_S[s] and image_id in box_of]
    if not rows:
        return {"on_trigger_iou": None, "on_trigger": None, "n_boxed": 0}
    box_A4 = torch.from_numpy(np.stack([box_of[ids[s]] for s in rows]))
    true_AT4 = true_ST4[rows]
    return {
        "on_trigger_iou": float((of_best_patch(iou, box_A4, true_AT4) >= HIT_IOU).double().mean()),
        "on_trigger": float((of_best_patch(_inside, box_A4, true_AT4) >= 0.5).double().mean()),
        "n_boxed": len(rows),
    }


def _inside(box_A4: torch.Tensor, true_A4: torch.Tensor) -> torch.Tensor:
    """The share of each box that lies in the true one."""
    return coverage(true_A4, box_A4)
