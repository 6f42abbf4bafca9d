"""Remove the poison from a corpus: jobs/defend.py --input URI --output URI. No arguments: the demo."""

from poisoncam_ray.cli import defend, run_command

if __name__ == "__main__":
    run_command(defend)
