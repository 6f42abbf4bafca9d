"""Measure the cost of search, training and Embed on this machine. --help lists the options."""

from poisoncam_ray.commands.benchmark import benchmark
from poisoncam_ray.program import run_program

if __name__ == "__main__":
    run_program(benchmark)
