"""The detection figures of metrics.json: windows against true boxes, removed images against poisoned ones.

P poisoned images   S those that the search scored   R those that were removed   T most patches on one image
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from poisoncam_ray import artifact
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.geometry import area, iou
from poisoncam_ray.research.evaluate.joined import (
    Metrics,
    Truth,
    candidates,
    mean,
    parts,
    poison_clusters,
    read_truth,
)
from poisoncam_ray.research.evaluate.removed import Removed
from poisoncam_ray.research.evaluate.scored import (
    HIT_IOU,
    Scored,
    of_best_patch,
    patches,
    scored_poisoned,
)
from poisoncam_ray.research.evaluate.shapes import by_shape

TOP = 20


def detection_metrics(run_uri: str, truth_uri: str) -> dict[str, Any]:
    """The detection figures of metrics.json.

    Shares are 0 … 1, None where there is nothing to take a share of. A window finds a trigger when its IoU
    with any patch of the image is at least 0.5, in encoder pixels. Decoys are clean images with a trigger
    that means nothing; they count in no precision and no false positive rate.

    trigger_detection_accuracy, trigger_detection_mean_iou
        Over scored poisoned images: the share whose candidate window finds a trigger, and the mean IoU.
    trigger_detection_…_poison_clusters
        The same over images whose cluster is more than half poison.
    trigger_detection_…_natural_clusters
        The same over the others, whose clusters are mostly natural images.
    trigger_detection_n_without_box
        Number of scored images whose trigger has no box (a frequency attack), or of which the search saw a
        part that does not hold it whole (images longer than 3:2). They count in no trigger_detection figure.
    trigger_detection_final_accuracy, trigger_detection_final_mean_iou
        The same by the box that the run gives in the end; an image that it kept counts by its window.
    located_accuracy, located_mean_iou
        The box that the run gives, over the poisoned images it removed (n_located).
    top20_precision
        Share of the 20 best-scored images that are poisoned; ties are broken by image id.
    recall, precision, false_positive_rate
        Of what was removed. The false positive rate is over the clean images that got a fate.
    recall_natural_clusters
        Recall over poisoned images in clusters of at most half poison (n_poisoned_natural_clusters).
    recall_by_target
        {target: recall}; "any" for poison without a target.
    families
        {family: n_removed, main_target, purity, recall} over what was removed. main_target: the target of
        most of the family's poisoned images; purity: their share of the family; recall: their share of all
        poisoned images of that target.
    by_shape
        Recall and false positives of squares, of wide and of long images (`shapes.by_shape`).
    n_images, n_poisoned, n_removed, n_dead, n_scored, n_scored_poisoned, n_scored_poison_clusters
        Numbers of images.
    n_poisoned_dead
        Poisoned images that did not decode. In `recall` they count as not found.
    n_decoys, decoys_removed
        The number of decoys, and the share of them that was removed.

    Args:
        run_uri: the run folder.
        truth_uri: truth.parquet of the attack.

    Raises:
        UserError: the run is not finished, or the truth belongs to another corpus.
    """
    run, truth = Folder(run_uri), read_truth(truth_uri)
    found = Removed(truth)
    for part in parts(run, artifact.SCORES, ["image_id", "fate", "family", *SIDES]):
        found.add(part)
    dead = _dead_ids(run)
    dead_P = pc.is_in(truth.poisoned["image_id"], pa.array(sorted(dead), pa.string())).to_numpy()
    if found.n_judged + len(dead) != truth.n_images or not (found.judged_P | dead_P).all():
        raise UserError(
            f"The truth {truth_uri} ({truth.n_images} images) is not that of the corpus which the run "
            f"{run_uri} read ({found.n_judged + len(dead)} images): give the truth.parquet beside that "
            "corpus."
        )

    cluster_P, pure_P = poison_clusters(run, truth)
    natural_P = (cluster_P >= 0) & ~pure_P
    scored = scored_poisoned(run, truth, cluster_P, pure_P)
    located_P = of_best_patch(iou, torch.from_numpy(found.box_P4), patches(truth.poisoned))
    windows = candidates(run)
    best = windows.sort_by([("score", "descending"), ("image_id", "ascending")]).slice(0, TOP)
    return {
        **{f"trigger_detection_{key}": value for key, value in _window_figures(scored).items()},
        **_final_figures(scored, truth, found, located_P),
        **_located_figures(truth, found, located_P),
        "top20_precision": mean(truth.row(best["image_id"]) >= 0),
        "recall": mean(found.removed_P),
        "recall_natural_clusters": mean(found.removed_P[natural_P]),
        "recall_by_target": found.recall_by_target(),
        "families": found.families(),
        "precision": found.precision(),
        "false_positive_rate": found.false_positive_rate(),
        "decoys_removed": found.decoys_removed(),
        "by_shape": by_shape(run, truth),
        "n_images": truth.n_images,
        "n_poisoned": len(truth.poisoned),
        "n_poisoned_dead": int((dead_P & ~found.judged_P).sum()),
        "n_poisoned_natural_clusters": int(natural_P.sum()),
        "n_decoys": len(truth.decoys),
        "n_removed": found.n_removed,
        "n_dead": len(dead),
        "n_scored": len(pc.unique(windows["image_id"])),
        "n_scored_poisoned": len(scored.image_id),
        "n_scored_poison_clusters": int(scored.pure_S.sum()),
    }


def _window_figures(scored: Scored) -> Metrics:
    return scored.marks(scored.box_S4) | {"n_without_box": int((~scored.patched_S).sum())}


def _final_figures(scored: Scored, truth: Truth, found: Removed, located_P: Tensor) -> Metrics:
    """`located_P`: IoU of the box that the run gives."""
    row_S = truth.row(pa.array(scored.image_id, pa.string()))
    removed_S = torch.from_numpy(found.removed_P[row_S])
    iou_S = torch.where(removed_S, located_P[row_S], scored.iou(scored.box_S4))[scored.patched_S]
    return {
        "trigger_detection_final_accuracy": mean(iou_S >= HIT_IOU),
        "trigger_detection_final_mean_iou": mean(iou_S),
    }


def _located_figures(truth: Truth, found: Removed, located_P: Tensor) -> Metrics:
    removed = truth.poisoned.filter(pa.array(found.removed_P))
    # Judge looks at all of a long image, not at its own part alone.
    true_RT4 = patches(removed)
    patched_R = (area(true_RT4.flatten(0, 1)) > 0).view(true_RT4.shape[:2]).any(dim=1)
    iou_R = located_P[found.removed_P][patched_R]
    return {
        "located_accuracy": mean(iou_R >= HIT_IOU),
        "located_mean_iou": mean(iou_R),
        "n_located": len(iou_R),
    }


def _dead_ids(run: Folder) -> set[str]:
    dead = run / artifact.DEAD_ROWS
    tables = [dead.read_table(name, ["image_id"]) for name in dead.parts()]
    return {image_id for table in tables for image_id in table["image_id"].to_pylist()}
