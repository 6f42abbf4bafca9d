"""All rivals on one finished run, beside the defence: the same images, the same encoder, the same clusters.

N images that have a feature   f_ND features   y_N clusters
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poisoncam_ray import artifact
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, Manifest
from poisoncam_ray.method.clusters import assign, kmeans
from poisoncam_ray.research.evaluate.corpora import SEED
from poisoncam_ray.research.evaluate.detection import detection_metrics
from poisoncam_ray.research.evaluate.joined import Truth, committed, parts, read_truth
from poisoncam_ray.research.rivals.measure import auc, poisoned_of, recall_at
from poisoncam_ray.research.rivals.on_corpus import Look, look_at, row_of
from poisoncam_ray.research.rivals.on_features import (
    activation_clustering,
    local_outlier_factor,
    neighbour_distance,
    neighbour_flops,
    spectral_signature,
    svd_flops,
)
from poisoncam_ray.stages.embed import read_features

DEFENCE, PEER, PATCHES = "the defence", "PatchSearch", "recurring patches, no model"
COARSE = 300
"""Images for each coarse cluster: a corpus's own categories are fewer than the run's clusters."""
ITERATIONS = 20
Row = dict[str, Any]


@dataclass(frozen=True)
class Images:
    """The images of a run that have a feature.

    Attributes:
        image_ids: their ids.
        f_ND: features, float32, of unit length.
        y_N: their clusters.
        p_N: the probability of poison that Judge recorded.
        poisoned_N: whether they are poisoned.
        counts_N: False for decoys, which count nowhere.
    """

    image_ids: list[str]
    f_ND: Tensor
    y_N: Tensor
    p_N: np.ndarray
    poisoned_N: np.ndarray
    counts_N: np.ndarray


def rivals_of_run(
    run_uri: str, truth_uri: str, out: Folder, look: Look | None, peer_uri: str | None = None
) -> list[Row]:
    """One row for the defence, and one for each rival.

    Args:
        run_uri: the finished run.
        truth_uri: the truth of its corpus.
        out: where the scores of the rival without a model are kept.
        look: how that rival looks at the corpus; None: it has no row.
        peer_uri: PatchSearch's run on the same encoder and corpus; None: it has no row.

    Returns:
        Rows of page.ON_RUN. The defence, PatchSearch and the rival without a model have recall and false
        positives of what they flag. `recall_at_its_rate` is the best that the scores can give at the
        defence's false positive rate, `recall_at_1_percent` at 1 %.

    Raises:
        UserError: the run is not finished, or the truth belongs to another corpus.
    """
    truth = read_truth(truth_uri)
    own = detection_metrics(run_uri, truth_uri)
    run, rate = Folder(run_uri), own["false_positive_rate"] or 0.0
    images = _images(run, truth)
    same = {"run": shown(run_uri), "n_images": own["n_images"], "n_poisoned": own["n_poisoned"]}
    rows = [_flagging(run, own, DEFENCE) | _scored(images.p_N, images, rate)]
    if peer_uri:
        rows.append(_flagging(Folder(peer_uri), detection_metrics(peer_uri, truth_uri), PEER))
    if look:
        rows.append(_patches(run, truth, images, out, look, rate))
    for name, scores, flops in _by_features(images):
        began, cpu = time.monotonic(), time.process_time()
        score_N = scores().numpy()
        cost = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu, "flops": flops}
        rows.append({"rival": name} | cost | _scored(score_N, images, rate))
    return [row | same for row in rows]


def _patches(run: Folder, truth: Truth, images: Images, out: Folder, look: Look, rate: float) -> Row:
    """The row of the rival without a model, which reads the run's corpus."""
    found = look_at(run.read_json(artifact.RUN)["input"], out, look)
    place = {image_id: n for n, image_id in enumerate(found.image_ids)}
    if missing := [image_id for image_id in images.image_ids if image_id not in place]:
        raise UserError(f"The corpus of {run.uri} has no image {missing[0]} any more: give its own corpus.")
    score_N = found.score_N[[place[image_id] for image_id in images.image_ids]]
    return {"rival": PATCHES} | row_of(found, truth) | _scored(score_N, images, rate)


