"""Measure a finished run against the attack's truth. --help lists the options."""

from poisoncam_ray.commands.evaluate import evaluate
from poisoncam_ray.program import run_program

if __name__ == "__main__":
    run_program(evaluate)
