"""Where the time of a training step goes, and a step as it was: in float32, with oneDNN's convolutions.

B images of a batch   2 crops of an image   C channels   H = W image side
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor

from poisoncam_ray.config import Config, Precision
from poisoncam_ray.method.ssl import MoCoV3, contrastive_loss
from poisoncam_ray.research.benchmark.apart import apart
from poisoncam_ray.research.benchmark.compare import alternate
from poisoncam_ray.stages import training_step
from poisoncam_ray.stages.compute import ONE_HEAP, device
from poisoncam_ray.stages.training_step import Schedule, Trainer

T = TypeVar("T")

SCHEDULE = Schedule(total=1_000_000, warmup=100_000)
"""So long that the learning rate stays near 0: the batch is always the same."""


def random_batch(config: Config) -> Tensor:
    """x_B2CHW, uint8: a whole batch of random crops."""
    side = config.encoder.image_size
    size = (config.pretrain.batch_size, 2, 3, side, side)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make_trainer(config: Config, precision: Precision, products: bool = True) -> Trainer:
    """One worker's training as in the Pretrain stage.

    Args:
        config: the configuration.
        precision: of forward and backward passes.
        products: False leaves small maps to oneDNN.
    """
    if products:
        return Trainer(config, SCHEDULE, device(), precision)
    with patch.object(training_step, "use_products", lambda model: None):
        return Trainer(config, SCHEDULE, device(), precision)


def step_seconds(
    config: Config, precision: Precision, steps: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of steps now and as they were, in turns, on crops in memory.

    Each way has a process with the allocator's settings of its training workers, and a thread of it, as Ray
    Train has. The steps as they were keep freed memory, too, as far as such a thread can.

    Args:
        config: the configuration.
        precision: of the steps now; float32 before.
        steps: in a round.
        rounds: of each way.

    Returns:
        The seconds of `steps` steps in every round, now and before.
    """
    threads = torch.get_num_threads()
    with apart(threads, ONE_HEAP) as ours, apart(threads) as other:
        ours.submit(_in_thread, _prepare, threads, config, precision, True).result()
        other.submit(_in_thread, _prepare, threads, config, "float32", False).result()
        ways = [
            lambda process=process: process.submit(_in_thread, _repeat, threads, steps).result()
            for process in (ours, other)
        ]
        (now, before), _ = alternate(ways, rounds)
    return now, before


_prepared: list[tuple[Trainer, Tensor]] = []
"""In a process apart: what trains, and its batch."""


def _in_thread(work: Callable[..., None], threads: int, *arguments: Any) -> None:
    """Call `work` in another thread than the first, as Ray Train does."""
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,)) as thread:
        thread.submit(work, *arguments).result()


def _prepare(config: Config, precision: Precision, products: bool) -> None:
    _prepared.append((make_trainer(config, precision, products), random_batch(config)))


def _repeat(steps: int) -> None:
    ((trainer, x_B2CHW),) = _prepared
    for step in range(steps):
        trainer.step(step, x_B2CHW)


def part_seconds(config: Config, precision: Precision, steps: int) -> dict[str, float]:
    """Seconds of each part of a MoCo-v3 step, the mean over some steps.

    Args:
        config: the configuration.
        precision: of forward and backward passes.
        steps: that are timed, after one that is not.
    """
    trainer, x_B2CHW = make_trainer(config, precision), random_batch(config)
    _in_parts(trainer, 0, x_B2CHW)
    found = [_in_parts(trainer, step, x_B2CHW) for step in range(1, 1 + steps)]
    return {part: sum(seconds[part] for seconds in found) / steps for part in found[0]}


def _in_parts(trainer: Trainer, step: int, x_B2CHW: Tensor) -> dict[str, float]:
    model, settings = trainer.model, trainer.config.pretrain
    if not isinstance(model, MoCoV3):
        raise ValueError(f"only steps of moco_v3 are divided into parts, not of {settings.objective}")
    spent: dict[str, float] = {}

    def timed(part: str, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        with trainer.autocast():
            result = work()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        spent[part] = time.perf_counter() - began
        return result

    v1_BCHW, v2_BCHW = timed("augmentation", lambda: trainer.views(step, x_B2CHW))
    timed("moving average", lambda: model.update_target(settings.momentum))
    q1_BE, q2_BE = timed("query forward", lambda: (model.query(v1_BCHW), model.query(v2_BCHW)))
    k1_BE, k2_BE = timed("key forward", lambda: (model.key(v1_BCHW), model.key(v2_BCHW)))
    loss = timed(
        "loss",
        lambda: (
            contrastive_loss(q1_BE, k2_BE, settings.temperature)
            + contrastive_loss(q2_BE, k1_BE, settings.temperature)
        ),
    )
    trainer.optimizer.zero_grad(set_to_none=True)
    timed("backward", loss.backward)
    timed("optimiser", trainer.optimizer.step)
    return spent
