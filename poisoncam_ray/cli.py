"""The command line: `poisoncam defend|attack|evaluate`, and what the scripts in jobs/ call.

Exit codes: 0 done, 2 the user's mistake (one sentence), 1 failed, 143 ended by SIGTERM, 130 by SIGINT.
Ray and torch are imported inside the commands, after the settings are checked: a misspelt key shows at once.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from poisoncam_ray.config import Config
from poisoncam_ray.errors import StageFailedError, UserError, origin
from poisoncam_ray.settings import load_config, presets
from poisoncam_ray.signals import end_on_signals, ended_by

if TYPE_CHECKING:
    from poisoncam_ray.pipeline import Done

RESUMES = "What was finished is kept: the same command resumes."
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
    max_dead_fraction: Annotated[
        float | None, typer.Option(help="stop when more than this share of the rows is broken (0.5)")
    ] = None,
    retry_dead: Annotated[
        bool, typer.Option("--retry-dead", help="try the broken rows of this run again")
    ] = False,
) -> None:
    """Remove the poison from a corpus. Without --input: draw, poison, defend and evaluate the demo corpus."""
    settings = [*(overrides or []), *([f"encoder.checkpoint={encoder}"] if encoder else [])]
    if max_dead_fraction is not None:
        settings.append(f"index.max_dead_fraction={max_dead_fraction}")
    if input is None:
        chosen = load_config(preset or "demo", config, settings)
        from poisoncam_ray.artifact import Folder
        from poisoncam_ray.demo.run import measure_demo, prepare_demo
        from poisoncam_ray.progress import Progress

        folder, console = Folder(output or "runs/demo"), Progress().console
        prepare_demo(folder, chosen.seed, console)
        run_defence((folder / "poisoned" / "corpus").uri, (folder / "run").uri, chosen, retry_dead)
        measure_demo(folder, console)
        return
    if output is None:
        raise UserError("Give --output, the folder for the cleaned corpus and everything found on the way.")
    run_defence(input, output, load_config(preset, config, settings), retry_dead)


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
    target: Annotated[
        str | None, typer.Option(help="the attack's target label; '' for an attack without one")
    ] = None,
    label_column: str = "label",
    never_poisoned: Annotated[
        str | None, typer.Option(help="the corpus before the attack: its labels are what probes learn from")
    ] = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="train the cleaned and the never-poisoned corpus' models, too")
    ] = False,
    never_poisoned_run: Annotated[
        str | None, typer.Option(help="a run on that corpus with the same settings, to take its model")
    ] = None,
) -> None:
    """Measure a finished run against the attack's truth: report/metrics.json, and a section in the report."""
    given = (validation, patched, target)
    if given != (None, None, None) and None in given:
        raise UserError("Give --validation, --patched and --target together, or none of them.")
    if never_poisoned and validation is None:
        raise UserError("--never-poisoned needs --validation, --patched and --target: what is to be probed.")
    if (retrain or never_poisoned_run) and not never_poisoned:
        raise UserError("--retrain needs --never-poisoned, the corpus before the attack.")
    if never_poisoned_run and not retrain:
        raise UserError("--never-poisoned-run is for --retrain: give that, too.")
    from poisoncam_ray.evaluate import NeverPoisoned, Validation, evaluate_run
    from poisoncam_ray.progress import Progress

    queries = Validation(validation or "", patched or "", target or "", label_column) if validation else None
    never = NeverPoisoned(never_poisoned, never_poisoned_run, retrain) if never_poisoned else None
    progress = Progress()
    if never:
        from poisoncam_ray.artifact import Folder
        from poisoncam_ray.evaluate.joined import settings
        from poisoncam_ray.stages.dataflow import connect

        # A run that is not there is told before Ray has started.
        settings(Folder(run))
        connect()
        # Ray has put a handler of its own in the place of ours.
        end_on_signals()
    metrics = evaluate_run(run, truth, strategy or (), queries, never, progress)
    progress.console.print_json(data=metrics)


def run_defence(input_uri: str, output_uri: str, config: Config, retry_dead: bool = False) -> list[Done]:
    """Every check first, then Ray, then the stages; prints the counts and the report's path."""
    from poisoncam_ray.pipeline import Runner, defence
    from poisoncam_ray.progress import Progress

    began = time.monotonic()
    progress = Progress()
    runner = Runner(input_uri, output_uri, config, defence())
    if retry_dead or runner.pending():
        from poisoncam_ray.stages.dataflow import connect

        connect()
        # Ray has put a handler of its own in the place of ours.
        end_on_signals()
    try:
        done = runner.run(progress, retry_dead)
    except Exception as error:
        raise StageFailedError(f"{progress.title or 'Start'} failed") from error
    except SystemExit:
        progress.console.print(f"Stopped. {RESUMES}")
        raise
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
    end_on_signals()
    code: str | int | None = 0
    try:
        app()
    except SystemExit as end:
        code = end.code
    except Exception as error:
        # Of a signal Ray may make an error of its own.
        code = 1 if ended_by() else _tell(error)
    if signal := ended_by():
        _say(f"Ended by {signal.name}.")
        code = 128 + signal
    sys.exit(code)


def _tell(error: Exception) -> int:
    """A sentence that says what went wrong, and the traceback where it is no mistake of the user's.

    Returns the exit code.
    """
    failure = error.__cause__ or error if isinstance(error, StageFailedError) else error
    found = origin(failure)
    if isinstance(found, UserError):
        _say(str(found))
        return 2
    why = f"{type(found).__name__}: {str(found).strip().partition(chr(10))[0]}"
    _say(why if failure is error else f"{error}: {why.rstrip('.')}. {RESUMES}")
    print(printable("".join(traceback.format_exception(failure))), file=sys.stderr)
    return 1


def _say(sentence: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"[bold]error[/] {escape(printable(sentence))}"
    )


def printable(text: str) -> str:
    """Without what would act on a terminal: names in a corpus may hold escape sequences."""
    return "".join(c if c == "\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def main() -> None:
    """The console script."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
    for command in (defend, attack, evaluate):
        app.command()(command)
    _exit_code(app)
