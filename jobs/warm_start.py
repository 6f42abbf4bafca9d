"""An encoder trained with labels on clean pictures, to continue from with pretrain.init."""

from typing import Annotated

import typer

from poisoncam_ray.program import run_program


def warm_start(
    input: Annotated[str, typer.Option(help="labelled corpus without poison")],
    output: Annotated[str, typer.Option(help="folder for encoder.safetensors and warm_start.json")],
    validation: Annotated[str | None, typer.Option(help="labelled corpus for the accuracy")] = None,
    backbone: Annotated[str, typer.Option(help="as encoder.backbone of the configuration")] = "resnet_tiny",
    image_size: Annotated[int, typer.Option(help="side of the encoder's image in pixels")] = 32,
    patch_size: Annotated[int | None, typer.Option(help="of a ViT, in pixels")] = None,
    images: Annotated[int, typer.Option(help="images shown in all")] = 700_000,
    label_column: Annotated[str, typer.Option(help="column of the corpora that holds the labels")] = "label",
    seed: Annotated[int, typer.Option(help="seed of every random choice")] = 0,
) -> None:
    """Train an encoder with labels. A cut training goes on where its last epoch ended."""
    from poisoncam_ray.research.regime.warm_start import warm_start as train

    train(
        input, output, backbone, image_size, patch_size, validation, label_column, images, seed=seed,
        tell=typer.echo,
    )  # fmt: skip


if __name__ == "__main__":
    run_program(warm_start)
