"""The command `defend`: remove the poison from a corpus."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.markup import escape

from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.program import RESUMES
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
    from poisoncam_ray import artifact, facts
    from poisoncam_ray.defence import stages
    from poisoncam_ray.folder import Folder
    from poisoncam_ray.launch import launch
    from poisoncam_ray.progress import Progress
    from poisoncam_ray.report.words import tell

    began = time.monotonic()
    progress = Progress()
    try:
        done = launch(input_uri, output_uri, config, stages(), progress, redo, end_on_signals)
    except SystemExit:
        progress.console.print(f"Stopped. {RESUMES}")
        raise
    if all(stage.reused for stage in done):
        progress.console.print(
            "Nothing to do: every stage was done before with these settings and this input."
        )
    manifests = {stage.stage: stage.manifest for stage in done}
    verdict = artifact.Verdict.read(Folder(output_uri) / artifact.VERDICT)
    cleaned = facts.of_manifest(facts.Cleaned, manifests[artifact.CLEAN])
    classified = facts.of_manifest(facts.Classified, manifests[artifact.CLASSIFIER])
    reported = facts.of_manifest(facts.Reported, manifests[artifact.REPORT])
    progress.console.print(
        f"{cleaned.rows:,} rows = {cleaned.kept:,} kept + "
        f"{cleaned.removed:,} removed + {cleaned.dead:,} dead ({time.monotonic() - began:.0f} s)"
    )
    by_family = {int(family): n for family, n in reported.removed_by_family.items()}
    for line in tell(verdict, cleaned.removed, by_family, classified.in_doubt):
        progress.console.print(line)
    progress.console.print(f"clean corpus  {escape(output_uri)}/{artifact.CLEAN_ROWS}")
    progress.console.print(f"report        {escape(output_uri)}/{artifact.PAGE}/{artifact.HTML}")
    return cleaned.removed > 0 or verdict.poison
