"""The defence as a function call. The package loads this file, and with it Ray and torch, when it is used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from poisoncam_ray.config import Config
from poisoncam_ray.defence import applied_stages, stages
from poisoncam_ray.errors import StageFailedError, UserError, origin
from poisoncam_ray.launch import earlier_run, launch
from poisoncam_ray.progress import Progress
from poisoncam_ray.results import Place, Results, open_run
from poisoncam_ray.settings import load_config
from poisoncam_ray.stage import Stage
from poisoncam_ray.stages.ray_cluster import as_before


def defend(
    input: Place,
    output: Place,
    *,
    preset: str | None = None,
    config: Place | None = None,
    overrides: Sequence[str] = (),
    redo: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Results:
    """Remove the poison from a corpus, and return what was found.

    It is `poisoncam defend` as a call. After an interruption, make the same call again: finished work is
    reused, and the result is the same. A finished run returns at once, without Ray.

    The Ray of this process is used, if there is one; else the cluster of RAY_ADDRESS; else Ray is started on
    this machine, and shut down before the call returns. The call may come from a notebook and from any
    thread. It sets no signal handler: Ctrl-C raises KeyboardInterrupt.

    Args:
        input: the corpus: a folder of Parquet shards, WebDataset tars or images, local or s3://.
        output: the run folder, local or s3://: empty, or one to resume.
        preset: the name of a configuration, such as "tiny-cnn"; None: the defaults.
        config: a YAML file of settings.
        overrides: settings as on the command line: ["search.masks=64", "seed=1"].
        redo: the title of a stage to do again, with all after it, such as "verdict".
        progress: whether to print how far the stages are.
        **settings: settings by section: `seed=1, search={"masks": 64}`. The later of preset, config,
            settings and overrides wins.

    Returns:
        The finished run.

    Raises:
        UserError: a setting, the corpus or the folder cannot be used. The sentence says what to change.
        StageFailedError: a stage failed; its cause says why. The same call resumes.

    Examples:
        >>> import poisoncam_ray as pc
        >>> run = pc.defend("photos/", "out/", preset="tiny-cnn", seed=1)
        Index ...
        >>> run.counts.kept + run.counts.removed + run.counts.dead == run.counts.rows
        True
        >>> pc.defend("photos/", "out/", preset="tiny-cnn", seed=2, progress=False)
        Traceback (most recent call last):
        ...
        poisoncam_ray.errors.UserError: ...seed: 1 then, 2 now.
    """
    chosen = load_config(preset, None if config is None else os.fspath(config), overrides, settings)
    return run_stages(input, output, chosen, stages(), redo, progress)


def apply(
    run: Results | Place,
    input: Place,
    output: Place,
    *,
    overrides: Sequence[str] = (),
    progress: bool = True,
    **settings: Any,
) -> Results:
    """Remove the known triggers of an earlier run from other images: new shards, or repaired ones.

    The classifiers and thresholds of the earlier run judge the images. A new trigger is not looked for.
    Nothing is trained. Ray is used as `defend` uses it.

    Args:
        run: the earlier run, or its folder.
        input: the new images, in any format that `defend` reads.
        output: the new run folder: empty, or one to resume.
        overrides: settings of the sections corpus, clean and resources: ["corpus.image_column=jpg"].
        progress: whether to print how far the stages are.
        **settings: the same by section: `resources={"actors": 4}`.

    Returns:
        The finished run.

    Raises:
        UserError: the earlier run has no trigger to look for, or changed since `output` was begun; or a
            setting or the input cannot be used.
        StageFailedError: a stage failed; its cause says why. The same call resumes.

    Examples:
        >>> new = pc.apply(run, "new/", "new-out/", progress=False)
        >>> new.verdict.applied_from
        '.../out'
        >>> print(new)
        Known triggers only, of ...
    """
    place = run.uri if isinstance(run, Results) else os.fspath(run)
    source, config = earlier_run(place, os.fspath(output), overrides, settings)
    return run_stages(input, output, config, applied_stages(source), None, progress)


def run_stages(
    input: Place, output: Place, config: Config, stages: Sequence[Stage], redo: str | None, progress: bool
) -> Results:
    """Run stages, and leave Ray as it was before.

    Raises:
        UserError: a mistake of the user's, wherever it was found.
        StageFailedError: a stage failed.
    """
    if not os.fspath(input) or not os.fspath(output):
        raise UserError("The input or the output is empty: give the place of the corpus and a run folder.")
    said = Progress(None if progress else Console(quiet=True))
    try:
        with as_before():
            launch(os.fspath(input), os.fspath(output), config, stages, said, redo)
    except StageFailedError as error:
        found = origin(error.__cause__ or error)
        if isinstance(found, UserError):
            raise found from None
        raise
    return open_run(output)
