"""The Embed stage on Ray against one process that reads, decodes and embeds the same slices.

N images   D feature dimensions   C channels   H = W image side
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.progress import Progress
from poisoncam_ray.research.benchmark.compare import Comparison, alternate
from poisoncam_ray.runner import Runner
from poisoncam_ray.stage import Stage
from poisoncam_ray.stages.compute import device
from poisoncam_ray.stages.embed import Embed, embed_images, load_encoder, read_features
from poisoncam_ray.stages.index import Index
from poisoncam_ray.stages.pixels import read_slice
from poisoncam_ray.stages.pretrain import Pretrain
from poisoncam_ray.stages.ray_cluster import start_ray

# A stage that is shorter than this many start-ups is mostly start-up: its rate without it is not known.
START_UPS = 3


def compare_embed(uri: str, config: Config, out: Folder, rounds: int) -> list[Comparison]:
    """Compare the stage with a loop in one process, which calls the same functions.

    The rate is measured with the start-up of the actors and, if the corpus is long enough, without.

    Args:
        uri: the corpus.
        config: the configuration. Without a checkpoint the encoder is untrained.
        out: where the run folder `run` is made.
        rounds: how often each way is timed.

    Raises:
        UserError: the stage would not see the GPU that this process sees.
    """
    if device().type == "cuda" and not config.resources.gpus_per_actor:
        raise UserError("The stage would not see the GPU: add resources.gpus_per_actor=1, or give --no-ray.")
    config, run, clock = with_checkpoint(config, out), out / "run", Clock()
    before: list[Stage] = [Index(), Pretrain()]
    prepare, runner = (Runner(uri, run.uri, config, stages) for stages in (before, [*before, Embed()]))
    began = time.perf_counter()
    start_ray()
    connected = time.perf_counter() - began
    prepare.run(clock)
    slices, index, features = runner.corpus.slices(), run / Index.name, run / Embed.name
    encoder = load_encoder(run / Pretrain.name)

    def stage() -> Tensor:
        features.delete()
        clock.start()
        runner.run(clock)
        clock.stop()
        return torch.cat([read_features(features, name)[1] for name in features.parts()])

    def bare() -> Tensor:
        pixels = (read_slice(runner.corpus, config, index, slice_)[1] for slice_ in slices)
        return torch.cat(
            [embed_images(encoder, torch.from_numpy(x_NCHW), config.embed.batch_size) for x_NCHW in pixels]
        )

    (_, bare_seconds), (ours_ND, other_ND) = alternate((stage, bare), rounds)
    rows, laps = len(ours_ND), clock.laps[1:]
    bare_rates = [rows / seconds for seconds in bare_seconds]
    facts: dict[str, Any] = {
        "images": rows,
        "slices": len(slices),
        "actors": config.resources.actors,
        "readers": config.resources.readers,
        "seconds_to_connect": connected,
        "seconds_to_first_slice": median(lap.start_up for lap in laps),
    }
    answers = f"largest difference {float((ours_ND - other_ND).abs().max()):.1g} (stored as float16)"
    ways, whole = ("stage on Ray", "one process"), [rows / lap.whole for lap in laps]
    found = [Comparison("Embed, start-up included", "images/s", ways, (whole, bare_rates), answers, facts)]
    if all(lap.whole >= START_UPS * lap.start_up for lap in laps):
        steady = [rows / 2 / lap.second_half for lap in laps]
        found.append(
            Comparison("Embed, second half of slices", "images/s", ways, (steady, bare_rates), answers, {})
        )
    else:
        facts["without_start_up"] = "not measured: the corpus is too short"
    return found


@dataclass(frozen=True)
class Lap:
    """Seconds of one run of a stage: until its first slice was done, for the second half of them, in all."""

    start_up: float
    second_half: float
    whole: float


class Clock(Progress):
    """Prints nothing and records when each slice was done.

    Slices are about equal. Readers run ahead while actors start, so only the second half of the slices shows
    the rate of both together.
    """

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.laps: list[Lap] = []
        self._ticks: list[float] = []

    def start(self) -> None:
        self._ticks = [time.perf_counter()]

    def update(self, done: int, total: int | None = None, unit: str = "", note: str = "") -> None:
        # The first call comes before any slice.
        if done:
            self._ticks.append(time.perf_counter())

    def stop(self) -> None:
        ended, ticks = time.perf_counter(), self._ticks
        # When the number of slices is odd, the middle lies between two ticks.
        middle = float(np.interp((len(ticks) - 1) / 2, range(len(ticks)), ticks))
        self.laps.append(Lap(ticks[1] - ticks[0], ticks[-1] - middle, ended - ticks[0]))


def with_checkpoint(config: Config, out: Folder) -> Config:
    """The configuration with untrained weights as its checkpoint: embedding takes as long as with others."""
    made = config.encoder
    if made.checkpoint:
        return config
    torch.manual_seed(config.seed)
    encoder = build_encoder(made.backbone, made.image_size, made.patch_size)
    out.write_tensors("encoder.safetensors", encoder.state_dict())
    section = made.model_copy(update={"checkpoint": (out / "encoder.safetensors").uri})
    return config.model_copy(update={"encoder": section})
