"""Poison a corpus as the reference attack does, with the truth beside it (--help lists the options)."""

from poisoncam_ray.cli import attack, run_command

if __name__ == "__main__":
    run_command(attack)
