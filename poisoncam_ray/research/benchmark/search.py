"""The search of one candidate, in every way that it is done or could be done.

N candidates   B masks   F flip-test images   K clusters   D feature dimensions   M of the candidates
C channels   H = W image side   w window side
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from poisoncam_ray.method.cam import (
    ScoreKind,
    best_window,
    candidate_windows,
    combined_map,
    mask_scores,
    mean_colour,
    refine_windows,
    windows_in_one_pass,
)
from poisoncam_ray.method.clusters import assign, kmeans
from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.method.geometry import crop, random_places
from poisoncam_ray.method.masks import keep_only, make_masks
from poisoncam_ray.method.race import RaceRules, Ranking, race
from poisoncam_ray.method.score import occlusion_flips, poison_scores
from poisoncam_ray.research.benchmark.images import PAINTED
from poisoncam_ray.research.study.flops import Way

ITERATIONS = 5
"""Of k-means. The clusters need not be good: they only have to be as many."""


@dataclass(frozen=True)
class Work:
    """Candidates, flip-test images and clusters, all on one device but `seeds_N`."""

    x_NCHW: Tensor
    own_N: Tensor
    seeds_N: Tensor
    x_FCHW: Tensor
    y_F: Tensor
    c_KD: Tensor
    batch: int

    def some(self, candidates: int, flip_images: int) -> Work:
        """The first candidates and flip-test images."""
        return replace(
            self,
            x_NCHW=self.x_NCHW[:candidates],
            own_N=self.own_N[:candidates],
            seeds_N=self.seeds_N[:candidates],
            x_FCHW=self.x_FCHW[:flip_images],
            y_F=self.y_F[:flip_images],
        )


@torch.inference_mode()
def work_on(encoder: Encoder, x_NCHW: Tensor, candidates: int, k: int, batch: int, seed: int = 0) -> Work:
    """Take the first images as candidates, all others as flip-test images, and cluster both.

    Args:
        encoder: the encoder.
        x_NCHW: of images.pixels, on the encoder's device.
        candidates: number of candidates.
        k: clusters, at most.
        batch: images through the encoder at once.
        seed: of the clusters.
    """
    x_NCHW = x_NCHW.float() / 255
    # The pictures repeat (images.pixels), and so do their features.
    f_ND = encoder.embed(x_NCHW[:PAINTED])[torch.arange(len(x_NCHW)) % PAINTED]
    c_KD = kmeans(f_ND, min(k, len(f_ND)), ITERATIONS, seed)
    y_N, _ = assign(f_ND, c_KD)
    return Work(
        x_NCHW=x_NCHW[:candidates],
        own_N=y_N[:candidates],
        seeds_N=torch.arange(candidates),
        x_FCHW=x_NCHW[candidates:],
        y_F=y_N[candidates:],
        c_KD=c_KD,
        batch=batch,
    )


def masks_of(way: Way, side: int, seed: int = 0) -> Tensor:
    """The masks m_BHW of a way, for images of `side` pixels, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return make_masks(way.strategy, way.masks, side, way.cell, way.window, generator)


def windows(encoder: Encoder, work: Work, way: Way, m_BHW: Tensor, kind: ScoreKind) -> tuple[Tensor, Tensor]:
    """Find each candidate's window as the search does, its cluster and its occlusion included where the way
    has them.

    Returns:
        own_N, the clusters, and box_N4.
    """
    fill_NC, own_N = mean_colour(work.x_NCHW), work.own_N
    keep_B = keep_only(way.strategy, len(m_BHW)).to(m_BHW.device)
    about = (kind, keep_B, way.window, fill_NC, work.batch, way.hiding)
    if way.checks > 1:
        own_N, box_N4, _ = windows_in_one_pass(encoder, work.x_NCHW, work.c_KD, m_BHW, *about)
    else:
        box_N4, _ = candidate_windows(encoder, work.x_NCHW, own_N, work.c_KD, m_BHW, *about)
    if way.refine:
        box_N4 = refine_windows(
            encoder, work.x_NCHW, box_N4, own_N, work.c_KD, kind, fill_NC, work.batch, way.hiding,
            way.refine_hidden, way.refine_shown, way.refine_passes,
        )  # fmt: skip
    if way.checks:
        occlusion_flips(
            encoder, work.x_NCHW, box_N4, own_N, work.c_KD, fill_NC, work.batch, way.hiding
        )  # fmt: skip
    return own_N, box_N4


