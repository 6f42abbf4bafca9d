"""The command line: `poisoncam defend|attack|evaluate`, and what the scripts in jobs/ call.

Exit codes: 0 done, 2 the user's mistake (one sentence), 1 failed. Ray and torch are imported inside the
commands, after the settings are checked: a misspelt key is told at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.settings import load_config, presets

if TYPE_CHECKING:
    from poisoncam_ray.pipeline import Done

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.key=value]…", help="settings that win over preset and file"),
]
InputUri = Annotated[
    str | None, typer.Option("--input", help="folder of Parquet shards or images, local or s3://")
]
OutputUri = Annotated[str | None, typer.Option("--output", help="the run folder: empty, or one to resume")]
Preset = Annotated[str | None, typer.Option(help="named configuration: " + ", ".join(presets()))]
ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file of settings")]


def defend(
    overrides: Overrides = None,
    input: InputUri = None,
    output: OutputUri = None,
    preset: Preset = None,
    config: ConfigFile = None,
    encoder: Annotated[str | None, typer.Option(help="your own checkpoint: skips pretraining")] = None,
) -> None:
    """Remove the poison from a corpus. Without --input: draw, poison, defend and evaluate the demo corpus."""
    settings = [*(overrides or []), *([f"encoder.checkpoint={encoder}"] if encoder else [])]
    if input is None:
        chosen = load_config(preset or "demo", config, settings)
        from poisoncam_ray.artifact import Folder
        from poisoncam_ray.demo.run import measure_demo, prepare_demo
        from poisoncam_ray.progress import Progress

        folder, console = Folder(output or "runs/demo"), Progress().console
        prepare_demo(folder, chosen.seed, console)
        run_defence((folder / "poisoned" / "corpus").uri, (folder / "run").uri, chosen)
        measure_demo(folder, console)
        return
    if output is None:
        raise UserError("Give --output, the folder for the cleaned corpus and everything found on the way.")
    run_defence(input, output, load_config(preset, config, settings))


def attack(
    input: Annotated[str, typer.Option(help="the clean corpus")],
    output: Annotated[str, typer.Option(help="empty folder for corpus/, truth.parquet, attack.json")],
    target: Annotated[list[str], typer.Option(help="label to poison; repeat for several attackers")],
    trigger: Annotated[
        list[str] | None, typer.Option(help="image file or generated:SEED, one for each target")
    ] = None,
    width: Annotated[float, typer.Option(help="trigger width, share of the image's shorter side")] = 50 / 224,
    share: Annotated[float, typer.Option(help="share of the target's images that is poisoned")] = 0.5,
    region: Annotated[
        tuple[float, float] | None, typer.Option(help="where the trigger lies, shares of each side")
    ] = None,
    seed: int = 0,
    label_column: str = "label",
    patch: Annotated[bool, typer.Option("--patch", help="patch every image: a validation set")] = False,
) -> None:
    """Poison a corpus as the reference attack does, and write down the truth."""
    from poisoncam_ray.attack import TRAIN_REGION, VALIDATION_REGION, patch_corpus, poison_corpus
    from poisoncam_ray.progress import Progress

    if patch:
        if len(target) != 1 or len(trigger or []) > 1:
            raise UserError("With --patch give one --target and at most one --trigger.")
        place = region or VALIDATION_REGION
        made = patch_corpus(input, output, target[0], (trigger or [""])[0], width, seed, place)
    else:
        place = region or TRAIN_REGION
        made = poison_corpus(input, output, target, trigger or (), width, share, seed, label_column, place)
    console = Progress().console
    console.print(f"{made['n_poisoned']:,} of {made['n_images']:,} images carry a trigger")
    console.print(f"corpus  {escape(output)}/corpus")
    console.print(f"truth   {escape(output)}/truth.parquet")


def evaluate(
    run: Annotated[str, typer.Option(help="the --output of a defence")],
    truth: Annotated[str, typer.Option(help="truth.parquet of the attack")],
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="compare windows by full_coverage:hard (the paper's), gradcam (the peer's), random …"
        ),
    ] = None,
    validation: Annotated[str | None, typer.Option(help="clean validation corpus")] = None,
    patched: Annotated[str | None, typer.Option(help="the same, every image patched")] = None,
    target: Annotated[str | None, typer.Option(help="the attack's target label")] = None,
    label_column: str = "label",
) -> None:
    """Measure a finished run against the attack's truth: report/metrics.json, and a section in the report."""
    from poisoncam_ray.evaluate import evaluate_run
    from poisoncam_ray.progress import Progress

    metrics = evaluate_run(run, truth, strategy or (), validation, patched, label_column, target)
    Progress().console.print_json(data=metrics)


def run_defence(input_uri: str, output_uri: str, config: Config) -> list[Done]:
    """Every check first, then Ray, then the stages; prints the counts and the report's path."""
    from poisoncam_ray.pipeline import Runner, defence
    from poisoncam_ray.progress import Progress

    began = time.monotonic()
    progress = Progress()
    runner = Runner(input_uri, output_uri, config, defence())
    if runner.pending():
        from poisoncam_ray.stages.dataflow import connect

        connect()
    done = runner.run(progress)
    if all(stage.reused for stage in done):
        progress.console.print(
            "Nothing to do: every stage was done before with these settings and this input."
        )
    ledger = next(stage.manifest.ledger for stage in done if stage.title == "Clean")
    if ledger:
        progress.console.print(
            f"{ledger.rows_in:,} rows = {ledger.rows_out:,} kept + {ledger.removed:,} removed "
            f"+ {ledger.dead:,} dead ({time.monotonic() - began:.0f} s)"
        )
    progress.console.print(f"clean corpus  {escape(output_uri)}/07_clean")
    progress.console.print(f"report        {escape(output_uri)}/report/index.html")
    return done


def run_command(command: Callable[..., None]) -> None:
    """One command as a program, with our exit codes."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    _exit_code(app)


def _exit_code(app: typer.Typer) -> None:
    try:
        app()
    except UserError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold]error[/] {escape(str(error))}")
        sys.exit(2)


def main() -> None:
    """The console script."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
    for command in (defend, attack, evaluate):
        app.command()(command)
    _exit_code(app)
