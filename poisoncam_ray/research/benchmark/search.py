"""Cluster Activation Masking and poison scores in batches, against one image at a time.

N candidates   B masks   F flip-test images   K clusters   D feature dimensions
C channels   H = W image side   w window side
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.method.cam import (
    ScoreKind,
    best_window,
    candidate_windows,
    heat_map,
    mask_scores,
    mean_colour,
)
from poisoncam_ray.method.clusters import assign, auto_k, kmeans
from poisoncam_ray.method.encoder import Encoder, build_encoder
from poisoncam_ray.method.geometry import crop, random_places
from poisoncam_ray.method.masks import keep_only, make_masks
from poisoncam_ray.method.score import poison_scores
from poisoncam_ray.research.benchmark.compare import Comparison, alternate, rates


def compare_search(x_NCHW: Tensor, config: Config, n: int, rounds: int) -> Comparison:
    """Compare both ways with the configured strategy on an untrained encoder.

    Args:
        x_NCHW: uint8, the candidates and then the flip-test images.
        config: the configuration.
        n: number of candidates.
        rounds: how often each way is timed.
    """
    encoder = untrained(config).to(x_NCHW.device)
    work = candidates(encoder, x_NCHW, config, n)
    forwards = n * (len(work.m_BHW) + len(work.x_FCHW))
    ways = (lambda: batched(encoder, work), lambda: one_at_a_time(encoder, work))
    seconds, (ours, other) = alternate(ways, rounds)
    windows = int((ours[0] == other[0]).all(dim=1).sum())
    counts = int(((ours[1] == other[1]) & (ours[2] == other[2])).sum())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder.embed(work.x_FCHW)
    return Comparison(
        work=f"masks and pastes of {n} candidates",
        unit="forwards/s",
        ways=(f"batches of {work.batch}", "one at a time"),
        rates=rates(forwards, seconds),
        answers=f"{windows} of {n} windows and {counts} of {n} counts equal",
        facts={
            "forwards": forwards,
            "backbone": config.encoder.backbone,
            "image_size": config.encoder.image_size,
        },
        flop=counter.get_total_flops() / len(work.x_FCHW),
    )


def untrained(config: Config) -> Encoder:
    """The configured encoder with random weights from the seed, on the CPU, for inference."""
    torch.manual_seed(config.seed)
    made = config.encoder
    return build_encoder(made.backbone, made.image_size, made.patch_size).eval()


@dataclass(frozen=True)
class Candidates:
    """What one actor of the search works on. All but `seeds_N` is on one device."""

    x_NCHW: Tensor
    own_N: Tensor
    seeds_N: Tensor
    x_FCHW: Tensor
    y_F: Tensor
    c_KD: Tensor
    m_BHW: Tensor
    keep_B: Tensor
    kind: ScoreKind
    window: int
    batch: int


def candidates(encoder: Encoder, x_NCHW: Tensor, config: Config, n: int) -> Candidates:
    """The first images as candidates, the next as flip-test images, and clusters of all of them.

    Args:
        encoder: the encoder.
        x_NCHW: uint8 images.
        config: the configuration.
        n: number of candidates.

    Raises:
        UserError: the strategy has no masks.
    """
    settings, side = config.search, config.encoder.image_size
    x_NCHW = x_NCHW[: n + settings.flip_images].float() / 255
    with torch.inference_mode():
        f_ND = torch.cat([encoder.embed(x_BCHW) for x_BCHW in x_NCHW.split(settings.batch_size)])
    k = min(config.cluster.k or auto_k(len(f_ND)), len(f_ND))
    c_KD = kmeans(f_ND, k, config.cluster.iterations, config.seed)
    y_N, _ = assign(f_ND, c_KD)
    generator = torch.Generator().manual_seed(config.seed)
    strategy = settings.strategy
    if strategy == "gradcam":
        raise UserError("Grad-CAM has no masks to compare: give another search.strategy.")
    m_BHW = make_masks(strategy, settings.masks, side, config.cell_px, config.window_px, generator)
    m_BHW = m_BHW.to(x_NCHW.device)
    return Candidates(
        x_NCHW=x_NCHW[:n],
        own_N=y_N[:n],
        seeds_N=torch.arange(n),
        x_FCHW=x_NCHW[n:],
        y_F=y_N[n:],
        c_KD=c_KD,
        m_BHW=m_BHW,
        keep_B=keep_only(strategy, len(m_BHW)).to(x_NCHW.device),
        kind=settings.score,
        window=config.window_px,
        batch=settings.batch_size,
    )


def batched(encoder: Encoder, work: Candidates) -> tuple[Tensor, Tensor, Tensor]:
    """box_N4, changed_N and gain_N, found in batches as the search stage does."""
    box_N4, _ = candidate_windows(
        encoder, work.x_NCHW, work.own_N, work.c_KD, work.m_BHW, work.kind, work.keep_B, work.window,
        mean_colour(work.x_NCHW), work.batch,
    )  # fmt: skip
    changed_N, gain_N, _ = poison_scores(
        encoder, crop(work.x_NCHW, box_N4), work.x_FCHW, work.y_F, work.own_N, work.c_KD, work.seeds_N,
        work.batch,
    )  # fmt: skip
    return box_N4, changed_N, gain_N


@torch.inference_mode()
def one_at_a_time(encoder: Encoder, work: Candidates) -> tuple[Tensor, Tensor, Tensor]:
    """box_N4, changed_N and gain_N, with one image, one mask or one paste per forward pass."""
    found = []
    for x_CHW, own, seed in zip(work.x_NCHW, work.own_N, work.seeds_N, strict=True):
        fill_C11 = x_CHW.mean(dim=(1, 2), keepdim=True)
        scores = []
        for m_HW in work.m_BHW:
            f_1D = encoder.embed((x_CHW * m_HW + fill_C11 * (1 - m_HW))[None])
            scores.append(mask_scores(f_1D[None], own[None], work.c_KD, work.kind))
        box_14, _ = best_window(_map_of(torch.cat(scores, dim=1), work), work.window)
        changed, gain = _paste_on_each(encoder, work, x_CHW, own, seed, box_14[0].tolist())
        found.append((box_14[0], changed, gain))
    box_N4, changed_N, gain_N = (torch.stack(column) for column in zip(*found, strict=True))
    return box_N4, changed_N, gain_N


def _map_of(s_1B: Tensor, work: Candidates) -> Tensor:
    a_1HW = torch.zeros_like(work.x_NCHW[:1, 0])
    for keep in (False, True):
        chosen_B = work.keep_B == keep
        if chosen_B.any():
            read_1HW = heat_map(s_1B[:, chosen_B], work.m_BHW[chosen_B], keep)
            a_1HW += (read_1HW - read_1HW.mean()) / read_1HW.std(correction=0).clamp(min=1e-6)
    return a_1HW


def _paste_on_each(
    encoder: Encoder, work: Candidates, x_CHW: Tensor, own: Tensor, seed: Tensor, box: list[int]
) -> tuple[Tensor, Tensor]:
    x0, y0, x1, y1 = box
    t_Cww = x_CHW[:, y0:y1, x0:x1]
    places_F4 = random_places(
        seed[None], torch.arange(len(work.x_FCHW)), work.window, work.window, *x_CHW.shape[1:]
    )[0]
    landed = []
    for flip_CHW, (x0, y0, x1, y1) in zip(work.x_FCHW, places_F4.tolist(), strict=True):
        pasted_CHW = flip_CHW.clone()
        pasted_CHW[:, y0:y1, x0:x1] = t_Cww
        landed.append(assign(encoder.embed(pasted_CHW[None]), work.c_KD)[0])
    landed_F = torch.cat(landed)
    return (landed_F != work.y_F).sum(), (landed_F == own).sum() - (work.y_F == own).sum()
