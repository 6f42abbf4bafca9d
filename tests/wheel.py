"""The package as others get it: a wheel in an environment of its own, away from the checkout.

The environment borrows the dependencies of this one: to install 6 GB would take minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tests.small import ROOT


@dataclass(frozen=True)
class Installed:
    """An environment that holds the wheel.

    Attributes:
        bin: its folder of programs.
        wheel: the file it was installed from.
        sdist: the archive of the sources that the wheel was built from.
    """

    bin: Path
    wheel: Path
    sdist: Path

    def run(self, program: str, *arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, which knows nothing of the checkout."""
        # Compiled once, not by each process.
        left_out = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
        environment = {k: v for k, v in os.environ.items() if k not in left_out} | more
        command = [str(self.bin / program), *arguments]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)


def install(folder: Path) -> Installed:
    """The wheel, built from the archive of the sources, and installed."""

    def uv(*arguments: object) -> None:
        subprocess.run(["uv", "--quiet", *map(str, arguments)], cwd=folder, check=True)

    uv("build", "--out-dir", folder / "dist", ROOT)
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    uv("venv", "--python", sys.executable, "env")
    uv("pip", "install", "--python", "env", "--no-deps", wheel)
    (packages,) = folder.glob("env/lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return Installed(folder / "env" / "bin", wheel, sdist)
