"""Recall and false positives by the shape of the stored image: nearly square, wide or tall, and long.

N images of a part
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.attacks.margin import ASPECT
from poisoncam_ray.research.evaluate.joined import Truth, committed, index_in

SHAPES = ("up to 16:9", "up to 2:1", "longer than 2:1")
"""Of the longer side to the shorter. An image of 16:9 belongs to the second."""
LONG = 2.0
HIGHEST = 0.99
"""Quantile of the clean images' probabilities of poison, all shapes together."""


def by_shape(run: Folder, truth: Truth) -> dict[str, dict[str, Any]]:
    """Count fates by the shape of the stored image.

    Args:
        run: the run folder.
        truth: the truth.

    Returns:
        For each of SHAPES that the corpus has: n_clean (without decoys), n_clean_removed and
        false_positive_rate; n_poisoned and recall; and clean_in_top_hundredth, the share of the shape's clean
        images that are among the highest hundredth of all clean images by probability of poison: 0.01 where
        shapes are treated alike. Shares are None where there is nothing to take one of; the last is None,
        too, where all clean images have one probability, as in a run without a classifier.

    Raises:
        UserError: the run is not finished.
    """
    index = committed(run, artifact.INDEX)
    shape, p, removed, poisoned, decoy = [], [], [], [], []
    for name in committed(run, artifact.SCORES).parts():
        scores = (run / artifact.SCORES).read_table(name, ["image_id", "p_poison", "fate"])
        sizes = index.read_table(name, ["image_id", "width", "height"])
        sizes = sizes.take(index_in(scores["image_id"], sizes["image_id"]))
        shape.append(_shape_of(sizes["width"].to_numpy(), sizes["height"].to_numpy()))
        p.append(scores["p_poison"].to_numpy())
        removed.append(pc.equal(scores["fate"], artifact.REMOVE).to_numpy())
        poisoned.append(truth.row(scores["image_id"]) >= 0)
        decoy.append(truth.is_decoy(scores["image_id"]))
    if not shape:
        return {}
    shape_N, p_N, removed_N, poisoned_N, decoy_N = map(np.concatenate, (shape, p, removed, poisoned, decoy))
    clean_N = ~poisoned_N & ~decoy_N
    high_N = _high(p_N, clean_N)
    found = {}
    for number, name in enumerate(SHAPES):
        of_N = shape_N == number
        if not of_N.any():
            continue
        clean_here_N, poisoned_here_N = of_N & clean_N, of_N & poisoned_N
        found[name] = {
            "n_clean": int(clean_here_N.sum()),
            "n_clean_removed": int((clean_here_N & removed_N).sum()),
            "false_positive_rate": _share(removed_N[clean_here_N]),
            "clean_in_top_hundredth": None if high_N is None else _share(high_N[clean_here_N]),
            "n_poisoned": int(poisoned_here_N.sum()),
            "recall": _share(removed_N[poisoned_here_N]),
        }
    return found


def _shape_of(width_N: np.ndarray, height_N: np.ndarray) -> np.ndarray:
    longer_N, shorter_N = np.maximum(width_N, height_N), np.minimum(width_N, height_N)
    wide_N = longer_N * ASPECT[1] >= shorter_N * ASPECT[0]
    return wide_N.astype(int) + (longer_N > LONG * shorter_N)


def _high(p_N: np.ndarray, clean_N: np.ndarray) -> np.ndarray | None:
    """Whether each image has a probability in the highest hundredth of the clean ones."""
    clean_p = p_N[clean_N]
    if not len(clean_p) or clean_p.min() == clean_p.max():
        return None
    return p_N > np.quantile(clean_p, HIGHEST)


def _share(chosen_N: np.ndarray) -> float | None:
    return float(chosen_N.mean()) if len(chosen_N) else None
