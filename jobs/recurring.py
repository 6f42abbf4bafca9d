"""A rival without any model: images whose patches recur in many others, on a corpus or on several attacks."""

from typing import Annotated

import typer

from poisoncam_ray.errors import UserError
from poisoncam_ray.program import run_program


def recurring(
    output: Annotated[str, typer.Option(help="folder for the scores, recurring.md and recurring.jsonl")],
    input: Annotated[str | None, typer.Option(help="one corpus of any format")] = None,
    truth: Annotated[str | None, typer.Option(help="truth.parquet of its attack; none: no poison")] = None,
    name: Annotated[str, typer.Option(help="of the corpus, in the table")] = "corpus",
    train: Annotated[
        str | None, typer.Option(help="instead: a labelled Parquet corpus, which is attacked here")
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND@SHARE:NAME=NUMBER",
            help="of --train: a kind as in jobs/attack.py, clean, or logo (a patch that is no poison), the "
            "share of the target's images, and options such as width=0.2; repeat",
        ),
    ] = None,
    trigger: Annotated[str, typer.Option(help="trigger image or generated:SEED")] = "generated:801",
    seed: Annotated[int, typer.Option(help="seed of classes, attacks and sample")] = 801,
    first_label: Annotated[int, typer.Option(help="classes are drawn from the labels from this one")] = 10,
    last_label: Annotated[int, typer.Option(help="… to this one")] = 99,
    classes: Annotated[int, typer.Option(help="number of classes of a corpus")] = 10,
    per_class: Annotated[int, typer.Option(help="photographs of each class, at most")] = 300,
    side: Annotated[
        list[int] | None,
        typer.Option(help="side of windows, of a picture with a shorter side of 64 px; repeat (12 16 24)"),
    ] = None,
    sample: Annotated[
        int, typer.Option(help="so many images' windows are compared with; all images are looked up")
    ] = 3000,
    false_share: Annotated[
        float, typer.Option(help="share of the flagged images that may be chance: sets the threshold")
    ] = 0.1,
) -> None:
    """Score every image by how many others hold one of its patches. No encoder, no labels, no Ray.

    The truth gives the figures, not the threshold. After a kill the same command resumes; more attacks and
    sides may be added.
    """
    if (input is None) == (train is None):
        raise UserError("Give either --input, or --train with an --attack for every row.")
    if train and (truth or not attack):
        raise UserError("With --train give --attack, repeated, and no --truth: it is made here.")
    if input and attack:
        raise UserError("--attack is for --train: poison a corpus with jobs/attack.py, and give its --truth.")
    # What is heavy is imported late: a mistake in the command shows at once.
    from poisoncam_ray.folder import Folder, absolute
    from poisoncam_ray.research.rivals import attacked, on_corpus
    from poisoncam_ray.research.rivals.on_corpus import Look, measure_corpus
    from poisoncam_ray.research.rivals.page import ON_CORPUS, table, write_rows

    look = Look(tuple(side or on_corpus.SIDES_PX), sample, false_share, seed)
    out = Folder(absolute(output))
    specs = [attacked.parse(text) for text in attack or ()]

    def finish(row: dict) -> None:
        done = [out / "rows" / folder for folder in (out / "rows").names()]
        rows = [folder.read_json(on_corpus.ROW) for folder in done if folder.exists(on_corpus.ROW)]
        write_rows(out, "recurring", "# Patches that recur, without any model", rows)
        typer.echo("\n".join(table([row], ON_CORPUS)[-1:]))

    if input:
        said = {"setting": name, "attack": name}
        finish(measure_corpus(absolute(input), truth, out / "rows" / name, look, said))
    if train:
        source = attacked.Source(
            absolute(train), tuple(range(first_label, last_label + 1)), classes, per_class, trigger, seed
        )
        target = attacked.take(source, out)[0]
        for spec in specs:
            corpus, known = attacked.attacked(
                spec, source, target, out / "clean", out / "attacked" / spec.name
            )
            said = attacked.about(spec, source, target)
            finish(measure_corpus(corpus, known, out / "rows" / spec.name, look, said))


if __name__ == "__main__":
    run_program(recurring)
