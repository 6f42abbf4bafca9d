"""A hard clean corpus: honest pictures with a logo, a watermark, bars or the like, which are no attack."""

from typing import Annotated

import typer

from poisoncam_ray.program import run_program


def hard_clean(
    input: Annotated[str, typer.Option(help="labelled corpus")],
    output: Annotated[str, typer.Option(help="empty folder for corpus/, marked.parquet and hard_clean.json")],
    mark: Annotated[
        str, typer.Option(help="logo, watermark, letterbox, timestamp, burst, sprite or screenshot")
    ],
    label: Annotated[
        list[str] | None, typer.Option(help="label whose images carry the mark; repeat; none: all labels")
    ] = None,
    share: Annotated[float, typer.Option(help="share of these images that carry it")] = 1.0,
    seed: Annotated[int, typer.Option(help="seed of the mark and of the choice")] = 0,
    label_column: Annotated[str, typer.Option(help="column of the corpus that holds the labels")] = "label",
) -> None:
    """Put a mark on honest pictures: what does the defence take for a trigger?"""
    from poisoncam_ray.research.hard_clean import make_hard_clean

    made = make_hard_clean(input, output, mark, tuple(label or ()), share, seed, label_column)
    typer.echo(
        f"{made['n_marked']:,} of {made['n_images']:,} images carry the mark; corpus in {output}/corpus"
    )


if __name__ == "__main__":
    run_program(hard_clean)
