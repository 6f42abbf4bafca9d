"""The model in training and one step of it: the same on every rank, with and without Ray.

Random numbers depend only on (seed, step). They are drawn for the whole batch on every rank, and a rank takes
those of its own images, so another number of ranks trains on the same views.

B images of a batch, of one rank   2 crops of an image   C channels   H = W image side
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from poisoncam_ray.config import Config, Precision
from poisoncam_ray.method.augment import apply_views, draw_views
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.small_maps import use_products
from poisoncam_ray.method.ssl import OBJECTIVES, Objective, gather_rows, learning_rate_at, momentum_at
from poisoncam_ray.stages.precision import dtype_of
from poisoncam_ray.stages.training_data import drawn_by


@dataclass(frozen=True)
class Schedule:
    """How long a training is.

    Attributes:
        total: its steps.
        warmup: the steps in which the learning rate rises.
    """

    total: int
    warmup: int


class Trainer:
    """One rank of a training.

    Every rank draws the same initial weights: call it where nothing else has used torch's global generator.

    Args:
        config: the configuration.
        schedule: of the training.
        device: of this rank.
        precision: of forward and backward passes. Weights, moments and losses are float32.
        start: the weights that the encoder starts with; None: random ones.
        rank: this rank.
        world: the number of ranks.

    Attributes:
        model: encoder, heads and, where the objective has them, the moving averages of both.
        optimizer: of what learns.
    """

    def __init__(
        self,
        config: Config,
        schedule: Schedule,
        device: torch.device,
        precision: Precision,
        start: dict[str, Tensor] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        made, settings = config.encoder, config.pretrain
        torch.manual_seed(config.seed)
        encoder = build_encoder(made.backbone, made.image_size, made.patch_size)
        if start is not None:
            encoder.load_state_dict(start)
        # A moving average starts as a copy of the encoder.
        model = OBJECTIVES[settings.objective](
            encoder, settings.hidden_dim, settings.out_dim, settings.temperature
        )
        if device.type == "cpu":
            use_products(model)
        # Channels last: faster on a CPU, and the layout of tensor cores. Images follow the weights.
        self.model = model.to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = make_optimizer(self.model, settings.weight_decay)
        self.config, self.schedule, self.device, self.dtype = config, schedule, device, dtype_of(precision)
        self.rank, self.world = rank, world
        self._whole = distributed(self.model, device)

    def step(self, step: int, x_B2CHW: Tensor) -> Tensor:
        """Train on one batch.

        Args:
            step: the number of steps done before.
            x_B2CHW: this rank's part of the batch, uint8: the parts of all ranks, in their order, are the
                batch.

        Returns:
            The loss of this rank.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        v1_BCHW, v2_BCHW = self.views(step, x_B2CHW)
        momentum = self.config.pretrain.momentum
        self.model.update_target(momentum_at(step, self.schedule.total, momentum))
        with self.autocast():
            loss = self._whole(v1_BCHW, v2_BCHW, gather_rows if self.world > 1 else None, self.rank)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step."""
        settings = self.config.pretrain
        base = settings.lr * settings.batch_size / 256
        return learning_rate_at(step, self.schedule.total, self.schedule.warmup, base)

    def views(self, step: int, x_B2CHW: Tensor) -> tuple[Tensor, Tensor]:
        """The two views of a step, v1_BCHW and v2_BCHW, on the device."""
        B = len(x_B2CHW)
        drawn = draw_views(B * self.world, drawn_by(self.config.seed, step), self.model.recipe)
        first, second = (draws.rows(self.rank * B, (self.rank + 1) * B) for draws in drawn)
        # Not laid out with channels last: the first convolution does that, after a normalisation that is
        # faster over rows of pixels than over three channels.
        return apply_views(x_B2CHW.to(self.device, non_blocking=True), (first, second))

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def make_optimizer(model: Objective, weight_decay: float) -> torch.optim.AdamW:
    """The optimiser of what learns in a model."""
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.0, weight_decay=weight_decay, fused=True
    )


def distributed(model: Objective, device: torch.device) -> nn.Module:
    """The model wrapped for training on several ranks; the model itself on one rank.

    On GPUs every batch normalisation, of the encoders and of the heads, is over the joined batch: a rank of a
    large model has few images. SyncBatchNorm has no CPU version.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return model
    if device.type != "cuda":
        return DistributedDataParallel(model)
    return DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(model), device_ids=[device])
