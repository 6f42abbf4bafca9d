"""Runs a list of stages over a run folder: all checks, then Ray, then the work. The command line and the
Python interface both start here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from poisoncam_ray import runner
from poisoncam_ray.config import Config
from poisoncam_ray.errors import StageFailedError
from poisoncam_ray.progress import Progress
from poisoncam_ray.stage import Stage
from poisoncam_ray.stages import ray_cluster
from poisoncam_ray.stages.waiting import tell_waiting


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
