"""The machine and the libraries that a figure was measured with."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from poisoncam_ray.stages.compute import device

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
"""Flags of a CPU that decide how fast it multiplies matrices."""
MAX_ISA = "ONEDNN_MAX_CPU_ISA"
"""The variable that keeps oneDNN from instructions that the CPU has."""


def machine(threads: int) -> dict[str, Any]:
    """The machine, as far as a figure depends on it; equal in every run on the same machine.

    Args:
        threads: torch threads of a process that computes.
    """
    cuda, cpu = device().type == "cuda", _cpu()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else cpu["model name"],
        "cores": os.cpu_count(),
        "threads": threads,
        "cpu_flags": [flag for flag in FLAGS if flag in cpu["flags"].split()],
        "amx": torch.cpu._is_amx_tile_supported(),
        "max_cpu_isa": os.environ.get(MAX_ISA, ""),
        "python": platform.python_version(),
        "onednn": _onednn(),
    }
    if cuda:
        found |= {"cpu": cpu["model name"], "cuda": torch.version.cuda}
    # Torch's own version says which build it is.
    names = ("ray", "timm", "pyarrow", "pillow")
    return found | {"torch": torch.__version__} | {name: version(name) for name in names}


def load() -> float:
    """Processes that ran or waited for a core in the last minute, on average."""
    return round(os.getloadavg()[0], 2)


def _cpu() -> dict[str, str]:
    """Name and flags of the first CPU."""
    cpuinfo, found = Path("/proc/cpuinfo"), {"model name": platform.machine(), "flags": ""}
    for line in cpuinfo.read_text().partition("\n\n")[0].splitlines() if cpuinfo.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() in found:
            found[key.strip()] = value.strip()
    return found


def _onednn() -> str:
    named = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    return named[1] if named else "none"
