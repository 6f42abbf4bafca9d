"""Ray as the stages use it: started or joined, quiet, and the results of plain tasks as they come.

Torch is not imported here: reading and decoding tasks run in many processes, and it would cost each of them
seconds.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import ray
import ray.data

# With too few logical CPUs, reading tasks, training workers and actor pools wait for each other for ever.
LOCAL_CPUS = 8
NO_PROGRESS_S = 900
START_TRIES = 3
# Of one task or actor: preempted nodes come and go, but one that dies every time must fail the job.
RESTARTS = 20


def start_ray() -> None:
    """Join the cluster of RAY_ADDRESS (set inside `ray job submit`), or start one on this machine."""
    if not ray.is_initialized():
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if not os.environ.get("RAY_ADDRESS"):
            # "local": a cluster that happens to run here is joined only when RAY_ADDRESS says so.
            cpus = max(LOCAL_CPUS, os.cpu_count() or 1)
            options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        _init(options)
    hush()


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
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    # Without it the error of a failed task, which may be a UserError, does not reach the driver.
    context.raise_original_map_exception = True
    for name in ("ray.data", "ray.train", "ray.util"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


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
