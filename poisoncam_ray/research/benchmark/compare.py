"""Two ways of the same work in turns, and the table of their rates.

Timings drift with the load of the machine. Two ways that take turns drift together, so the ratio is taken
round by round. The table shows medians and ranges, and whether both ways gave the same answers.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from poisoncam_ray.stages.compute import device

COLUMNS = ("work", "ours", "rate", "against", "rate", "ratio", "answers")


@dataclass(frozen=True)
class Comparison:
    """One line of the table.

    Attributes:
        work: what is done.
        unit: the unit of the rates.
        ways: our way and the other.
        rates: units per second of both, in every round.
        answers: how the answers of both compare.
        facts: further figures.
        flop: floating-point operations of one unit, as torch counts them (matrix products and convolutions).
        precision: "float32" or "bfloat16".
    """

    work: str
    unit: str
    ways: tuple[str, str]
    rates: tuple[list[float], list[float]]
    answers: str
    facts: dict[str, Any]
    flop: float | None = None
    precision: str = "float32"

    @property
    def ratios(self) -> list[float]:
        """Our rate over the other's, in every round."""
        return [ours / other for ours, other in zip(*self.rates, strict=True)]

    def with_share(self, peak: tuple[float, float] | None) -> Comparison:
        """The same line with the arithmetic rate of our way among the facts.

        Args:
            peak: the GPU's peak in TFLOP/s, in float32 and in bfloat16: its share is added. None: no share.
        """
        if self.flop is None:
            return self
        tflops = self.flop * median(self.rates[0]) / 1e12
        added: dict[str, Any] = {"flop_per_unit": self.flop, "tflop_per_s": tflops}
        added["precision"] = self.precision
        if peak and device().type == "cuda":
            added["share_of_peak"] = tflops / peak[self.precision == "bfloat16"]
        return replace(self, facts=self.facts | added)


def alternate(ways: Sequence[Callable[[], Any]], rounds: int) -> tuple[list[list[float]], list[Any]]:
    """Time several ways in turns.

    Every other round has the reverse order, so that a steady drift favours no way.

    Args:
        ways: what to time.
        rounds: how often each way is timed.

    Returns:
        The seconds of each way in each round, and each way's answer from a first call that is not timed.
    """
    answers = [way() for way in ways]
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(rounds):
        order = range(len(ways)) if turn % 2 == 0 else reversed(range(len(ways)))
        for i in order:
            _synchronize()
            began = time.perf_counter()
            ways[i]()
            _synchronize()
            seconds[i].append(time.perf_counter() - began)
    return seconds, answers


def rates(units: int, seconds: list[list[float]]) -> tuple[list[float], list[float]]:
    """Units per second of two ways in every round, from their seconds."""
    ours, other = ([units / s for s in way] for way in seconds)
    return ours, other


def machine() -> dict[str, Any]:
    """The machine, and its load before the measurement."""
    cuda = device().type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_before": round(os.getloadavg()[0], 2),
        "tf32_convolutions": cuda and torch.backends.cudnn.allow_tf32,
    }


def markdown(found: Sequence[Comparison], facts: dict[str, Any]) -> str:
    """The table with medians (least … most) over the rounds, the facts and the machine.

    Args:
        found: the lines.
        facts: of the machine.
    """
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for c in found:
        ours, other = (f"{_span(values)} {c.unit}" for values in c.rates)
        cells = (c.work, c.ways[0], ours, c.ways[1], other, _span(c.ratios), c.answers)
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines += [f"- {c.work}: {_listed(c.facts)}" for c in found if c.facts]
    return "\n".join([*lines, f"- machine: {_listed(facts)}", ""])


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _span(values: list[float]) -> str:
    return f"{_short(median(values))} ({_short(min(values))} … {_short(max(values))})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _listed(facts: dict[str, Any]) -> str:
    return ", ".join(
        f"{key.replace('_', ' ')} {_short(value) if isinstance(value, float) else value}"
        for key, value in facts.items()
    )
