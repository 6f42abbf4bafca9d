"""Poison a corpus by one of the attacks, with the truth beside it (--help lists the options)."""

from poisoncam_ray.program import run_program
from poisoncam_ray.research.commands import attack

if __name__ == "__main__":
    run_program(attack)
