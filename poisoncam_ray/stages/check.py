"""Open every shard of a corpus on the cluster before any work, and name together those that cannot be
used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import ray

from poisoncam_ray.corpus import Corpus, Problem, Source
from poisoncam_ray.corpus.protocol import OTHER_SCHEMA
from poisoncam_ray.corpus.shardfile import one_line
from poisoncam_ray.errors import UserError
from poisoncam_ray.stage import Run
from poisoncam_ray.stages.ray_cluster import RESTARTS, in_flight
from poisoncam_ray.store import in_parallel

BATCH = 64
"""Shards of one task, which opens several at once."""
BATCHES_WAITING = 64
"""Tasks in flight, where the configuration sets no number of readers."""
SHARDS_SHOWN = 20


def find_problems(run: Run, sources: Sequence[Source]) -> list[Problem]:
    """Open every shard, in Ray tasks over batches of shards.

    Args:
        run: the run, whose corpus is checked.
        sources: all files of the corpus, as listed.

    Returns:
        The shards of which no row can be read, sorted by path.

    Raises:
        UserError: a shard is gone or changed since it was listed.
        OSError: the store does not answer. That says nothing about the shards.
    """
    if not run.corpus.sharded:
        # Each file is one row, which Index reads in any case.
        return []
    resources = run.config.resources
    batches = [list(sources[first : first + BATCH]) for first in range(0, len(sources), BATCH)]
    task = ray.remote(check_batch).options(num_cpus=resources.cpus_per_reader, max_retries=RESTARTS)
    calls = (partial(task.remote, run.corpus, batch) for batch in batches)
    problems: list[Problem] = []
    run.progress.update(0, len(sources), "files opened")
    for done, found in enumerate(in_flight(calls, resources.readers or BATCHES_WAITING), start=1):
        problems += found
        run.progress.update(min(done * BATCH, len(sources)), len(sources), "files opened")
    return sorted(problems, key=lambda problem: problem.source)


def check_batch(corpus: Corpus, sources: list[Source]) -> list[Problem]:
    """The problems among these shards."""
    return [problem for problem in in_parallel(corpus.check, sources) if problem]


def refuse_problems(uri: str, problems: Sequence[Problem], n_files: int) -> None:
    """Raise UserError that names the first `SHARDS_SHOWN` shards with their reasons, if there are any.

    Args:
        uri: the corpus.
        problems: the shards that cannot be used, sorted by path.
        n_files: how many files the corpus has: shards, and what lies beside them.
    """
    if not problems:
        return
    named = "; ".join(f"{one_line(problem.source)}: {problem.reason}" for problem in problems[:SHARDS_SHOWN])
    more = len(problems) - SHARDS_SHOWN
    column = ", set corpus.image_column" if any(p.kind == OTHER_SCHEMA for p in problems) else ""
    raise UserError(
        f"{len(problems):,} of the {n_files:,} files of {uri} cannot be used: {named}"
        + (f"; and {more:,} more" if more > 0 else "")
        + f". Repair them{column}, or set corpus.skip_unreadable=true to go on without them: their rows then "
        "count as dead."
    )
