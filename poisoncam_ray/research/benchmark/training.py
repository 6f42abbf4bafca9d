"""Pretraining steps without Ray, and the share of augmentation in them.

B images of one worker's batch   2 crops of an image   C channels   H = W image side
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from poisoncam_ray.config import Config
from poisoncam_ray.method.augment import two_views
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.ssl import OBJECTIVES
from poisoncam_ray.research.benchmark.compare import Comparison, alternate, rates

# Any value will do: the batch is always the same, and the weights are not used.
LEARNING_RATE = 1e-4


class Trainer:
    """One worker's training as in the pretraining stage, always on the same batch of uint8 images."""

    def __init__(self, x_BCHW: Tensor, config: Config) -> None:
        settings, made = config.pretrain, config.encoder
        torch.manual_seed(config.seed)
        encoder = build_encoder(made.backbone, made.image_size, made.patch_size)
        objective = OBJECTIVES[settings.objective]
        model = objective(encoder, settings.hidden_dim, settings.out_dim, settings.temperature)
        self.model = model.to(x_BCHW.device).to(memory_format=torch.channels_last).train()
        learned = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, LEARNING_RATE, fused=True)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.x_BCHW, self.settings = x_BCHW, settings
        self.precision = "bfloat16" if x_BCHW.is_cuda else "float32"

    def views(self) -> list[Tensor]:
        """Two augmented views of the batch."""
        x_B2CHW = torch.stack([self.x_BCHW, self.x_BCHW], dim=1).float() / 255
        pair = two_views(x_B2CHW, self.generator, self.model.recipe)
        return [v_BCHW.contiguous(memory_format=torch.channels_last) for v_BCHW in pair]

    def step(self, views: list[Tensor]) -> None:
        """One step of training on two views."""
        self.model.update_target(self.settings.momentum)
        device_type = self.x_BCHW.device.type
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss = self.model(*views)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def compare_training(x_BCHW: Tensor, config: Config, steps: int, rounds: int) -> Comparison:
    """Compare whole training steps with augmentation alone.

    The ratio of the rates is the share of a step that augmentation takes.

    Args:
        x_BCHW: the batch, uint8.
        config: the configuration.
        steps: steps in a round.
        rounds: how often each way is timed.
    """
    trainer = Trainer(x_BCHW, config)

    def train() -> None:
        for _ in range(steps):
            trainer.step(trainer.views())

    def augment() -> None:
        for _ in range(steps):
            trainer.views()

    seconds, _ = alternate((train, augment), rounds)
    views = trainer.views()
    with FlopCounterMode(display=False) as counter:
        trainer.step(views)
    return Comparison(
        work=f"{config.pretrain.objective} steps of {len(x_BCHW)} images",
        unit="images/s",
        ways=("whole step", "its two views alone"),
        rates=rates(steps * len(x_BCHW), seconds),
        answers="the ratio is augmentation's share of a step",
        facts={"backbone": config.encoder.backbone, "image_size": config.encoder.image_size},
        flop=counter.get_total_flops() / len(x_BCHW),
        precision=trainer.precision,
    )
