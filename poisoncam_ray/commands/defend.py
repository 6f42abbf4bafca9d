"""The command `defend`: remove the poison from a corpus."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poisoncam_ray.commands.options import AsJson, ConfigFile, Output, Preset, Quiet
from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.program import RESUMES, examples
from poisoncam_ray.settings import load_config
from poisoncam_ray.signals import end_on_signals

if TYPE_CHECKING:
    from poisoncam_ray.folder import Folder
    from poisoncam_ray.runner import Done

FOUND_POISON = 3
Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[INPUT] [section.key=value]…",
        help="folder of Parquet shards, WebDataset tars or images, local or s3://; settings that win over "
        "preset and file",
    ),
]
InputUri = Annotated[str | None, typer.Option("--input", help="the same as the argument INPUT")]
OutputUri = Annotated[
    str | None, typer.Option("--output", "-o", help="the run folder: empty, or one to resume")
]


@examples(
    "poisoncam defend   # the demo: draws a corpus, poisons it, defends it",
    "poisoncam defend photos/ --output defended/",
    "poisoncam defend s3://bucket/shards --output s3://bucket/defended --preset imagenet100",
    "poisoncam defend photos/ --output defended/ --json pretrain.epochs=10 search.masks=64",
    "poisoncam defend photos/ --output defended/ --redo verdict",
    "poisoncam defend photos/ --output audit/ --no-copy   # the corpus stays where it is",
    "poisoncam defend s3://bucket/shards --output look/ --limit 20000   # a sample",
)
def defend(
    arguments: Arguments = None,
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
    no_copy: Annotated[
        bool,
        typer.Option("--no-copy", help="write no clean/ but keep/, the list of the kept rows, and removed/"),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(help="look at a sample of so many rows; nothing is copied")
    ] = None,
    follow_links: Annotated[
        bool,
        typer.Option(
            "--follow-links", help="read what links in the input lead to, as in Hugging Face's cache"
        ),
    ] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="end with code 3 when poison was found; without it, 0")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Remove the poison from a corpus. Without an input, run the demo on a corpus that is drawn and
    poisoned."""
    input, settings = split_arguments(arguments or (), input)
    if "" in (input, output, encoder):
        raise UserError("--input, --output or --encoder is empty: give a place, or leave it out.")
    if max_dead_fraction is not None:
        settings.append(f"corpus.max_dead_fraction={max_dead_fraction}")
    if no_copy:
        settings.append("clean.copy_corpus=false")
    if follow_links:
        settings.append("corpus.follow_links=true")
    if limit is not None:
        settings.append(f"corpus.limit={limit}")
    if encoder is not None:
        settings.append(f"encoder.checkpoint={encoder}")
    said = Output(as_json, quiet)
    if input is None:
        chosen = load_config(preset or "demo", config, settings)
        from poisoncam_ray.folder import Folder
        from poisoncam_ray.research.demo.run import measure_demo, prepare_demo

        folder = Folder(output or "runs/demo")
        prepare_demo(folder, chosen.seed, said.console)
        found = run_defence((folder / "poisoned" / "corpus").uri, (folder / "run").uri, chosen, redo, said)
        metrics, lines = measure_demo(folder)
        said.result(found.data | {"measured": metrics}, [*found.lines, *lines])
    else:
        if output is None:
            raise UserError("Give --output, the folder for the cleaned corpus and all that is found.")
        found = run_defence(input, output, load_config(preset, config, settings), redo, said)
        said.result(found.data, found.lines)
    if found.data["poison"] and exit_code:
        raise typer.Exit(FOUND_POISON)


@dataclass(frozen=True)
class Answer:
    """What a finished defence tells: the same as JSON values and as lines for people."""

    data: dict[str, Any]
    lines: list[str]


def split_arguments(arguments: Sequence[str], input_uri: str | None) -> tuple[str | None, list[str]]:
    """Tell the input from the settings among the arguments.

    Args:
        arguments: as given. One with '=' before any '/' is a setting.
        input_uri: of --input.

    Returns:
        The input, if one was given, and the settings.

    Raises:
        UserError: more than one input is given.
    """
    settings = [argument for argument in arguments if "=" in argument.partition("/")[0]]
    inputs = [argument for argument in arguments if argument not in settings]
    given = inputs if input_uri is None else [input_uri, *inputs]
    if len(given) > 1:
        raise UserError(
            f"Give one input, not {' and '.join(map(repr, given))}; settings are written section.key=value."
        )
    return (given[0] if given else None), settings


