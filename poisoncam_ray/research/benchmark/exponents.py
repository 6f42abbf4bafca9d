"""How cost grows with the images N, the clusters K and the masks B: exponents by least squares on logarithms.

N images   K clusters   D feature dimensions   S sizes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from poisoncam_ray.method.clusters import assign, kmeans
from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.research.benchmark.candidate import Sizes as CandidateSizes
from poisoncam_ray.research.benchmark.candidate import naive_way, prepared
from poisoncam_ray.research.benchmark.compare import Measured, Setting, Table, alternate, low_precision
from poisoncam_ray.research.benchmark.page import short
from poisoncam_ray.research.benchmark.search import Work, masks_of, paste_on_all, windows
from poisoncam_ray.research.study.flops import Way
from poisoncam_ray.stages.compute import device

PER_CLUSTER = 2
"""Candidates of a cluster."""
DIM = 128
ITERATIONS = 10
FACTORS = (1, 2, 4)


NETWORK = CandidateSizes("resnet_tiny_s2", 32, 4, 11, candidates=64, flip_images=100, k=32, batch=256)


@dataclass(frozen=True)
class Sizes:
    """Of the part `exponents`: the smallest of three sizes, each twice the one before.

    Attributes:
        images: N of embedding.
        features: N of k-means.
        clusters: K of k-means.
        searched: K of the search.
        masks: B.
        network: the encoder, and the other sizes of the search.
    """

    images: int = 2048
    features: int = 20_000
    clusters: int = 128
    searched: int = 8
    masks: int = 64
    network: CandidateSizes = NETWORK


def measure_exponents(setting: Setting, sizes: Sizes) -> Measured:
    """Seconds at three sizes of N, K and B."""
    encoder, work = prepared(setting, sizes.network, low_precision())
    generator = torch.Generator().manual_seed(0)
    f_ND = F.normalize(torch.randn(4 * sizes.features, DIM, generator=generator), dim=1).to(device())
    x_NCHW = work.x_FCHW.repeat(-(-4 * sizes.images // len(work.x_FCHW)), 1, 1, 1)
    way = replace(naive_way(sizes.network), strategy="mixed", refine=True, checks=2)
    n, k, searched, b = ([least * factor for factor in FACTORS] for least in (
        sizes.features, sizes.clusters, sizes.searched, sizes.masks
    ))  # fmt: skip
    images = [sizes.images * factor for factor in FACTORS]
    fixed, n_flip = sizes.features, len(work.x_FCHW)
    curves: list[tuple[str, str, list[int], list[Callable[[], object]]]] = [
        ("embed N images, nearest centroids", "N", images, [
            partial(_embed, encoder, x_NCHW[:size], work) for size in images
        ]),
        (f"k-means of N features, K = {sizes.clusters}", "N", n, [
            partial(kmeans, f_ND[:size], sizes.clusters, ITERATIONS, 0) for size in n
        ]),
        (f"k-means of {fixed:,} features into K clusters", "K", k, [
            partial(kmeans, f_ND[:fixed], size, ITERATIONS, 0) for size in k
        ]),
        (f"search of {PER_CLUSTER} candidates in each of K clusters", "K", searched, [
            partial(_search, encoder, work.some(PER_CLUSTER * size, n_flip), way) for size in searched
        ]),
        ("windows of 8 candidates by B masks", "B", b, [
            partial(_windows, encoder, work.some(8, 1), replace(way, masks=size, refine=False)) for size in b
        ]),
    ]  # fmt: skip
    lines = []
    for name, letter, at, ways in curves:
        seconds, _ = alternate(ways, setting.rounds)
        found = [exponent(at, [each[turn] for each in seconds]) for turn in range(setting.rounds)]
        lines.append(
            (
                name,
                f"{letter} = {', '.join(f'{size:,}' for size in at)}",
                ", ".join(f"{short(median(each))} s" for each in seconds),
                f"**{median(found):.2f}** ({min(found):.2f} – {max(found):.2f})",
            )
        )
    columns = ("work", "sizes", "seconds", "exponent")
    note = (
        f"{sizes.network.backbone} at {sizes.network.image_size} px, {low_precision()}. "
        f"The search by K pastes each on "
        f"{sizes.network.flip_images} images. A part of the cost that does not grow lowers an exponent."
    )
    return Measured(tables=[Table("Exponents of the cost", columns, lines)], notes=[note])


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log seconds over log sizes, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _embed(encoder: Encoder, x_NCHW: Tensor, work: Work) -> None:
    with torch.inference_mode():
        assign(torch.cat([encoder.embed(x_BCHW) for x_BCHW in x_NCHW.split(work.batch)]), work.c_KD)


def _windows(encoder: Encoder, work: Work, way: Way) -> tuple[Tensor, Tensor]:
    m_BHW = masks_of(way, work.x_NCHW.shape[-1]).to(work.x_NCHW.device)
    return windows(encoder, work, way, m_BHW, "distance")


def _search(encoder: Encoder, work: Work, way: Way) -> None:
    paste_on_all(encoder, work, *_windows(encoder, work, way))
