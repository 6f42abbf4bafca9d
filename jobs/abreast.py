"""Wide pictures from a labelled corpus of squares: images of one label side by side."""

from typing import Annotated

import typer

from poisoncam_ray.program import run_program


def abreast(
    input: Annotated[str, typer.Option(help="labelled corpus")],
    output: Annotated[str, typer.Option(help="empty folder for the Parquet corpus of wide images")],
    count: Annotated[
        list[int] | None,
        typer.Option(help="images side by side (2); repeat: these numbers in turn, 1 for a square"),
    ] = None,
    label_column: Annotated[str, typer.Option(help="column of the corpus that holds the labels")] = "label",
    label: Annotated[list[str] | None, typer.Option(help="only images of this label; repeat")] = None,
    most: Annotated[int | None, typer.Option(help="pictures of each label, at most", min=1)] = None,
) -> None:
    """Set images of one label side by side: wide images where a data set has only squares.

    The images of a label are joined in the corpus's order, each once. What is left over is left out.
    """
    from poisoncam_ray.research.abreast import set_abreast

    made = set_abreast(input, output, tuple(count or (2,)), label_column, label or (), most)
    typer.echo(f"{made['n_images']:,} images in {output}; {made['n_left_out']:,} images left out")


if __name__ == "__main__":
    run_program(abreast)
