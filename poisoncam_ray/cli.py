"""The console script `poisoncam`: every command by its name."""

from __future__ import annotations

from poisoncam_ray.commands.apply import apply
from poisoncam_ray.commands.attack import attack
from poisoncam_ray.commands.benchmark import benchmark
from poisoncam_ray.commands.defend import defend
from poisoncam_ray.commands.evaluate import evaluate
from poisoncam_ray.commands.inspect import inspect
from poisoncam_ray.commands.restore import restore
from poisoncam_ray.commands.review import review
from poisoncam_ray.commands.show import presets, show
from poisoncam_ray.commands.status import status
from poisoncam_ray.commands.verify import verify
from poisoncam_ray.program import run_program

TOP = (defend, apply, status, inspect, review, restore, verify, presets, attack, evaluate, benchmark)
GROUPS = {"config": (show,)}


def main() -> None:
    """The console script."""
    run_program(*TOP, **GROUPS)
