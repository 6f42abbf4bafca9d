"""A stage on Ray, run again and again, and when each of its slices was done."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from rich.console import Console

from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.progress import Progress
from poisoncam_ray.research.benchmark.compare import Setting, low_precision
from poisoncam_ray.runner import Runner
from poisoncam_ray.settings import load_config
from poisoncam_ray.stage import Stage
from poisoncam_ray.stages.compute import device
from poisoncam_ray.stages.ray_cluster import start_ray


@dataclass(frozen=True)
class Lap:
    """Seconds of one pass over the slices: until the first was done, for the second half of them, in all."""

    start_up: float
    second_half: float
    whole: float


@dataclass
class Ticks:
    """When each slice was done.

    Slices are about equal. Readers run ahead while actors start, so only the second half of the slices shows
    the rate of both together.
    """

    at: list[float] = field(default_factory=lambda: [time.perf_counter()])

    def tick(self) -> None:
        """A slice is done."""
        self.at.append(time.perf_counter())

    def lap(self) -> Lap:
        """The pass ends now."""
        ended, at = time.perf_counter(), self.at
        # When the number of slices is odd, the middle lies between two ticks.
        middle = float(np.interp((len(at) - 1) / 2, range(len(at)), at))
        return Lap(at[1] - at[0], at[-1] - middle, ended - at[0])


class Clock(Progress):
    """Prints nothing and records when each slice was done."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.ticks = Ticks()

    def update(self, done: int, total: int | None = None, unit: str = "", note: str = "") -> None:
        # The first call comes before any slice.
        if done:
            self.ticks.tick()


class TimedStage:
    """The last of some stages, which is run as often as wanted; the others are run once.

    Args:
        corpus: the corpus.
        run: the run folder.
        config: the configuration.
        stages: the stages.
    """

    def __init__(self, corpus: Folder, run: Folder, config: Config, stages: Sequence[Stage]) -> None:
        self.run_folder, self.last, self.laps = run, stages[-1], list[Lap]()
        self.runner = Runner(corpus.uri, run.uri, config, stages)
        start_ray()
        Runner(corpus.uri, run.uri, config, stages[:-1]).run(Clock())

    @property
    def out(self) -> Folder:
        """The artifact of the stage that is timed."""
        return self.run_folder / self.last.name

    def again(self) -> None:
        """Delete what the stage has made, and run it."""
        for name in (self.last.name, *self.last.writes):
            (self.run_folder / name).delete()
        clock = Clock()
        self.runner.run(clock)
        self.laps.append(clock.ticks.lap())

    def start_up(self) -> float:
        """Seconds until the first slice was done, the median."""
        return median(lap.start_up for lap in self.laps)


def stage_config(setting: Setting, *settings: str, preset: str | None = None) -> Config:
    """The configuration of the stages that are measured: one actor, with all threads, and a reader a core.

    Args:
        setting: of the benchmark.
        settings: of the part, which win over the preset.
        preset: the name of a configuration.

    Raises:
        UserError: the stages would not see the GPU that this process sees.
    """
    ours = (
        "resources.actors=1",
        "resources.gpus_per_actor=0",
        "resources.cpus_per_actor=1",
        "resources.cpus_per_reader=0.5",
        f"resources.threads_per_actor={setting.threads}",
        f"resources.readers={setting.threads}",
        # Both sides of a comparison compute in it.
        f"resources.precision={low_precision()}",
        f"pretrain.precision={low_precision()}",
    )
    config = load_config(preset, None, [*ours, *settings, *setting.overrides])
    if device().type == "cuda" and not config.resources.gpus_per_actor:
        raise UserError("The stages would not see the GPU: add resources.gpus_per_actor=1.")
    return config


def timed(items: Iterator[object]) -> Lap:
    """Use up what a loop yields once for each slice, and take the time."""
    ticks = Ticks()
    for _ in items:
        ticks.tick()
    return ticks.lap()
