"""The console script `poisoncam`: every command by its name."""

from __future__ import annotations

from poisoncam_ray.commands.defend import defend
from poisoncam_ray.program import run_program


def main() -> None:
    """The console script."""
    # The defence alone needs no research code.
    from poisoncam_ray.research.commands import attack, evaluate

    run_program(defend, attack, evaluate)
