"""Two ways of the same work in turns, and what is reported of them.

Timings drift with the load of the machine. Ways that take turns drift together, so a ratio is taken round by
round. What is reported are its median and its range, and whether both ways gave the same answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from statistics import median
from typing import Any

import torch

from poisoncam_ray.config import Precision
from poisoncam_ray.folder import Folder
from poisoncam_ray.stages.compute import device
from poisoncam_ray.stages.precision import choose


@dataclass(frozen=True)
class Setting:
    """What all parts of a benchmark share.

    Attributes:
        out: where corpora and run folders are made.
        rounds: how often each way is timed.
        threads: torch threads of a process that computes.
        overrides: settings of the stages that are measured, `section.key=value`.
    """

    out: Folder
    rounds: int = 3
    threads: int = 1
    overrides: tuple[str, ...] = ()

    def batch(self, on_cpu: int) -> int:
        """A batch of this size on a CPU, and a larger one on a GPU, which needs more at once."""
        return on_cpu * (8 if device().type == "cuda" else 1)


@dataclass(frozen=True)
class Row:
    """Two ways of the same work.

    Attributes:
        name: the work.
        ways: our way and the other.
        seconds: of both, in every round.
        regime: sizes, batches, precision.
        at_least: how many times as fast as the other way ours is to be; None: no mark is set.
        flop: floating point operations of both (matrix products and convolutions); None where not counted.
        flop_at_least: by how much ours is to save operations.
        units: how many of `unit` the work is, for rates.
        unit: images, MB.
        answers: how the answers of both compare.
    """

    name: str
    ways: tuple[str, str]
    seconds: tuple[list[float], list[float]]
    regime: str
    at_least: float | None = None
    flop: tuple[float, float] | None = None
    flop_at_least: float | None = None
    units: float | None = None
    unit: str = "images"
    answers: str = ""

    @property
    def ratios(self) -> list[float]:
        """How many times as fast ours is, in every round."""
        return [other / ours for ours, other in zip(*self.seconds, strict=True)]

    def as_json(self) -> dict[str, Any]:
        """All fields, and what follows from them."""
        ratio = median(self.ratios)
        saved = self.flop[1] / self.flop[0] if self.flop else None
        marks = ((self.at_least, ratio), (self.flop_at_least, saved))
        met = [reached is not None and reached >= mark for mark, reached in marks if mark is not None]
        found = {"ratios": self.ratios, "ratio": ratio, "flop_ratio": saved, "met": all(met) if met else None}
        return asdict(self) | found


@dataclass(frozen=True)
class Table:
    """Figures that are no comparison of two ways."""

    title: str
    columns: tuple[str, ...]
    lines: Sequence[tuple[str, ...]]


@dataclass
class Measured:
    """What a part of the benchmark found."""

    rows: list[Row] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """As it is stored, and shown by page.markdown."""
        return {
            "rows": [row.as_json() for row in self.rows],
            "tables": [asdict(table) for table in self.tables],
            "notes": self.notes,
        }


def alternate(
    ways: Sequence[Callable[[], Any]], rounds: int, warm: bool = True
) -> tuple[list[list[float]], list[Any]]:
    """Time several ways in turns.

    Every other round has the reverse order, so that a steady drift favours no way.

    Args:
        ways: what to time.
        rounds: how often each way is timed.
        warm: whether each way is called once before, and not timed.

    Returns:
        The seconds of each way in each round, and each way's answer from its first call.
    """
    answers: list[Any] = [way() for way in ways] if warm else [None] * len(ways)
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(rounds):
        order = range(len(ways)) if turn % 2 == 0 else reversed(range(len(ways)))
        for i in order:
            _synchronize()
            began = time.perf_counter()
            answer = ways[i]()
            _synchronize()
            seconds[i].append(time.perf_counter() - began)
            if not (warm or turn):
                answers[i] = answer
    return seconds, answers


def scaled(seconds: Sequence[float], factor: float) -> list[float]:
    """Seconds of a part of some work as those of the whole."""
    return [s * factor for s in seconds]


def added(*parts: Sequence[float]) -> list[float]:
    """Seconds of several pieces of work, round by round."""
    return [sum(at) for at in zip(*parts, strict=True)]


@cache
def low_precision() -> Precision:
    """The precision that a run would decide for on this machine. Once a process: on CPUs it is measured."""
    return choose("auto", device().type == "cuda")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
