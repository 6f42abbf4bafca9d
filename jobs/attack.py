"""Poison a corpus with a known attack, and write the truth beside it. --help lists the options."""

from poisoncam_ray.commands.attack import attack
from poisoncam_ray.program import run_program

if __name__ == "__main__":
    run_program(attack)
