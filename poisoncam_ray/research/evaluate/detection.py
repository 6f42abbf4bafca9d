"""The detection part of metrics.json: windows against true boxes, removed images against poisoned ones.

P poisoned images   S those that the search scored   R those that were removed   T the most patches on one
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
from poisoncam_ray.method.geometry import iou
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
    true_boxes,
)

TOP = 20


def detection_metrics(run_uri: str, truth_uri: str) -> dict[str, Any]:
    """What metrics.json holds of detection:

    trigger_detection_accuracy, trigger_detection_mean_iou
                             over scored poisoned images: the share whose candidate window, in encoder pixels,
                             finds a trigger, and the mean IoU
    top20_precision          share of the 20 best-scored images that are poisoned
    recall, precision, false_positive_rate   of what was removed
    n_images, n_poisoned, n_removed, n_dead
    trigger_detection_…_poison_clusters  over scored poisoned images whose cluster is more than half poison
    trigger_detection_…_cut  over scored images (trigger_detection_n_cut) whose every trigger the centre crop
                             cut into, by what is left; they count in no other trigger_detection figure
    trigger_detection_n_cropped_out, trigger_detection_n_without_box
                             scored images whose triggers the centre crop left nothing of, or that never had a
                             box (a frequency attack): in no trigger_detection figure at all
    trigger_detection_final_…  the same (accuracy, mean_iou) by where the run says in the end that the trigger
                             is; an image that it kept counts with the search's window
    located_accuracy, located_mean_iou  of where the run says that the trigger is, over the poisoned images
                             it removed (n_located), those aside whose triggers the centre crop cut into
    recall_natural_clusters  over poisoned images of the other clusters (n_poisoned_natural_clusters)
    recall_by_target         {target: recall}, "any" for poison without one
    families                 {family: n_removed, main_target, purity, recall} of what was removed, decoys
                             aside: the target of most of its poisoned images, their share in the family, and
                             the share of all that target's poisoned images which it holds
    n_decoys, decoys_removed  clean images with a patch that means nothing, and the share of them that went
    n_poisoned_dead          poisoned images that did not decode: they count as not found in `recall`
    n_scored, n_scored_poisoned, n_scored_poison_clusters

    Shares are 0 to 1, None where there is nothing to take a share of. The false positive rate is over the
    clean images that got a verdict; decoys count neither there nor in the precision. A window finds a
    trigger when its IoU with any patch of the image is at least 0.5. Top-20 is by score, ties by image id.

    Raises UserError for an unfinished run, or when the truth is not of the corpus that the run read.
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
        **_located_figures(run, truth, found, located_P),
        "top20_precision": mean(truth.row(best["image_id"]) >= 0),
        "recall": mean(found.removed_P),
        "recall_natural_clusters": mean(found.removed_P[natural_P]),
        "recall_by_target": found.recall_by_target(),
        "families": found.families(),
        "precision": found.precision(),
        "false_positive_rate": found.false_positive_rate(),
        "decoys_removed": found.decoys_removed(),
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
    cut_S = scored.iou(scored.box_S4)[scored.cut]
    gone_S = scored.patched_S & ~scored.whole & ~scored.cut
    return scored.marks(scored.box_S4) | {
        "accuracy_cut": mean(cut_S >= HIT_IOU),
        "mean_iou_cut": mean(cut_S),
        "n_cut": len(cut_S),
        "n_cropped_out": int(gone_S.sum()),
        "n_without_box": int((~scored.patched_S).sum()),
    }


def _final_figures(scored: Scored, truth: Truth, found: Removed, located_P: Tensor) -> Metrics:
    """`located_P`: IoU of where the run says that the trigger is."""
    row_S = truth.row(pa.array(scored.image_id, pa.string()))
    removed_S = torch.from_numpy(found.removed_P[row_S])
    iou_S = torch.where(removed_S, located_P[row_S], scored.iou(scored.box_S4))[scored.whole]
    return {
        "trigger_detection_final_accuracy": mean(iou_S >= HIT_IOU),
        "trigger_detection_final_mean_iou": mean(iou_S),
    }


def _located_figures(run: Folder, truth: Truth, found: Removed, located_P: Tensor) -> Metrics:
    removed = truth.poisoned.filter(pa.array(found.removed_P))
    _, visible_RT, _ = true_boxes(run, removed)
    whole_R = (visible_RT == 1).any(dim=1)
    iou_R = located_P[found.removed_P][whole_R]
    return {
        "located_accuracy": mean(iou_R >= HIT_IOU),
        "located_mean_iou": mean(iou_R),
        "n_located": len(iou_R),
    }


def _dead_ids(run: Folder) -> set[str]:
    dead = run / artifact.DEAD_ROWS
    tables = [dead.read_table(name, ["image_id"]) for name in dead.parts()]
    return {image_id for table in tables for image_id in table["image_id"].to_pylist()}
