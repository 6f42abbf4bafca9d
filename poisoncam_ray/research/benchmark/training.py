"""Training steps without Ray, against steps as they were, and where their time goes."""

from __future__ import annotations

from dataclasses import dataclass

from torch.utils.flop_counter import FlopCounterMode

from poisoncam_ray.research.benchmark.compare import Measured, Row, Setting, Table, low_precision
from poisoncam_ray.research.benchmark.page import short
from poisoncam_ray.research.benchmark.step_parts import (
    make_trainer,
    part_seconds,
    random_batch,
    step_seconds,
)
from poisoncam_ray.settings import load_config

AT_LEAST = 2


@dataclass(frozen=True)
class Sizes:
    """Of the part `step`.

    Attributes:
        networks: backbones, each with its image size and batch.
        steps: in a round.
    """

    networks: tuple[tuple[str, int, int], ...] = (("resnet_tiny", 32, 256), ("resnet18", 64, 128))
    steps: int = 4


def measure_step(setting: Setting, sizes: Sizes) -> Measured:
    """A step now against a step in float32 with torch's own convolutions, and its parts."""
    found, low = Measured(), low_precision()
    for backbone, size, batch in sizes.networks:
        settings = (
            f"encoder.backbone={backbone}",
            f"encoder.image_size={size}",
            f"pretrain.batch_size={batch}",
        )
        config = load_config(None, None, settings)
        now, before = step_seconds(config, low, sizes.steps, setting.rounds)
        with FlopCounterMode(display=False) as counter:
            make_trainer(config, "float32", products=False).step(0, random_batch(config))
        flop = float(counter.get_total_flops() * sizes.steps)
        parts = part_seconds(config, low, sizes.steps)
        name = f"{config.pretrain.objective}, {backbone}, {size} px"
        found.rows.append(
            Row(
                name,
                (f"step, {low}", "step as it was, float32"),
                (now, before),
                f"{sizes.steps} steps of {batch}, without Ray, in a thread as there, crops in memory",
                at_least=AT_LEAST,
                flop=(flop, flop),
                units=sizes.steps * batch,
            )
        )
        total = sum(parts.values())
        lines = [(part, f"{short(1000 * s)} ms", f"{s / total:.2f}") for part, s in parts.items()]
        found.tables.append(Table(f"A step of {name}, {low}", ("part", "time", "share"), lines))
    return found
