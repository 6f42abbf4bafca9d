"""The command `evaluate`: measure a finished run against the truth of an attack."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from poisoncam_ray.commands.options import AsJson, Output, Quiet
from poisoncam_ray.errors import UserError
from poisoncam_ray.program import examples
from poisoncam_ray.signals import end_on_signals


@examples(
    "poisoncam evaluate --run defended/ --truth poisoned/truth.parquet",
    "poisoncam evaluate --run defended/ --truth poisoned/truth.parquet --strategy full_coverage:hard",
    "poisoncam evaluate --run defended/ --truth poisoned/truth.parquet --candidates one.parquet",
)
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
    candidates: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="also store the run's candidates, with the truth beside them, in this .parquet file: "
            "jobs/rules.py decides on them again",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
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
    if candidates and not candidates.endswith(".parquet"):
        raise UserError(f"--candidates {candidates} is no name of a Parquet file: let it end with .parquet.")
    from poisoncam_ray.research.evaluate import OtherModels, Validation, evaluate_run

    queries = Validation(validation or "", patched or "", target or "", label_column) if validation else None
    beside = OtherModels(never_poisoned, never_poisoned_run, retrain) if never_poisoned else None
    output = Output(as_json, quiet)
    if beside:
        from poisoncam_ray.folder import Folder
        from poisoncam_ray.runner import config_of
        from poisoncam_ray.stages.ray_cluster import start_ray

        # A run that does not exist is reported before Ray has started.
        config_of(Folder(run))
        start_ray()
        # Ray has put a handler of its own in the place of ours.
        end_on_signals()
    metrics = evaluate_run(run, truth, strategy or (), queries, beside, output.progress)
    if candidates:
        from poisoncam_ray.research.evaluate.stored import store_run

        size = store_run(run, truth, candidates)
        output.note(f"candidates  {candidates}, {size / 1e6:.2f} MB")
    output.result(metrics, json.dumps(metrics, indent=2).split("\n"))