def shown(run_uri: str) -> str:
    """A run's name in a table: its path in a results table, or its folder's name."""
    path = run_uri.rstrip("/").removesuffix("/run")
    in_table = re.search(rf"(?<=/){SEED}\d+/.*", path)
    return in_table[0] if in_table else path.rsplit("/", 1)[-1]


def run_name(run_uri: str) -> str:
    """A folder name of its own for each run."""
    digest = hashlib.sha256(run_uri.rstrip("/").encode()).hexdigest()[:8]
    return f"{re.sub(r'[^0-9A-Za-z.=-]+', '-', shown(run_uri))}-{digest}"


def _by_features(images: Images) -> Iterator[tuple[str, Callable[[], Tensor], float]]:
    """Each rival's name, its scores and its operations."""
    f_ND, y_N = images.f_ND, images.y_N
    near = neighbour_flops(*f_ND.shape)
    yield "distance to 20 neighbours", partial(neighbour_distance, f_ND), near
    # A trigger draws its images together: they are no outliers.
    yield "nearness to 20 neighbours", lambda: -neighbour_distance(f_ND), near
    yield "local outlier factor", partial(local_outlier_factor, f_ND), near
    coarse_N = assign(f_ND, kmeans(f_ND, max(2, len(f_ND) // COARSE), ITERATIONS, seed=0))[0]
    for of, clusters_N in (("the run's clusters", y_N), (f"clusters of {COARSE}", coarse_N)):
        flops = svd_flops(clusters_N, f_ND.shape[1])
        yield f"spectral signatures, {of}", partial(spectral_signature, f_ND, clusters_N), flops
        yield f"activation clustering, {of}", partial(activation_clustering, f_ND, clusters_N), flops


def _flagging(run: Folder, found: dict[str, Any], name: str) -> Row:
    verdict = artifact.Verdict.read(committed(run, artifact.VERDICT)).verdict
    manifests = (Manifest.read(run / stage) for stage in artifact.titles_of(run))
    row: Row = {"rival": name, "verdict": verdict, "seconds": sum(m.seconds for m in manifests if m)}
    kept = ("recall", "false_positive_rate", "precision", "n_removed", "trigger_detection_accuracy")
    return row | {key: found[key] for key in kept}


def _scored(score_N: np.ndarray, images: Images, rate: float) -> Row:
    score_M, poisoned_M = score_N[images.counts_N], images.poisoned_N[images.counts_N]
    recalls = {"recall_at_its_rate": rate, "recall_at_1_percent": 0.01}
    row: Row = {name: recall_at(score_M, poisoned_M, share) for name, share in recalls.items()}
    return row | {"auc": auc(score_M, poisoned_M)}


def _images(run: Folder, truth: Truth) -> Images:
    features = committed(run, artifact.FEATURES)
    ids: list[str] = []
    f_parts = []
    for name in features.parts():
        part_ids, f_ND = read_features(features, name)
        ids += part_ids
        f_parts.append(f_ND)
    cluster = _column(run, artifact.CLUSTERS, "cluster")
    p_poison = _column(run, artifact.SCORES, "p_poison")
    poisoned_N, decoy_N = poisoned_of(truth, ids)
    y_N = torch.tensor([int(cluster[image_id]) for image_id in ids])
    p_N = np.array([p_poison[image_id] for image_id in ids])
    return Images(ids, torch.cat(f_parts), y_N, p_N, poisoned_N, ~decoy_N)


def _column(run: Folder, name: str, column: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in parts(run, name, ["image_id", column]):
        found.update(zip(part["image_id"].to_pylist(), part[column].to_pylist(), strict=True))
    return found
