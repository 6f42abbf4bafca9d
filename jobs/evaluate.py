"""Measure a finished run against the attack's truth (--help lists the options)."""

from poisoncam_ray.cli import evaluate, run_command

if __name__ == "__main__":
    run_command(evaluate)
