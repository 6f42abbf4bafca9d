"""The windows of poisoned images against the true patches, which are resized as the images were.

P poisoned images   S those that the search scored   N rows of a part   T most patches on one image
box_S4, box_ST4 integer [x0, y0, x1, y1) in encoder pixels   own_S the cluster an image was assigned to
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from poisoncam_ray import artifact
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.crops import own_part
from poisoncam_ray.method.geometry import area, iou, map_box
from poisoncam_ray.research.evaluate.joined import (
    Metrics,
    Truth,
    candidates,
    committed,
    index_in,
    mean,
    parts,
)

HIT_IOU = 0.5
"""A window finds a trigger when their intersection over union is at least this."""


@dataclass(frozen=True)
class Scored:
    """The poisoned images that the search scored.

    Attributes:
        image_id: their ids.
        box_S4: the recorded window.
        true_ST4: the true boxes; an image with fewer than T patches has empty ones, too.
        patched_S: whether the image has any true box.
        own_S: the image's cluster.
        pure_S: whether more than half of that cluster is poison.
    """

    image_id: list[str]
    box_S4: Tensor
    true_ST4: Tensor
    patched_S: Tensor
    own_S: Tensor
    pure_S: Tensor

    def iou(self, box_S4: Tensor) -> Tensor:
        """iou_S: of each window with the patch that it fits best."""
        return of_best_patch(iou, box_S4, self.true_ST4)

    def marks(self, box_S4: Tensor) -> Metrics:
        """Accuracy and mean IoU of windows on the images that have a true box.

        Args:
            box_S4: one window for each image.

        Returns:
            accuracy and mean_iou over all these images, with the suffix _poison_clusters over those whose
            cluster is mostly poison, and with _natural_clusters over the others.
        """
        iou_S, pure_S = self.iou(box_S4)[self.patched_S], self.pure_S[self.patched_S]
        return {
            "accuracy": mean(iou_S >= HIT_IOU),
            "mean_iou": mean(iou_S),
            "accuracy_poison_clusters": mean(iou_S[pure_S] >= HIT_IOU),
            "mean_iou_poison_clusters": mean(iou_S[pure_S]),
            "accuracy_natural_clusters": mean(iou_S[~pure_S] >= HIT_IOU),
            "mean_iou_natural_clusters": mean(iou_S[~pure_S]),
        }


def scored_poisoned(run: Folder, truth: Truth, cluster_P: np.ndarray, pure_P: np.ndarray) -> Scored:
    """The poisoned images that the search scored.

    Args:
        run: the run folder.
        truth: the truth.
        cluster_P: from `poison_clusters`.
        pure_P: from `poison_clusters`.
    """
    windows = candidates(run)
    row_C = truth.row(windows["image_id"])
    # One window per image, the first recorded. In the truth's order: so fetching reads each shard once.
    row_S, first_S = np.unique(row_C, return_index=True)
    row_S, first_S = row_S[row_S >= 0], first_S[row_S >= 0]
    poisoned, recorded = truth.poisoned.take(row_S), windows.take(first_S)
    true_ST4, patched_S = true_boxes(run, poisoned)
    return Scored(
        image_id=poisoned["image_id"].to_pylist(),
        box_S4=boxes_of(recorded),
        true_ST4=true_ST4,
        patched_S=patched_S,
        own_S=torch.from_numpy(cluster_P[row_S]),
        pure_S=torch.from_numpy(pure_P[row_S]),
    )


def true_boxes(run: Folder, poisoned: pa.Table) -> tuple[Tensor, Tensor]:
    """(true_ST4, patched_S), as in `Scored`, of S rows of the truth.

    An image that is not in the index counts as one without a box, and so does an image longer than 3:2 whose
    `own_part` holds no box whole.
    """
    size_S2 = torch.zeros(len(poisoned), 2, dtype=torch.int64)
    for part in parts(run, artifact.INDEX, ["image_id", "width", "height"]):
        row_N = index_in(part["image_id"], poisoned["image_id"])
        size_N2 = np.stack([part["width"].to_numpy(), part["height"].to_numpy()], axis=1).astype(np.int64)
        size_S2[row_N[row_N >= 0]] = torch.from_numpy(size_N2[row_N >= 0])
    image_size = committed(run, artifact.ENCODER).read_json(artifact.ENCODER_CONFIG)["image_size"]
    stored_ST4 = patches(poisoned)
    n_patches = stored_ST4.shape[1]
    seed = run.read_json(artifact.RUN)["config"]["seed"]
    ids, sizes = poisoned["image_id"].to_pylist(), size_S2.clamp(min=1).tolist()
    parts_S = [own_part(seed, image_id, *size) for image_id, size in zip(ids, sizes, strict=True)]
    part_S4 = torch.tensor(parts_S).view(-1, 4)
    part_T4 = part_S4.repeat_interleave(n_patches, dim=0)
    stored_T4 = stored_ST4.flatten(0, 1)
    width_T, height_T = (part_T4[:, 2:] - part_T4[:, :2]).unbind(1)
    mapped_T4 = map_box(stored_T4 - part_T4[:, :2].repeat(1, 2), width_T, height_T, image_size)
    held_T = (stored_T4[:, :2] >= part_T4[:, :2]).all(dim=1) & (stored_T4[:, 2:] <= part_T4[:, 2:]).all(dim=1)
    held_T &= area(stored_T4) > 0
    mapped_T4 = torch.where(held_T[:, None], mapped_T4, 0)
    held_S = held_T.view(-1, n_patches).any(dim=1) & (size_S2[:, 0] > 0)
    return mapped_T4.view(-1, n_patches, 4), held_S


def of_best_patch(mark: Callable[[Tensor, Tensor], Tensor], box_S4: Tensor, true_ST4: Tensor) -> Tensor:
    """mark_S: of each window with the patch for which the mark is largest.

    Args:
        mark: `geometry.iou` or `geometry.coverage`.
        box_S4: one window for each image.
        true_ST4: the true boxes.
    """
    n_patches = true_ST4.shape[1]
    flat = mark(box_S4.repeat_interleave(n_patches, dim=0), true_ST4.flatten(0, 1))
    return flat.view(-1, n_patches).amax(dim=1)


def boxes_of(table: pa.Table) -> Tensor:
    """box_S4 of the columns SIDES."""
    return torch.from_numpy(np.stack([table[side].to_numpy() for side in SIDES], axis=1).astype(np.int64))


def patches(poisoned: pa.Table) -> Tensor:
    """box_ST4 in stored pixels. An image without a patch (-1 in the truth) has empty boxes only."""
    first_S4 = boxes_of(poisoned)
    given = poisoned["boxes"].to_pylist() if "boxes" in poisoned.column_names else [None] * len(first_S4)
    patches = [boxes or [first] for boxes, first in zip(given, first_S4.tolist(), strict=True)]
    box_ST4 = torch.zeros(len(patches), max(map(len, patches), default=1), 4, dtype=torch.int64)
    for i, boxes in enumerate(patches):
        box_ST4[i, : len(boxes)] = torch.tensor(boxes)
    return torch.where((box_ST4[..., :1] < 0), 0, box_ST4)
