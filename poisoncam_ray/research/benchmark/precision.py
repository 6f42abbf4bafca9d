"""Inference in float32 and bfloat16: on a CPU with and without AMX, on a GPU with the share of its measured
peak.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from poisoncam_ray.config import Precision
from poisoncam_ray.method.encoder import Encoder, build_encoder
from poisoncam_ray.research.benchmark.apart import apart
from poisoncam_ray.research.benchmark.compare import Measured, Row, Setting, Table, alternate
from poisoncam_ray.research.benchmark.images import pixels
from poisoncam_ray.research.benchmark.machine import MAX_ISA
from poisoncam_ray.research.study.flops import forward_flops
from poisoncam_ray.stages.compute import device
from poisoncam_ray.stages.precision import dtype_of

INSTRUCTIONS = ("", "AVX512_CORE_BF16", "AVX512_CORE")
"""Values of ONEDNN_MAX_CPU_ISA: what oneDNN may use; empty: all that the CPU has."""
PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float32")
PUBLIC = "Public figures for ViT-B/16 at 224 px: 5,059 forwards/s on an RTX PRO 6000, 2,993 on a 4090."


@dataclass(frozen=True)
class Network:
    """One encoder.

    Attributes:
        backbone, image_size: of the encoder.
        images: in a round, on a CPU.
        batch: images at once, on a CPU.
    """

    backbone: str
    image_size: int
    images: int
    batch: int


@dataclass(frozen=True)
class Sizes:
    """Of the part `precision`.

    Attributes:
        cpu, gpu: the encoders that are measured there.
        matrix: the side of a square matrix product on a CPU.
        gpu_matrix: the same on a GPU.
    """

    cpu: tuple[Network, ...] = (
        Network("vit_small_patch16_224", 224, 64, 32),
        Network("resnet18", 64, 512, 128),
        Network("resnet_tiny_s2", 32, 4096, 256),
    )
    gpu: tuple[Network, ...] = (
        Network("vit_base_patch16_224", 224, 1024, 64),
        Network("vit_small_patch16_224", 224, 2048, 64),
        Network("resnet18", 64, 8192, 256),
    )
    matrix: int = 2048
    gpu_matrix: int = 8192


@dataclass(frozen=True)
class Rates:
    """What a process measured.

    Attributes:
        amx: whether torch sees AMX.
        matrix: seconds of a matrix product in bfloat16 and float32.
        networks: the same for the images of each network.
    """

    amx: bool
    matrix: list[list[float]]
    networks: list[list[list[float]]]


def measure_precision(setting: Setting, sizes: Sizes) -> Measured:
    """bfloat16 against float32."""
    if device().type == "cuda":
        return _on_gpu(setting, sizes)
    found, lines = Measured(), list[tuple[str, ...]]()
    flop = 2 * sizes.matrix**3
    for allowed in INSTRUCTIONS:
        with apart(setting.threads, {MAX_ISA: allowed} if allowed else None) as process:
            rates = process.submit(rates_of, setting, sizes.cpu, sizes.matrix).result()
        name = f"oneDNN up to {allowed}" if allowed else "all that the CPU has"
        if not allowed and not rates.amx:
            name += ", no AMX"
        lines.append((name, *(f"{flop / median(s) / 1e9:,.0f}" for s in rates.matrix)))
        found.rows += _rows(setting, sizes.cpu, rates, name)
    title = f"GFLOP/s of matrix products of {sizes.matrix:,} × {sizes.matrix:,}"
    found.tables.append(Table(title, ("instructions", "bfloat16", "float32"), lines))
    found.notes.append(PUBLIC)
    return found


def _on_gpu(setting: Setting, sizes: Sizes) -> Measured:
    rates = rates_of(setting, sizes.gpu, sizes.gpu_matrix)
    peak = 2 * sizes.gpu_matrix**3 / median(rates.matrix[0])
    lines: list[tuple[str, ...]] = []
    for network, seconds in zip(sizes.gpu, rates.networks, strict=True):
        forward = forward_flops(build_encoder(network.backbone, network.image_size))
        rate = network.images / median(seconds[0])
        lines.append(
            (
                network.backbone,
                f"{rate:,.0f}",
                f"{forward * rate / 1e12:,.0f}",
                f"{forward * rate / peak:.2f}",
            )
        )
    columns = ("bfloat16", "forwards/s", "TFLOP/s", "share of the measured peak")
    title = (
        f"Against the measured peak of {peak / 1e12:,.0f} TFLOP/s (matrix products of {sizes.gpu_matrix:,})"
    )
    rows = _rows(setting, sizes.gpu, rates, torch.cuda.get_device_name())
    return Measured(rows, [Table(title, columns, lines)], [PUBLIC])


def _rows(setting: Setting, networks: tuple[Network, ...], rates: Rates, name: str) -> list[Row]:
    return [
        Row(
            f"forwards of {network.backbone}, {network.image_size} px",
            ("bfloat16", "float32"),
            (seconds[0], seconds[1]),
            f"{name}; batches of {setting.batch(network.batch)}, {setting.threads} threads",
            units=network.images,
        )
        for network, seconds in zip(networks, rates.networks, strict=True)
    ]


def rates_of(setting: Setting, networks: tuple[Network, ...], matrix: int) -> Rates:
    """Time matrix products and networks in bfloat16 and float32, in turns, in this process."""
    products = [partial(torch.mm, *_square(matrix, dtype_of(precision))) for precision in PRECISIONS]
    found, _ = alternate(products, 2 * setting.rounds)
    times = []
    for network in networks:
        torch.manual_seed(0)
        encoder = build_encoder(network.backbone, network.image_size).to(device())
        ways = [
            partial(
                _forward,
                copy.deepcopy(encoder).freeze(dtype_of(precision)),
                network,
                setting.batch(network.batch),
            )
            for precision in PRECISIONS
        ]
        times.append(alternate(ways, setting.rounds)[0])
    return Rates(torch.cpu._is_amx_tile_supported(), found, times)


def _square(side: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    one = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).to(device(), dtype)
    return one, one.T.contiguous()


def _forward(encoder: Encoder, network: Network, batch: int) -> None:
    x_BCHW = pixels(min(batch, network.images), network.image_size).to(device()).float() / 255
    with torch.inference_mode():
        for first in range(0, network.images, len(x_BCHW)):
            encoder.embed(x_BCHW[: network.images - first])
