"""Runs a list of stages over a run folder: all checks, then Ray, then the work. The command line and the
Python interface both start here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from poisoncam_ray import artifact, runner
from poisoncam_ray.artifact import Verdict
from poisoncam_ray.config import Config
from poisoncam_ray.errors import StageFailedError, UserError
from poisoncam_ray.folder import Folder, Manifest, absolute
from poisoncam_ray.progress import Progress
from poisoncam_ray.settings import load_config
from poisoncam_ray.stage import Stage
from poisoncam_ray.stages import ray_cluster
from poisoncam_ray.stages.waiting import tell_waiting

OWN_SECTIONS = ("corpus", "clean", "resources")
"""Sections of the configuration that may differ from the earlier run's when its classifiers are applied."""


def earlier_run(
    source_uri: str, output_uri: str, overrides: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> tuple[Folder, Config]:
    """Check that the classifiers of an earlier run can judge other images, and take over its configuration.

    Args:
        source_uri: the run folder of the earlier run.
        output_uri: the run folder of the new one.
        overrides: `section.key=value` each, of the OWN_SECTIONS only.
        settings: sections of the OWN_SECTIONS, each with its keys and values.

    Returns:
        The earlier run, and the configuration of the new one.

    Raises:
        UserError: the earlier run is not finished or has nothing to look for, or a setting is the earlier
            run's.
    """
    source = Folder(absolute(source_uri))
    config = runner.config_of(source)
    if absolute(output_uri) == source.uri:
        raise UserError(f"The output {output_uri} is the earlier run: give another folder.")
    if Manifest.read(source / artifact.CLASSIFIER) is None:
        raise UserError(
            f"The earlier run {source_uri} is not finished: let its defence run to its end first."
        )
    if not Verdict.read(source / artifact.VERDICT).poison:
        raise UserError(
            f"The earlier run {source_uri} found no evidence of poison, so there is no trigger to look for: "
            "run a defence of the new images."
        )
    figures = (source / artifact.CLASSIFIER).read_json(artifact.VALIDATION)["families"].values()
    if not any(family["erased"] for family in figures):
        raise UserError(
            f"All classifiers of the earlier run {source_uri} are in doubt, so they remove nothing: run a "
            "defence of the new images."
        )
    given = [override.partition("=")[0].partition(".")[0] for override in overrides] + list(settings or {})
    if other := [name for name in given if name not in OWN_SECTIONS]:
        raise UserError(
            f"The settings of {other[0]} are those of the earlier run: only {', '.join(OWN_SECTIONS)} may be "
            "set."
        )
    tree = config.model_dump(mode="json")
    # A sample of the earlier corpus is none of the new one, and neither is a table's version.
    tree["corpus"] |= {"limit": None, "version": None}
    tree["clean"] = {}
    for section, values in (settings or {}).items():
        tree[section] |= dict(values)
    made = load_config(None, None, overrides, tree)
    if made.corpus.shrink_to != config.corpus.shrink_to:
        raise UserError(
            f"corpus.shrink_to is that of the earlier run, {json.dumps(config.corpus.shrink_to)}, whose "
            "classifiers know images by it: leave it out."
        )
    return source, made


def launch(
    input_uri: str,
    output_uri: str,
    config: Config,
    stages: Sequence[Stage],
    progress: Progress,
    redo: str | None = None,
    ray_started: Callable[[], None] = lambda: None,
) -> list[runner.Done]:
    """Check everything, start or join Ray if there is work, and commit every stage.

    Args:
        input_uri: the corpus.
        output_uri: the run folder: empty, or one to resume.
        config: the configuration.
        stages: the stages, in order (poisoncam_ray.defence).
        progress: where it is said how far the stages are.
        redo: the title of a stage to do again, with all after it.
        ray_started: is called after Ray has started, which puts signal handlers of its own in the place of
            others.

    Returns:
        All stages, in order; those that were done before are `reused`.

    Raises:
        UserError: the settings, the corpus or the folder cannot be used. Nothing was started.
        StageFailedError: a stage failed. Its cause says why; what was finished is kept.
    """
    work = runner.Runner(input_uri, output_uri, config, stages, redo)
    if work.pending():
        ray_cluster.start_ray()
        ray_started()
    try:
        with tell_waiting(progress, config):
            return work.run(progress)
    except Exception as error:
        raise StageFailedError(f"{progress.title or 'Start'} failed") from error
