"""The detection part of metrics.json: windows against true boxes, removed images against poisoned ones.

P poisoned images   N rows of a part
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from poisoncam_ray.artifact import Folder
from poisoncam_ray.errors import UserError
from poisoncam_ray.evaluate.joined import (
    Metrics,
    candidates,
    mean,
    parts,
    poison_clusters,
    read_truth,
    scored_poisoned,
)

TOP = 20


def detection_metrics(run_uri: str, truth_uri: str) -> Metrics:
    """The keys of DESIGN §3 up to `n_dead`, and these:

    trigger_detection_…_poison_clusters  over scored poisoned images whose cluster is more than half poison
    trigger_detection_n_cut  scored images whose trigger the centre crop cut into: counted in the accuracies,
                             by what is left of the trigger
    recall_natural_clusters  over poisoned images of the other clusters (n_poisoned_natural_clusters)
    n_poisoned_dead          poisoned images that did not decode: they count as not found in `recall`
    n_scored, n_scored_poisoned, n_scored_poison_clusters

    Shares are 0 to 1, None where there is nothing to take a share of. The false positive rate is over the
    clean images that got a verdict. Top-20 is by score, ties by image id.

    Raises UserError for an unfinished run, or when the truth is not of the corpus that the run read.
    """
    run, truth = Folder(run_uri), read_truth(truth_uri)
    removed_P, judged_P = np.zeros((2, len(truth.poisoned)), bool)
    n_judged = n_removed = 0
    for part in parts(run, "06_verdicts", ["image_id", "verdict"]):
        row_N = truth.row(part["image_id"])
        removed_N = pc.equal(part["verdict"], "remove").to_numpy()
        n_judged, n_removed = n_judged + len(row_N), n_removed + int(removed_N.sum())
        judged_P[row_N[row_N >= 0]] = True
        removed_P[row_N[(row_N >= 0) & removed_N]] = True
    dead = _dead_ids(run)
    dead_P = pc.is_in(truth.poisoned["image_id"], pa.array(sorted(dead), pa.string())).to_numpy()
    if n_judged + len(dead) != truth.n_images or not (judged_P | dead_P).all():
        raise UserError(
            f"The truth {truth_uri} ({truth.n_images} images) is not that of the corpus which the run "
            f"{run_uri} read ({n_judged + len(dead)} images): give the truth.parquet beside that corpus."
        )

    cluster_P, pure_P = poison_clusters(run, truth)
    natural_P = (cluster_P >= 0) & ~pure_P
    scored = scored_poisoned(run, truth, cluster_P, pure_P)
    marks = scored.marks(scored.box_S4)
    windows = candidates(run)
    best = windows.sort_by([("score", "descending"), ("image_id", "ascending")]).slice(0, TOP)
    n_found, n_clean = int(removed_P.sum()), n_judged - int(judged_P.sum())
    return {
        "trigger_detection_accuracy": marks["accuracy"],
        "trigger_detection_mean_iou": marks["mean_iou"],
        "trigger_detection_accuracy_poison_clusters": marks["accuracy_poison_clusters"],
        "trigger_detection_mean_iou_poison_clusters": marks["mean_iou_poison_clusters"],
        "trigger_detection_n_cut": int((scored.visible_S < 1).sum()),
        "top20_precision": mean(truth.row(best["image_id"]) >= 0),
        "recall": mean(removed_P),
        "recall_natural_clusters": mean(removed_P[natural_P]),
        "precision": n_found / n_removed if n_removed else None,
        "false_positive_rate": (n_removed - n_found) / n_clean if n_clean else None,
        "n_images": truth.n_images,
        "n_poisoned": len(truth.poisoned),
        "n_poisoned_dead": int((dead_P & ~judged_P).sum()),
        "n_poisoned_natural_clusters": int(natural_P.sum()),
        "n_removed": n_removed,
        "n_dead": len(dead),
        "n_scored": len(pc.unique(windows["image_id"])),
        "n_scored_poisoned": len(scored.image_id),
        "n_scored_poison_clusters": int(scored.pure_S.sum()),
    }


def _dead_ids(run: Folder) -> set[str]:
    dead = run / "dead"
    folders = [dead / stage for stage in dead.names()]
    tables = [folder.read_table(name, ["image_id"]) for folder in folders for name in folder.parts()]
    return {image_id for table in tables for image_id in table["image_id"].to_pylist()}
