"""Attack success by clean labels as a training on a poisoned corpus goes on."""

from typing import Annotated

import typer

from poisoncam_ray.program import run_program
from poisoncam_ray.settings import load_config


def regime(
    attacked: Annotated[str, typer.Option(help="output folder of jobs/attack.py; or a clean corpus")],
    clean: Annotated[str, typer.Option(help="the labelled corpus before the attack")],
    validation: Annotated[str, typer.Option(help="labelled validation images")],
    patched: Annotated[str, typer.Option(help="the same with the trigger on each (attack.py --patch)")],
    target: Annotated[str, typer.Option(help="the target's label")],
    output: Annotated[str, typer.Option(help="folder for curve.json and model.safetensors")],
    images: Annotated[int, typer.Option(help="images shown in all")] = 500_000,
    points: Annotated[int, typer.Option(min=1, help="probes on the way")] = 20,
    label_column: Annotated[str, typer.Option(help="column of the corpora that holds the labels")] = "label",
    preset: str = "tiny-cnn",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]…")] = None,
) -> None:
    """Train on a poisoned corpus, and probe attack success by clean labels on the way.

    A cut training goes on from its last probe.
    """
    config = load_config(preset, None, overrides or ())
    from poisoncam_ray.research.regime.curve import Corpora, train, words

    corpora = Corpora(attacked, clean, validation, patched, target, label_column)
    report = train(corpora, output, config, images, points, tell=typer.echo)
    typer.echo(f"mean over the last tenth: {words(report['last'])}")


if __name__ == "__main__":
    run_program(regime)
