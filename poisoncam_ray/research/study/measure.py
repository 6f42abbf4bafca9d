"""One pass through the encoder, evaluated for all settings that share it, against the true boxes.

Windows are refined where the grid asks for it. The search's scales (search.scales) are left out: they come
after the window, whatever found it.

S measured images   N images at once   B masks   C channels   H = W image side   K clusters
D feature dimensions   box_S4 integer [x0, y0, x1, y1) in encoder pixels
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, cast

import pyarrow as pa
import torch
from torch import Tensor

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.config import Strategy as MaskStrategy
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.cam import (
    ScoreKind,
    best_window,
    combined_map,
    gradcam,
    mask_scores,
    masked_features,
    mean_colour,
    refine_windows,
    refinement_forwards,
)
from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.method.geometry import coverage, iou, random_boxes
from poisoncam_ray.method.masks import SMOOTH, cell_of_patches, keep_only, make_masks
from poisoncam_ray.research.evaluate.joined import committed, mean
from poisoncam_ray.research.evaluate.scored import HIT_IOU, of_best_patch
from poisoncam_ray.research.study import flops
from poisoncam_ray.research.study.grid import READS_WINDOW, REFERENCES, Grid, Refine
from poisoncam_ray.research.study.images import StudyImages, read_images
from poisoncam_ray.research.study.plan import SCHEMA, Pass, Way, pixels
from poisoncam_ray.research.study.runs import StudyRun
from poisoncam_ray.runner import config_of, corpus_of
from poisoncam_ray.stages.compute import device
from poisoncam_ray.stages.embed import load_encoder
from poisoncam_ray.stages.pixels import fetch_images, images_of
from poisoncam_ray.stages.pool import image_seed

# Bounds the features and the distances held at once: 2²⁴ float32 are 64 MiB.
NUMBERS_AT_ONCE = 1 << 24
IMAGES_AT_ONCE = 256

Boxes = dict[Way, Tensor]
Seconds = dict[Way, float]


def measure(todo: Pass, one: StudyRun, grid: Grid, folder: Folder) -> pa.Table:
    """Run one pass and measure it.

    Args:
        todo: the pass.
        one: the run.
        grid: the grid.
        folder: what `prepare` wrote for the run.

    Returns:
        Rows of SCHEMA, one for every setting that shares the pass.
    """
    run, chosen = Folder(one.run_uri), read_images(folder, grid)
    config = config_of(run)
    encoder = load_encoder(committed(run, artifact.ENCODER), config.resources.precision)
    cell = cell_px(todo, encoder)
    m_BHW = draw_masks(todo, grid, encoder.image_size, cell)
    found: dict[Way, list[Tensor]] = defaultdict(list)
    seconds: Seconds = defaultdict(float)
    for rows, x_NCHW in _images(run, config, chosen, todo):
        own = {factor: own_S[rows].to(device()) for factor, own_S in chosen.own_S.items()}
        c_KD = {factor: centroids.to(device()) for factor, centroids in chosen.c_KD.items()}
        if todo.strategy == "gradcam":
            boxes, spent = _gradcam(todo, encoder, x_NCHW, own, c_KD)
        elif todo.strategy == "random_window":
            boxes, spent = _random_windows(todo, grid, chosen.image_id[rows], encoder.image_size), {}
        else:
            boxes, spent = _by_masks(todo, grid, encoder, x_NCHW, m_BHW, own, c_KD, config.search.batch_size)
        for way, box_N4 in boxes.items():
            found[way].append(box_N4.cpu())
            seconds[way] += spent.get(way, 0.0)

    @cache
    def cost(masks: int, window: int, refine: Refine | None) -> float:
        by = refine or Refine()
        how = flops.Way(
            cast(MaskStrategy, todo.strategy), masks, cell or 1, window, todo.hiding or "paint",
            refine is not None, by.hidden, by.shown, by.passes, checks=0, flip_images=0,
        )  # fmt: skip
        return flops.bill(encoder, how).total

    made = []
    for way, parts in found.items():
        row = _row(todo, way, chosen, encoder.image_size, cell, torch.cat(parts))
        row["flops"] = chosen.flops_gradcam if todo.strategy == "gradcam" else 0.0
        if way.masks is not None:
            row["flops"] = cost(way.masks, row["window_px"], way.refine)
        made.append(row | {"seconds": seconds[way] / len(chosen.image_id)})
    return pa.Table.from_pylist(made, SCHEMA)


def cell_px(todo: Pass, encoder: Encoder) -> int | None:
    """The side of a cell in pixels, of whole patches where tokens are dropped for it; None without cells."""
    if todo.cell is None:
        return None
    cell = pixels(todo.cell, encoder.image_size)
    if todo.hiding == "drop" and todo.strategy not in SMOOTH:
        return cell_of_patches(cell, encoder.patch_size or 1)
    return cell


def draw_masks(todo: Pass, grid: Grid, image_size: int, cell: int | None) -> Tensor:
    """m_BHW of a pass, for its largest B; no masks for a reference.

    Every run draws its own masks, so that the variation over runs includes that of the masks.

    Args:
        todo: the pass.
        grid: the grid.
        image_size: side of the images in pixels.
        cell: side of a cell in pixels (cell_px).
    """
    if todo.strategy in REFERENCES:
        return torch.empty(0, image_size, image_size)
    shape = (todo.cell, *todo.windows, *todo.masks) if todo.strategy in READS_WINDOW else (todo.cell,)
    seed = image_seed(grid.seed, f"{todo.run}:{todo.strategy}:{shape}")
    return make_masks(
        cast(MaskStrategy, todo.strategy),
        max(todo.masks),
        image_size,
        cell or image_size,
        pixels(todo.windows[0], image_size),
        torch.Generator().manual_seed(seed),
    )


@torch.inference_mode()
def read_windows(
    todo: Pass,
    grid: Grid,
    f_NBD: Tensor,
    m_BHW: Tensor,
    own: dict[float, Tensor],
    c_KD: dict[float, Tensor],
) -> Boxes:
    """The candidate windows of N images, for every K, score, B and window.

    Args:
        todo: the pass.
        grid: the grid.
        f_NBD: features of the masked images.
        m_BHW: the masks.
        own: own_N, the image's cluster, for every K factor.
        c_KD: the centroids, for every K factor.
    """
    image_size = m_BHW.shape[1]
    keep_B = keep_only(cast(MaskStrategy, todo.strategy), len(m_BHW)).to(m_BHW.device)
    boxes = {}
    for factor in grid.k_factors:
        for score in grid.scores:
            s_NB = mask_scores(f_NBD, own[factor], c_KD[factor], score)
            for asked in todo.masks:
                b = min(asked, len(m_BHW))
                a_NHW = combined_map(s_NB[:, :b], m_BHW[:b], keep_B[:b])
                for window in todo.windows:
                    box_N4, _ = best_window(a_NHW, pixels(window, image_size))
                    boxes[Way(factor, score, asked, window, b)] = box_N4
    return boxes


def _by_masks(
    todo: Pass,
    grid: Grid,
    encoder: Encoder,
    x_NCHW: Tensor,
    m_BHW: Tensor,
    own: dict[float, Tensor],
    c_KD: dict[float, Tensor],
    batch: int,
) -> tuple[Boxes, Seconds]:
    """Windows by masks, refined in every way of the grid, and the seconds that each takes."""
    fill_NC, hiding, began = mean_colour(x_NCHW), todo.hiding or "paint", _now()
    f_NBD = masked_features(encoder, x_NCHW, m_BHW, fill_NC, batch, hiding)
    per_mask = (_now() - began) / len(m_BHW)
    boxes, spent = {}, {}
    for way, box_N4 in read_windows(todo, grid, f_NBD, m_BHW.to(x_NCHW), own, c_KD).items():
        for by in grid.refines:
            began, refined_N4, forwards = _now(), box_N4, way.forwards
            if by is not None:
                forwards += refinement_forwards(by.hidden, by.shown, by.passes)
                refined_N4 = refine_windows(
                    encoder, x_NCHW, box_N4, own[way.k_factor], c_KD[way.k_factor],
                    cast(ScoreKind, way.score), fill_NC, batch, hiding, by.hidden, by.shown, by.passes,
                )  # fmt: skip
            refined = replace(way, refine=by, forwards=forwards)
            boxes[refined] = refined_N4
            spent[refined] = per_mask * way.forwards + _now() - began
    return boxes, spent


def _gradcam(
    todo: Pass, encoder: Encoder, x_NCHW: Tensor, own: dict[float, Tensor], c_KD: dict[float, Tensor]
) -> tuple[Boxes, Seconds]:
    """Windows and seconds by Grad-CAM. One map gives every window, but each K has its own centroids."""
    boxes, began = {}, _now()
    maps = {factor: gradcam(encoder, x_NCHW, c_KD[factor][own_N]) for factor, own_N in own.items()}
    seconds = (_now() - began) / len(maps)
    for factor, a_NHW in maps.items():
        for window in todo.windows:
            box_N4, _ = best_window(a_NHW, pixels(window, encoder.image_size))
            boxes[Way(factor, None, None, window, 1)] = box_N4
    return boxes, dict.fromkeys(boxes, seconds)


def _random_windows(todo: Pass, grid: Grid, image_ids: list[str], image_size: int) -> Boxes:
    """Random windows. They do not depend on K."""
    boxes = {}
    for window in todo.windows:
        side = pixels(window, image_size)
        drawn = []
        for image_id in image_ids:
            seed = image_seed(grid.seed, f"{todo.run}:{image_id}:{window}")
            generator = torch.Generator().manual_seed(seed)
            drawn.append(random_boxes(1, side, side, image_size, image_size, (0.0, 1.0), generator))
        for factor in grid.k_factors:
            boxes[Way(factor, None, None, window, 0)] = torch.cat(drawn)
    return boxes


def _images(run: Folder, config: Config, chosen: StudyImages, todo: Pass) -> Iterator[tuple[slice, Tensor]]:
    """Images in batches of which the features, distances and maps of all masks fit into memory."""
    wide = max(max(c_KD.shape) for c_KD in chosen.c_KD.values()) * max([1, *todo.masks])
    at_once = max(1, min(IMAGES_AT_ONCE, NUMBERS_AT_ONCE // wide))
    images = images_of(corpus_of(run), config, run / artifact.INDEX)
    for start in range(0, len(chosen.image_id), at_once):
        rows = slice(start, start + at_once)
        x_NCHW = torch.from_numpy(fetch_images(images, config, chosen.image_id[rows]))
        yield rows, x_NCHW.to(device()).float() / 255


def _row(
    todo: Pass, way: Way, chosen: StudyImages, image_size: int, cell: int | None, box_S4: Tensor
) -> dict[str, Any]:
    pure_S = chosen.pure_S[way.k_factor]
    iou_S, coverage_S = (of_best_patch(mark, box_S4, chosen.true_ST4) for mark in (iou, coverage))
    row = {
        "run": todo.run,
        "poison_rate": chosen.poison_rate,
        "k_factor": way.k_factor,
        "k": len(chosen.c_KD[way.k_factor]),
        "strategy": todo.strategy,
        "score": way.score,
        "masks": way.masks,
        "cell": todo.cell,
        "cell_px": cell,
        "window": way.window,
        "window_px": pixels(way.window, image_size),
        "hiding": todo.hiding,
        "refine": way.refine.label if way.refine else None,
        "forwards": way.forwards,
        "flops_forward": chosen.flops_forward,
        "found": "".join(str(int(hit)) for hit in iou_S >= HIT_IOU),
    }
    for suffix, of_S in (("", torch.ones_like(pure_S)), ("_poison_clusters", pure_S)):
        row |= {
            f"n{suffix}": int(of_S.sum()),
            f"hits{suffix}": int((iou_S[of_S] >= HIT_IOU).sum()),
            f"accuracy{suffix}": mean(iou_S[of_S] >= HIT_IOU),
            f"coverage{suffix}": mean(coverage_S[of_S]),
            f"mean_iou{suffix}": mean(iou_S[of_S]),
        }
    return row


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
