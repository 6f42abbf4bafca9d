"""Training steps without Ray, and where the time of a step goes.

B images of one worker's batch   2 crops of an image   C channels   H = W image side
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from poisoncam_ray.config import Config
from poisoncam_ray.method.augment import two_views
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.ssl import OBJECTIVES
from poisoncam_ray.research.benchmark.compare import Measured, Row, Setting, alternate, low_precision
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.compute import device

# Any value will do: the batch is always the same, and the weights are not used.
LEARNING_RATE = 1e-4


class Trainer:
    """One worker's training as in the pretraining stage."""

    def __init__(self, config: Config, precision: torch.dtype = torch.float32) -> None:
        settings, made = config.pretrain, config.encoder
        torch.manual_seed(config.seed)
        encoder = build_encoder(made.backbone, made.image_size, made.patch_size)
        objective = OBJECTIVES[settings.objective]
        model = objective(encoder, settings.hidden_dim, settings.out_dim, settings.temperature)
        self.model = model.to(device()).to(memory_format=torch.channels_last).train()
        learned = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, LEARNING_RATE, fused=True)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.settings, self.precision = settings, precision

    def views(self, x_B2CHW: Tensor) -> list[Tensor]:
        """Two augmented views of a batch of uint8 crops."""
        pair = two_views(x_B2CHW.to(device()).float() / 255, self.generator, self.model.recipe)
        return [v_BCHW.contiguous(memory_format=torch.channels_last) for v_BCHW in pair]

    def step(self, x_B2CHW: Tensor) -> None:
        """One step of training, the views included."""
        views = self.views(x_B2CHW)
        self.model.update_target(self.settings.momentum)
        low = self.precision == torch.bfloat16
        with torch.autocast(device().type, dtype=torch.bfloat16, enabled=low):
            loss = self.model(*views)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


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
    """A step in low precision against float32, and against its views alone."""
    found = Measured()
    for backbone, size, batch in sizes.networks:
        config = load_config(
            None,
            None,
            [f"encoder.backbone={backbone}", f"encoder.image_size={size}", f"pretrain.batch_size={batch}"],
        )
        x_B2CHW = torch.randint(0, 256, (batch, 2, 3, size, size), dtype=torch.uint8)
        low, full = Trainer(config, low_precision()), Trainer(config)
        ways = [
            partial(_repeat, sizes.steps, low.step, x_B2CHW),
            partial(_repeat, sizes.steps, full.step, x_B2CHW),
            partial(_repeat, sizes.steps, full.views, x_B2CHW),
        ]
        seconds, _ = alternate(ways, setting.rounds)
        with FlopCounterMode(display=False) as counter:
            full.step(x_B2CHW)
        flop = float(counter.get_total_flops() * sizes.steps)
        name = f"{sizes.steps} steps of {config.pretrain.objective}, {backbone}, {size} px"
        regime = f"batches of {batch}, {setting.threads} threads, without Ray, crops in memory"
        found.rows += [
            Row(
                name,
                ("bfloat16", "float32"),
                (seconds[0], seconds[1]),
                regime,
                flop=(flop, flop),
                units=sizes.steps * batch,
            ),
            Row(
                name,
                ("two views alone", "whole step, float32"),
                (seconds[2], seconds[1]),
                regime,
                units=sizes.steps * batch,
            ),
        ]
    return found


def _repeat(n: int, work: Callable[[Tensor], object], x_B2CHW: Tensor) -> None:
    for _ in range(n):
        work(x_B2CHW)
