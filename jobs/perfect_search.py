"""What an attack does to the poison classifier alone, after a search that makes no mistake."""

from typing import Annotated

import typer

from poisoncam_ray.program import run_program


def perfect_search(
    attacked: Annotated[str, typer.Option(help="output of jobs/attack.py with one trigger")],
    side: Annotated[int, typer.Option(min=16, help="of the encoder's square, in pixels")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="of the windows and the ensemble")] = 0,
    models: Annotated[int, typer.Option(min=1, help="of the ensemble")] = 3,
) -> None:
    """Train the classifier on true windows: is the family erased, and how many honest bearers go with it?"""
    from poisoncam_ray.config import Classify
    from poisoncam_ray.research.attacks.perfect_search import judge_with_perfect_windows

    found = judge_with_perfect_windows(attacked, side, seed, Classify(models=models))
    for name, figure in found.items():
        typer.echo(f"{name:<18} {figure:.4f}" if isinstance(figure, float) else f"{name:<18} {figure}")


if __name__ == "__main__":
    run_program(perfect_search)
