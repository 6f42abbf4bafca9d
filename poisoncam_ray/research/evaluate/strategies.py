"""Ways of finding the window, compared on the same images, encoder and centroids.

They are the mask strategies (the paper's among them), the peer's Grad-CAM, and random windows.

N images at once   S scored poisoned images   C channels   B masks   box_S4 [x0, y0, x1, y1) in encoder pixels
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast, get_args

import torch
from torch import Tensor

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.cam import ScoreKind, candidate_windows, gradcam_windows, mean_colour
from poisoncam_ray.method.geometry import random_boxes
from poisoncam_ray.method.masks import Strategy, keep_only, make_masks
from poisoncam_ray.research.evaluate.joined import Metrics, committed, poison_clusters, read_truth
from poisoncam_ray.research.evaluate.scored import scored_poisoned
from poisoncam_ray.runner import config_of
from poisoncam_ray.stages.cluster import read_centroids
from poisoncam_ray.stages.compute import device
from poisoncam_ray.stages.embed import load_encoder
from poisoncam_ray.stages.pixels import fetch_images, images_of

IMAGES_AT_ONCE = 256


def compare_strategies(
    run_uri: str,
    corpus_uri: str,
    truth_uri: str,
    strategies: Iterable[str] = ("full_coverage:hard", "gradcam", "random"),
    n_masks: int | None = None,
    seed: int = 0,
) -> dict[str, Metrics]:
    """Find the windows of a run's scored poisoned images again by each strategy, and measure them.

    Cells and windows have the sizes of the run's search.

    Args:
        run_uri: the run folder.
        corpus_uri: the corpus that the run read.
        truth_uri: truth.parquet of the attack.
        strategies: each "<mask strategy>:<hard|margin|distance>" ("full_coverage:hard" is the paper's),
            "gradcam" (the peer's) or "random" (random windows).
        n_masks: B, forwards per image; None: as in the run's search.
        seed: seed of the masks and of the random windows.

    Returns:
        {strategy: marks} as in `Scored.marks`. "recorded" are the run's own windows; they had refinement and
        scales (search.refine, search.scales), the others have not.

    Raises:
        UserError: a strategy is unknown, or the run is not finished.
    """
    run, truth = Folder(run_uri), read_truth(truth_uri)
    config = config_of(run)
    masks = {name: _masks(name, n_masks or config.search.masks, config, seed) for name in strategies}
    scored = scored_poisoned(run, truth, *poison_clusters(run, truth))
    encoder = load_encoder(committed(run, artifact.ENCODER), config.resources.precision)
    c_KD = read_centroids(committed(run, artifact.CLUSTERS)).to(device())
    corpus = open_corpus(corpus_uri, config.corpus.format, config.corpus.image_column)
    images = images_of(corpus, config, run / artifact.INDEX)
    window, side = config.window_px, encoder.image_size
    found: dict[str, list[Tensor]] = {name: [torch.empty(0, 4, dtype=torch.int64)] for name in masks}
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(scored.image_id), IMAGES_AT_ONCE):
        rows = slice(start, start + IMAGES_AT_ONCE)
        pixels = torch.from_numpy(fetch_images(images, config, scored.image_id[rows]))
        x_NCHW = pixels.to(device()).float() / 255
        own_N = scored.own_S[rows].to(device())
        for name, m_BHW in masks.items():
            if name == "gradcam":
                box_N4 = gradcam_windows(encoder, x_NCHW, own_N, c_KD, window)
            elif m_BHW is None:
                box_N4 = random_boxes(len(x_NCHW), window, window, side, side, (0.0, 1.0), generator)
            else:
                strategy, _, kind = name.partition(":")
                box_N4, _ = candidate_windows(
                    encoder,
                    x_NCHW,
                    own_N,
                    c_KD,
                    m_BHW,
                    cast(ScoreKind, kind),
                    keep_only(cast(Strategy, strategy), len(m_BHW)),
                    window,
                    mean_colour(x_NCHW),
                    config.search.batch_size,
                )
            found[name].append(box_N4.cpu())
    recorded = {"recorded": scored.marks(scored.box_S4)}
    return recorded | {name: scored.marks(torch.cat(boxes)) for name, boxes in found.items()}


def _masks(name: str, n_masks: int, config: Config, seed: int) -> Tensor | None:
    """m_BHW on the CPU; None for a strategy without masks."""
    if name in ("gradcam", "random"):
        return None
    strategy, _, kind = name.partition(":")
    if strategy not in get_args(Strategy) or kind not in get_args(ScoreKind):
        raise UserError(
            f"There is no strategy {name!r}: write gradcam, random, or {', '.join(get_args(Strategy))} "
            f"with a score after a colon, one of {', '.join(get_args(ScoreKind))}."
        )
    generator = torch.Generator().manual_seed(seed)
    side = config.encoder.image_size
    try:
        return make_masks(
            cast(Strategy, strategy), n_masks, side, config.cell_px, config.window_px, generator
        )
    except ValueError as error:
        raise UserError(f"The strategy {name!r} cannot be tried: {error}.") from None
