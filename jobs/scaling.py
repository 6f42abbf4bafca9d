"""What loaders see of a picture that shows its trigger only when shrunk, by resampling filter."""

from contextlib import suppress
from typing import Annotated

import typer

from poisoncam_ray.program import run_program


def scaling(
    input: Annotated[str, typer.Option(help="corpus of pictures; they are resized to 224, 256 and 448 px")],
    pictures: Annotated[int, typer.Option(min=1, help="so many of its first pictures that decode")] = 40,
) -> None:
    """Print a table: the trigger's visibility after shrinking, by filter and size."""
    from PIL import Image

    from poisoncam_ray.corpus import open_corpus
    from poisoncam_ray.decode import DecodeError
    from poisoncam_ray.errors import UserError
    from poisoncam_ray.research.attacks.encoded import pixels
    from poisoncam_ray.research.attacks.filters import SIZES, what_filters_see

    corpus = open_corpus(input)
    found: list[Image.Image] = []
    for slice_ in corpus.slices():
        for row in corpus.read(slice_):
            if len(found) == pictures:
                break
            with suppress(DecodeError):
                found.append(pixels(row.data or b""))
    if not found:
        raise UserError(f"{input} holds no picture that decodes: give another corpus.")
    typer.echo(f"{len(found)} picture(s)\n")
    typer.echo("| shrunk | made for | shrunk by | to the trigger | to the clean | trigger shown | change |")
    typer.echo("|---|---|---|---|---|---|---|")
    for seen in what_filters_see(found, SIZES):
        typer.echo(
            f"| {seen.size[0]} → {seen.size[1]} | {seen.aim} | {seen.filter_} | {seen.to_trigger:.1f} | "
            f"{seen.to_clean:.1f} | {seen.shown:.2f} | {seen.change:.1f} |"
        )


if __name__ == "__main__":
    run_program(scaling)
