"""Poison a corpus by one of the attacks, with the truth beside it (--help lists the options)."""

from poisoncam_ray.cli import attack, run_command

if __name__ == "__main__":
    run_command(attack)
