"""Peak memory as a part of the benchmark: memory.py in a process, and with a cluster, of its own."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import Any

from poisoncam_ray.config import Config
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.benchmark.apart import apart
from poisoncam_ray.research.benchmark.compare import Measured, Setting, Table
from poisoncam_ray.research.benchmark.memory import PEAKS, SETTINGS, measure_memory
from poisoncam_ray.settings import load_config


@dataclass(frozen=True)
class Sizes:
    """Of the part `memory`: numbers of images."""

    rows: tuple[int, ...] = (2_000, 16_000)


def measure_peaks(setting: Setting, sizes: Sizes) -> Measured:
    """Peak private memory of driver and workers in every stage, over tiny images."""
    config, out = load_config(None, None, [*SETTINGS, *setting.overrides]), setting.out / "memory"
    lines: list[tuple[str, ...]] = []
    peaks: list[dict[str, Any]] = []
    for rows in sizes.rows:
        # Its driver must hold nothing of the parts before it, and keep no freed memory.
        with apart(setting.threads, keep=False) as process:
            stages = process.submit(_stages, config, out, rows).result()
        peaks.append({kind: max(at[kind] for at in stages) for kind in PEAKS})
        lines += [(f"{rows:,}", at["stage"], *(f"{at[kind]:.0f}" for kind in PEAKS)) for at in stages]
    columns = ("images", "stage", *PEAKS.values())
    growth = ", ".join(f"{PEAKS[kind]} {peaks[-1][kind] / max(peaks[0][kind], 1):.2f}" for kind in PEAKS)
    note = f"{sizes.rows[-1]:,} images over {sizes.rows[0]:,}, the highest of all stages: {growth}."
    return Measured(tables=[Table("Peak private memory in MiB", columns, lines)], notes=[note])


def _stages(config: Config, out: Folder, rows: int) -> list[dict[str, Any]]:
    # What the run says of its progress is no part of a command's result.
    with contextlib.redirect_stdout(sys.stderr):
        measure_memory(config, out, rows)
    return next(one["stages"] for one in out.read_json("memory.json") if one["rows"] == rows)