def paste_on_all(encoder: Encoder, work: Work, own_N: Tensor, box_N4: Tensor) -> tuple[Tensor, Tensor]:
    """changed_N and gain_N of every candidate, pasted on all flip-test images."""
    return poison_scores(
        encoder, crop(work.x_NCHW, box_N4), work.x_FCHW, work.y_F, own_N, work.c_KD, work.seeds_N, work.batch
    )[:2]


def paste_in_race(encoder: Encoder, work: Work, own_N: Tensor, box_N4: Tensor, rules: RaceRules) -> Ranking:
    """Rank the candidates by the images that they change, pasted on as many as the race has it."""
    t_NCww = crop(work.x_NCHW, box_N4)

    def counts(i_M: Tensor, start: int, stop: int) -> Tensor:
        return poison_scores(
            encoder, t_NCww[i_M], work.x_FCHW[start:stop], work.y_F[start:stop], own_N[i_M], work.c_KD,
            work.seeds_N[i_M.cpu()], work.batch, first=start,
        )[0]  # fmt: skip

    every_N, n_flip = torch.arange(len(t_NCww), device=t_NCww.device), len(work.x_FCHW)
    return race(counts(every_N, 0, min(rules.first, n_flip)), counts, n_flip, rules)


def one_at_a_time(
    encoder: Encoder, work: Work, way: Way, m_BHW: Tensor, kind: ScoreKind
) -> tuple[Tensor, Tensor, Tensor]:
    """box_N4, changed_N and gain_N by the naive loop: one image, one mask or one paste a forward pass."""
    found = []
    keep_B = keep_only(way.strategy, len(m_BHW)).to(m_BHW.device)
    with torch.inference_mode():
        for x_CHW, own, seed in zip(work.x_NCHW, work.own_N, work.seeds_N, strict=True):
            fill_C11 = x_CHW.mean(dim=(1, 2), keepdim=True)
            scores = []
            for m_HW in m_BHW:
                f_1D = encoder.embed((x_CHW * m_HW + fill_C11 * (1 - m_HW))[None])
                scores.append(mask_scores(f_1D[None], own[None], work.c_KD, kind))
            a_1HW = combined_map(torch.cat(scores, dim=1), m_BHW, keep_B)
            box_14, _ = best_window(a_1HW, way.window)
            found.append((box_14[0], *_paste_on_each(encoder, work, x_CHW, own, seed, box_14[0].tolist())))
    box_N4, changed_N, gain_N = (torch.stack(column) for column in zip(*found, strict=True))
    return box_N4, changed_N, gain_N


def _paste_on_each(
    encoder: Encoder, work: Work, x_CHW: Tensor, own: Tensor, seed: Tensor, box: list[int]
) -> tuple[Tensor, Tensor]:
    x0, y0, x1, y1 = box
    t_Cww = x_CHW[:, y0:y1, x0:x1]
    size = (*t_Cww.shape[1:], *x_CHW.shape[1:])
    places_F4 = random_places(seed[None], torch.arange(len(work.x_FCHW)), *size)[0]
    landed = []
    for flip_CHW, (x0, y0, x1, y1) in zip(work.x_FCHW, places_F4.tolist(), strict=True):
        pasted_CHW = flip_CHW.clone()
        pasted_CHW[:, y0:y1, x0:x1] = t_Cww
        landed.append(assign(encoder.embed(pasted_CHW[None]), work.c_KD)[0])
    landed_F = torch.cat(landed)
    return (landed_F != work.y_F).sum(), (landed_F == own).sum() - (work.y_F == own).sum()