def run_defence(
    input_uri: str, output_uri: str, config: Config, redo: str | None = None, said: Output | None = None
) -> Answer:
    """Check everything, start Ray, run the stages.

    Args:
        input_uri: the corpus.
        output_uri: the run folder.
        config: the configuration.
        redo: the title of a stage to do again, with all after it.
        said: where progress is shown.

    Returns:
        The counts, the verdict and the places of what was written.
    """
    # Ray and torch take seconds to load: a mistake in the command must show before.
    from poisoncam_ray.defence import stages
    from poisoncam_ray.folder import Folder
    from poisoncam_ray.launch import launch

    began = time.monotonic()
    progress = (said or Output()).progress
    try:
        done = launch(input_uri, output_uri, config, stages(), progress, redo, end_on_signals)
    except SystemExit:
        progress.console.print(f"Stopped. {RESUMES}")
        raise
    if all(stage.reused for stage in done):
        progress.console.print(
            "Nothing to do: every stage was done before with these settings and this input."
        )
    return answer(Folder(output_uri), output_uri, done, time.monotonic() - began)


def answer(folder: Folder, output_uri: str, done: Sequence[Done], seconds: float) -> Answer:
    """What a finished defence tells.

    Args:
        folder: the run folder.
        output_uri: the run folder as the user wrote it.
        done: the stages, from the runner.
        seconds: how long this command took.
    """
    from poisoncam_ray import artifact, facts
    from poisoncam_ray.report.words import tell
    from poisoncam_ray.review import told

    manifests = {stage.stage: stage.manifest for stage in done}
    verdict = artifact.Verdict.read(folder / artifact.VERDICT)
    cleaned = facts.of_manifest(facts.Cleaned, manifests[artifact.CLEAN])
    classified = facts.of_manifest(facts.Classified, manifests[artifact.CLASSIFIER])
    reported = facts.of_manifest(facts.Reported, manifests[artifact.REPORT])
    indexed = facts.of_manifest(facts.Indexed, manifests[artifact.INDEX])
    kept_in, kept_is = (
        (artifact.CLEAN_ROWS, "clean corpus") if cleaned.copied else (artifact.KEEP_LIST, "kept rows   ")
    )
    by_family = {int(family): n for family, n in reported.removed_by_family.items()}
    place = output_uri.rstrip("/") or output_uri
    places = {
        kept_in: f"{place}/{kept_in}",
        "removed": f"{place}/{artifact.REMOVED_ROWS}",
        "report": f"{place}/{artifact.PAGE}/{artifact.HTML}",
    }
    families = [
        {
            "family": family.family,
            "removed": by_family.get(family.family, 0),
            "in_doubt": family.family in classified.in_doubt,
            "best_score": family.best_score,
            "p_value": family.p_value,
        }
        for family in verdict.families
    ]
    data = {
        "verdict": verdict.verdict,
        "poison": cleaned.removed > 0 or verdict.poison,
        "p_value": verdict.p_value,
        "rows": cleaned.rows,
        "kept": cleaned.kept,
        "removed": cleaned.removed,
        "dead": cleaned.dead,
        "no_image": cleaned.no_image,
        "restored": cleaned.restored,
        "sample_of": indexed.corpus_rows,
        "families": families,
        "seconds": round(seconds, 1),
        "run": output_uri,
        "places": places,
    }
    lines = [
        f"{cleaned.rows:,} rows = {cleaned.terms} ({seconds:.0f} s)",
        *([f"This is {indexed.told_sample}."] if indexed.sample else []),
        *tell(verdict, cleaned.removed, by_family, classified.in_doubt),
        *([f"A review kept flagged images ({told(cleaned.restored)})."] if cleaned.restored else []),
        f"{kept_is}  {places[kept_in]}",
        f"report        {places['report']}",
    ]
    return Answer(data, lines)
