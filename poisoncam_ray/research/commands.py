"""The commands `attack` and `evaluate`. The console script and the scripts in jobs/ register them.

What is heavy is imported inside the commands, after their arguments are checked: a mistake shows at once.
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from poisoncam_ray.errors import UserError
from poisoncam_ray.signals import end_on_signals

# The names in attacks.KINDS, whose import would load numpy and pyarrow. A test compares them.
ATTACKS = "patch, blended, several, large, dynamic, natural, frequency, untargeted, spread, decoys"


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
) -> None:
    """Poison a corpus with a known attack, and write the truth beside it."""
    from poisoncam_ray.progress import Progress
    from poisoncam_ray.research.attacks import patch_corpus, poison_corpus

    targets, triggers, settings = target or [], trigger or [], _numbers(option or [])
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
    console = Progress().console
    console.print(f"{made['n_poisoned']:,} of {made['n_images']:,} images carry a trigger")
    if made["n_decoys"]:
        console.print(f"{made['n_decoys']:,} clean images carry a decoy")
    console.print(f"corpus  {escape(output)}/corpus")
    console.print(f"truth   {escape(output)}/truth.parquet")


def evaluate(
    run: Annotated[str, typer.Option(help="the --output of a finished defence")],
    truth: Annotated[str, typer.Option(help="truth.parquet of the attack")],
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="compare this way of finding windows: MASKS:SCORE such as full_coverage:hard (the paper's), "
            "gradcam or random; repeat"
        ),
    ] = None,
    validation: Annotated[str | None, typer.Option(help="clean labelled validation corpus")] = None,
    patched: Annotated[
        str | None, typer.Option(help="the validation corpus with the trigger on every image")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="the attack's target label; '' for an attack without one")
    ] = None,
    label_column: Annotated[str, typer.Option(help="column of the corpora that holds the labels")] = "label",
    never_poisoned: Annotated[
        str | None,
        typer.Option(help="the corpus before the attack: the probes learn from its labels"),
    ] = None,
    retrain: Annotated[
        bool,
        typer.Option("--retrain", help="also train encoders on the cleaned and the never-poisoned corpus"),
    ] = False,
    never_poisoned_run: Annotated[
        str | None,
        typer.Option(help="a run on the never-poisoned corpus with the same settings, to use its encoder"),
    ] = None,
) -> None:
    """Measure a finished run against the attack's truth.

    The figures go into report/metrics.json and into a section of the report.
    """
    given = (validation, patched, target)
    if given != (None, None, None) and None in given:
        raise UserError("Give --validation, --patched and --target together, or none of them.")
    if never_poisoned and validation is None:
        raise UserError("--never-poisoned needs --validation, --patched and --target: what is to be probed.")
    if (retrain or never_poisoned_run) and not never_poisoned:
        raise UserError("--retrain needs --never-poisoned, the corpus before the attack.")
    if never_poisoned_run and not retrain:
        raise UserError("--never-poisoned-run is for --retrain: give that, too.")
    from poisoncam_ray.progress import Progress
    from poisoncam_ray.research.evaluate import OtherModels, Validation, evaluate_run

    queries = Validation(validation or "", patched or "", target or "", label_column) if validation else None
    beside = OtherModels(never_poisoned, never_poisoned_run, retrain) if never_poisoned else None
    progress = Progress()
    if beside:
        from poisoncam_ray.folder import Folder
        from poisoncam_ray.runner import config_of
        from poisoncam_ray.stages.ray_cluster import start_ray

        # A run that does not exist is reported before Ray has started.
        config_of(Folder(run))
        start_ray()
        # Ray has put a handler of its own in the place of ours.
        end_on_signals()
    metrics = evaluate_run(run, truth, strategy or (), queries, beside, progress)
    progress.console.print_json(data=metrics)


def _numbers(settings: list[str]) -> dict[str, float]:
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
