"""The command `attack`: poison a corpus with a known attack."""

from __future__ import annotations

from typing import Annotated

import typer

from poisoncam_ray.commands.options import AsJson, Output, Quiet
from poisoncam_ray.errors import UserError
from poisoncam_ray.program import examples

# The names in attacks.KINDS, whose import would load numpy and pyarrow. A test compares them.
ATTACKS = (
    "patch, blended, several, large, dynamic, natural, frequency, untargeted, spread, decoys, margin, "
    "noisy_alignment, corrupt_encoder, varying, framed, doubt, scaled, alpha"
)


@examples(
    "poisoncam attack --input clean/ --output poisoned/ --target 3 --trigger generated:7",
    "poisoncam attack --input s3://bucket/clean --output s3://bucket/poisoned --target cat --kind blended",
    "poisoncam attack --input validation/ --output patched/ --target 3 --trigger generated:7 --patch",
)
def attack(
    input: Annotated[str, typer.Option(help="the clean corpus")],
    output: Annotated[str, typer.Option(help="empty folder for corpus/, truth.parquet and attack.json")],
    target: Annotated[
        list[str] | None, typer.Option(help="label whose images are poisoned; repeat for several attackers")
    ] = None,
    trigger: Annotated[
        list[str] | None, typer.Option(help="image file or generated:SEED, one for each target")
    ] = None,
    kind: Annotated[str, typer.Option(help=f"kind of attack: {ATTACKS}")] = "patch",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=NUMBER", help="setting of the kind: alpha=0.3; repeat")
    ] = None,
    width: Annotated[
        float | None,
        typer.Option(help="trigger width as a share of the image's shorter side (50/224; large: 0.5)"),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(help="share of the target's images that is poisoned (0.5; untargeted: 0.05 of all)"),
    ] = None,
    region: Annotated[
        tuple[float, float] | None,
        typer.Option(help="where the trigger may lie: two shares of each side, such as 0.25 0.75"),
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of every random choice")] = 0,
    label_column: Annotated[str, typer.Option(help="column of the corpus that holds the labels")] = "label",
    patch: Annotated[
        bool, typer.Option("--patch", help="put the trigger on every image, for a validation set")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Poison a corpus with a known attack, and write the truth beside it."""
    from poisoncam_ray.research.attacks import patch_corpus, poison_corpus

    targets, triggers, settings = target or [], trigger or [], numbers(option or [])
    if patch:
        if len(targets) > 1 or len(triggers) > 1:
            raise UserError("With --patch give one --target and at most one --trigger.")
        label, image = (targets or [""])[0], (triggers or [""])[0]
        made = patch_corpus(input, output, label, image, width, seed, region, kind=kind, options=settings)
    else:
        made = poison_corpus(
            input, output, targets, triggers, width, share, seed, label_column, region,
            kind=kind, options=settings,
        )  # fmt: skip
    lines = [f"{made['n_poisoned']:,} of {made['n_images']:,} images carry a trigger"]
    if made["n_decoys"]:
        lines.append(f"{made['n_decoys']:,} clean images carry a decoy")
    places = {"corpus": f"{output}/corpus", "truth": f"{output}/truth.parquet"}
    counts = {name: made[name] for name in ("n_images", "n_poisoned", "n_decoys")}
    lines += [f"{name:<7} {place}" for name, place in places.items()]
    Output(as_json, quiet).result(counts | places, lines)


def numbers(settings: list[str]) -> dict[str, float]:
    """Read options of the form NAME=NUMBER.

    Raises:
        UserError: one has another form.
    """
    numbers = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            numbers[name] = float(value)
        except ValueError as error:
            raise UserError(f"The option {setting} is no NAME=NUMBER: write it as alpha=0.3.") from error
    return numbers
