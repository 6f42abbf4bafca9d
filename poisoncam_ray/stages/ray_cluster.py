"""Ray as the stages use it: started or joined, quiet, and the results of plain tasks as they come.

Torch is not imported here: reading and decoding tasks run in many processes, and it would cost each of them
seconds.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data

from poisoncam_ray.config import Resources

# With too few logical CPUs, reading tasks, training workers and actor pools wait for each other for ever.
LOCAL_CPUS = 8
NO_PROGRESS_S = 900
START_TRIES = 3
# Of one task or actor: preempted nodes come and go, but one that dies every time must fail the job.
RESTARTS = 20
_QUIET: dict[str, Any] = {
    "enable_progress_bars": False,
    "print_on_execution_start": False,
    "execution_no_progress_timeout_s": NO_PROGRESS_S,
    # Without it the error of a failed task, which may be a UserError, does not reach the driver.
    "raise_original_map_exception": True,
}
"""Options of Ray Data."""
_LOGGERS = ("ray.data", "ray.train", "ray.util")


def start_ray() -> None:
    """Use the Ray of this process; else join the cluster of RAY_ADDRESS (set inside `ray job submit`), or
    start one on this machine. Ray Data prints nothing from then on."""
    connect()
    hush()
    _swallow_a_false_warning()


def connect() -> None:
    """Like `start_ray`, without changing Ray Data's options."""
    if not ray.is_initialized():
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if not os.environ.get("RAY_ADDRESS"):
            # "local": a cluster that happens to run here is joined only when RAY_ADDRESS says so.
            cpus = max(LOCAL_CPUS, os.cpu_count() or 1)
            options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        _init(options)


@contextmanager
def as_before() -> Iterator[None]:
    """Leave Ray after the block as it was before: one that was started inside it is shut down, and one that
    this process had keeps running with its own options."""
    had_ray, context = ray.is_initialized(), ray.data.DataContext.get_current()
    options = {name: getattr(context, name) for name in _QUIET}
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    main = threading.current_thread() is threading.main_thread()
    on_terminate = signal.getsignal(signal.SIGTERM) if main else None
    try:
        yield
    finally:
        if not had_ray:
            ray.shutdown()
        for name, value in options.items():
            setattr(context, name, value)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if on_terminate is not None:
            # Ray's start has put a handler of its own there.
            signal.signal(signal.SIGTERM, on_terminate)


def _init(options: dict[str, Any]) -> None:
    """`ray.init`, tried again: Ray gives its own processes a fixed 30 s to start, which a busy machine can
    exceed."""
    for left in reversed(range(START_TRIES)):
        try:
            ray.init(**options)
            return
        except Exception as error:
            ray.shutdown()
            if left == 0 or "timed out during startup" not in str(error):
                raise


def hush() -> None:
    """Set Ray Data's options in this process: no progress bars, and a stuck pipeline raises an error."""
    context = ray.data.DataContext.get_current()
    for name, value in _QUIET.items():
        setattr(context, name, value)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


@functools.cache
def _swallow_a_false_warning() -> None:
    """Let Ray print a warning that it prints once a process, and that does not concern us, where nobody sees
    it. Its log level would also hide real errors.

    It warns that an actor with arguments in the object store cannot be started again when these are lost
    (ray-project/ray#53727). Ray Data's pools and `ActorGroup` hold their actors' arguments. The warning is
    written by C++ to the file descriptor while an actor is created, so that actor is one that does nothing.
    """
    actor: Any = ray.remote(num_cpus=0, max_restarts=1)(_Nothing)
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            made = actor.remote(ray.put(None))
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
    ray.kill(made)


class _Nothing:
    """The actor that does nothing."""

    def __init__(self, argument: None) -> None:
        """Take an argument from the object store."""


def actors_at_most(resources: Resources, workers: int = 1) -> int:
    """How many actors a stage may have: as many as are configured; or else as many as find place in the
    cluster, and no fewer than there are training workers. These are what an autoscaler is known to bring: Ray
    does not tell its limit, and it may have taken every node away while only the head was at work.

    Args:
        resources: the configured resources.
        workers: the number of training workers.
    """
    if resources.actors is not None:
        return resources.actors
    has = ray.cluster_resources()
    each = {"CPU": resources.cpus_per_actor, "GPU": resources.gpus_per_actor}
    places = (has.get(name, 0) // n for name, n in each.items() if n)
    return max(resources.min_actors, workers, int(min(places)))


def in_flight(calls: Iterator[Callable[[], ray.ObjectRef]], most: int) -> Iterator[Any]:
    """Submit plain tasks, a bounded number at a time.

    Args:
        calls: each submits one task.
        most: how many tasks run or wait in the cluster at once.

    Yields:
        The result of every task, in the order in which they end.
    """
    waiting: list[ray.ObjectRef] = []
    for call in calls:
        if len(waiting) >= most:
            ready, waiting = ray.wait(waiting)
            yield from ray.get(ready)
        waiting.append(call())
    while waiting:
        ready, waiting = ray.wait(waiting)
        yield from ray.get(ready)


def in_order(calls: Iterator[Callable[[], ray.ObjectRef]], most: Callable[[], int]) -> Iterator[Any]:
    """Submit plain tasks ahead of the use of their results.

    Args:
        calls: each submits one task.
        most: how many tasks run, or have a result that nobody has taken, at once. Asked before each result.

    Yields:
        The result of every task, in the order of the calls. A result that is lost with its node before it is
        taken is made again.
    """
    due: deque[ray.ObjectRef] = deque()
    for call in calls:
        due.append(call())
        while len(due) >= most():
            yield ray.get(due.popleft())
    while due:
        yield ray.get(due.popleft())
