"""Poison a corpus by one of the attacks, with the truth beside it (--help lists the options)."""

from poisoncam_ray.cli import attack
from poisoncam_ray.program import run_program

if __name__ == "__main__":
    run_program(attack)
