"""Remove the poison from a corpus: jobs/defend.py --input URI --output URI. Without arguments: the demo."""

from poisoncam_ray.commands.defend import defend
from poisoncam_ray.program import run_program

if __name__ == "__main__":
    run_program(defend)
