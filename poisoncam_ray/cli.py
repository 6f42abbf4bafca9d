"""The command line: `poisoncam defend|attack|evaluate`, and what the scripts in jobs/ call.

Ray and torch are imported inside the commands, after the settings are checked: a misspelt key shows at once.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.markup import escape

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.errors import StageFailedError, UserError
from poisoncam_ray.program import RESUMES, run_program
from poisoncam_ray.settings import load_config, presets
from poisoncam_ray.signals import end_on_signals

FOUND_POISON = 3
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.key=value]…", help="settings that win over preset and file"),
]
InputUri = Annotated[
    str | None,
    typer.Option("--input", help="folder of Parquet shards, WebDataset tars or images, local or s3://"),
]
OutputUri = Annotated[str | None, typer.Option("--output", help="the run folder: empty, or one to resume")]
Preset = Annotated[str | None, typer.Option(help="named configuration: " + ", ".join(presets()))]
ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file of settings")]
# The names of attacks.KINDS, which is imported with the command.
ATTACKS = "patch, blended, several, large, dynamic, natural, frequency, untargeted, spread, decoys"


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
    redo: Annotated[
        str | None,
        typer.Option(help="do this stage of a finished run again, with all after it: verdict, classify …"),
    ] = None,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="end with code 3 when poison was found; without it, 0")
    ] = False,
) -> None:
    """Remove the poison from a corpus. Without --input, run the demo on a corpus that is drawn and
    poisoned."""
    settings = list(overrides or [])
    if "" in (input, output, encoder):
        raise UserError("--input, --output or --encoder is empty: give a place, or leave it out.")
    if max_dead_fraction is not None:
        settings.append(f"corpus.max_dead_fraction={max_dead_fraction}")
    if encoder is not None:
        settings.append(f"encoder.checkpoint={encoder}")
    if input is None:
        chosen = load_config(preset or "demo", config, settings)
        from poisoncam_ray.folder import Folder
        from poisoncam_ray.progress import Progress
        from poisoncam_ray.research.demo.run import measure_demo, prepare_demo

        folder, console = Folder(output or "runs/demo"), Progress().console
        prepare_demo(folder, chosen.seed, console)
        poison = run_defence((folder / "poisoned" / "corpus").uri, (folder / "run").uri, chosen, redo)
        measure_demo(folder, console)
    else:
        if output is None:
            raise UserError("Give --output, the folder for the cleaned corpus and all that is found.")
        poison = run_defence(input, output, load_config(preset, config, settings), redo)
    if poison and exit_code:
        raise typer.Exit(FOUND_POISON)


def attack(
    input: Annotated[str, typer.Option(help="the clean corpus")],
    output: Annotated[str, typer.Option(help="empty folder for corpus/, truth.parquet, attack.json")],
    target: Annotated[
        list[str] | None, typer.Option(help="label to poison; repeat for several attackers")
    ] = None,
    trigger: Annotated[
        list[str] | None, typer.Option(help="image file or generated:SEED, one for each target")
    ] = None,
    kind: Annotated[str, typer.Option(help=f"which attack: {ATTACKS}")] = "patch",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=NUMBER", help="setting of the kind: alpha=0.3; repeat")
    ] = None,
    width: Annotated[
        float | None,
        typer.Option(help="trigger width, share of the image's shorter side (50/224; large: 0.5)"),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(help="share of the target's images that is poisoned (0.5; untargeted: 0.05 of all)"),
    ] = None,
    region: Annotated[
        tuple[float, float] | None, typer.Option(help="where the trigger lies, shares of each side")
    ] = None,
    seed: int = 0,
    label_column: str = "label",
    patch: Annotated[bool, typer.Option("--patch", help="patch every image: a validation set")] = False,
) -> None:
    """Poison a corpus as the reference attack does, or by another kind, and write down the truth."""
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
    run: Annotated[str, typer.Option(help="the --output of a defence")],
    truth: Annotated[str, typer.Option(help="truth.parquet of the attack")],
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="compare windows by full_coverage:hard (the paper's), gradcam, random …"),
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
    from poisoncam_ray.progress import Progress
    from poisoncam_ray.research.evaluate import OtherModels, Validation, evaluate_run

    queries = Validation(validation or "", patched or "", target or "", label_column) if validation else None
    beside = OtherModels(never_poisoned, never_poisoned_run, retrain) if never_poisoned else None
    progress = Progress()
    if beside:
        from poisoncam_ray.folder import Folder
        from poisoncam_ray.research.evaluate.joined import settings
        from poisoncam_ray.stages.ray_cluster import start_ray

        # A run that is not there is told before Ray has started.
        settings(Folder(run))
        start_ray()
        # Ray has put a handler of its own in the place of ours.
        end_on_signals()
    metrics = evaluate_run(run, truth, strategy or (), queries, beside, progress)
    progress.console.print_json(data=metrics)


def run_defence(input_uri: str, output_uri: str, config: Config, redo: str | None = None) -> bool:
    """Check everything, start Ray, run the stages; print the counts, the verdict and the report's path.

    Args:
        input_uri: the corpus.
        output_uri: the run folder.
        config: the configuration.
        redo: the title of a stage to do again, with all after it.

    Returns:
        Whether poison was found.
    """
    # Ray and torch take seconds to load: a mistake in the command must show before.
    from poisoncam_ray import facts
    from poisoncam_ray.defence import stages
    from poisoncam_ray.progress import Progress
    from poisoncam_ray.report.words import tell
    from poisoncam_ray.runner import Runner
    from poisoncam_ray.stages.ray_cluster import start_ray

    began = time.monotonic()
    progress = Progress()
    runner = Runner(input_uri, output_uri, config, stages(), redo)
    if runner.pending():
        start_ray()
        # Ray has put a handler of its own in the place of ours.
        end_on_signals()
    try:
        done = runner.run(progress)
    except Exception as error:
        raise StageFailedError(f"{progress.title or 'Start'} failed") from error
    except SystemExit:
        progress.console.print(f"Stopped. {RESUMES}")
        raise
    if all(stage.reused for stage in done):
        progress.console.print(
            "Nothing to do: every stage was done before with these settings and this input."
        )
    manifests = {stage.stage: stage.manifest for stage in done}
    verdict = artifact.Verdict.read(runner.folder / artifact.VERDICT)
    cleaned = facts.of_manifest(facts.Cleaned, manifests[artifact.CLEAN])
    classified = facts.of_manifest(facts.Classified, manifests[artifact.CLASSIFIER])
    reported = facts.of_manifest(facts.Reported, manifests[artifact.REPORT])
    progress.console.print(
        f"{cleaned.kept + cleaned.removed + cleaned.dead:,} rows = {cleaned.kept:,} kept + "
        f"{cleaned.removed:,} removed + {cleaned.dead:,} dead ({time.monotonic() - began:.0f} s)"
    )
    by_family = {int(family): n for family, n in reported.removed_by_family.items()}
    for line in tell(verdict, cleaned.removed, by_family, classified.in_doubt):
        progress.console.print(line)
    progress.console.print(f"clean corpus  {escape(output_uri)}/{artifact.CLEAN_ROWS}")
    progress.console.print(f"report        {escape(output_uri)}/{artifact.PAGE}/{artifact.HTML}")
    return cleaned.removed > 0 or verdict.poison


def _numbers(settings: list[str]) -> dict[str, float]:
    """NAME=NUMBER, one each."""
    numbers = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            numbers[name] = float(value)
        except ValueError as error:
            raise UserError(f"The option {setting} is no NAME=NUMBER: write it as alpha=0.3.") from error
    return numbers


def main() -> None:
    """The console script."""
    run_program(defend, attack, evaluate)
