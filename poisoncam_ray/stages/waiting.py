"""Says what the cluster lacks while a stage waits for it. Otherwise Ray waits in silence, perhaps for ever.

A driver asks for whole actors, tasks and training workers; the cluster's controller knows which of them have
no place. Nothing is decided here: an autoscaler may still bring the nodes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

import ray
from ray.autoscaler.v2.sdk import get_cluster_status

from poisoncam_ray.config import Config
from poisoncam_ray.progress import Progress

LOOK_EVERY_S = 2.0
PATIENCE_S = 10.0
"""A stage that has done nothing for so long, and has work without a place, is said to wait."""

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Demand:
    """Work that has no place in the cluster yet.

    Attributes:
        each: what one actor, task or worker needs.
        count: how many there are.
        together: all of them are needed at once, as training workers are.
    """

    each: Resources
    count: int = 1
    together: bool = False


@dataclass(frozen=True)
class Node:
    """What one node has, and how much of it is in use."""

    total: Resources
    used: Resources


@contextmanager
def tell_waiting(progress: Progress, config: Config) -> Iterator[None]:
    """While the block runs, tell `progress` what a stage waits for.

    Args:
        progress: of the stages.
        config: whose resources the stages ask for. What others ask of the same cluster is left out.
    """
    if not ray.is_initialized():
        yield
        return
    stop, shapes = Event(), _shapes(config)

    def watch() -> None:
        while not stop.wait(LOOK_EVERY_S):
            lacking, work = "", progress.work
            if work and progress.idle_s >= PATIENCE_S:
                # Only a message depends on this, so it must not fail the work.
                with contextlib.suppress(Exception):
                    demands, nodes = _look()
                    ours = [demand for demand in demands if demand.each in shapes]
                    lacking = lack(ours, nodes, begun=work.here > 0)
            progress.wait_for(lacking)

    thread = Thread(target=watch, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def lack(demands: Sequence[Demand], nodes: Sequence[Node], begun: bool) -> str:
    """What has no place in the cluster, in words.

    Args:
        demands: what has no place.
        nodes: of the cluster.
        begun: something was done before. Then only what the cluster cannot hold at all counts: an actor more
            may wait for its turn while others work.

    Returns:
        'waiting for 8 GPUs, the cluster has 4'; empty where there is nothing to say.
    """
    total = _sum([node.total for node in nodes])
    free = _sum([node.total for node in nodes], [node.used for node in nodes])
    for demand in demands:
        times = demand.count if demand.together else 1
        wanted = {name: n * times for name, n in demand.each.items()}
        if short := {name: n for name, n in wanted.items() if n > total.get(name, 0)}:
            has = " and ".join(_amount(name, total.get(name, 0), short=True) for name in short)
            return f"waiting for {_amounts(short)}, the cluster has {has}"
        for name, n in demand.each.items():
            largest = max((node.total.get(name, 0) for node in nodes), default=0)
            if n > largest:
                return f"waiting for a node with {_amount(name, n)}, the largest has {largest:g}"
        if not begun and (busy := {name: n for name, n in wanted.items() if n > free.get(name, 0)}):
            name, n = next(iter(busy.items()))
            return (
                f"waiting for {_amount(name, n)}, {max(0, free.get(name, 0)):g} of the cluster's "
                f"{total[name]:g} are free"
            )
    return ""


def _shapes(config: Config) -> list[Resources]:
    """What one actor, one task and one training worker ask for."""
    resources = config.resources
    asked = [
        {"CPU": resources.cpus_per_actor, "GPU": resources.gpus_per_actor},
        {"CPU": resources.cpus_per_actor, "GPU": 1.0 if resources.gpus_per_actor > 0 else 0.0},
        {"CPU": resources.cpus_per_actor},
        {"CPU": resources.cpus_per_reader},
    ]
    return [{name: float(n) for name, n in each.items() if n} for each in asked]


def _look() -> tuple[list[Demand], list[Node]]:
    """Ask the cluster's controller what has no place, and what the nodes have."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    waiting = status.resource_demands
    demands = [
        Demand(dict(bundle.bundle), bundle.count, together)
        for kind, together in ((waiting.placement_group_demand, True), (waiting.ray_task_actor_demand, False))
        for demand in kind
        for bundle in demand.bundles_by_count
    ]
    nodes = []
    for node in (*status.active_nodes, *status.idle_nodes):
        usage = node.resource_usage.usage if node.resource_usage else []
        nodes.append(
            Node({of.resource_name: of.total for of in usage}, {of.resource_name: of.used for of in usage})
        )
    return demands, nodes


def _sum(plus: Sequence[Resources], minus: Sequence[Resources] = ()) -> dict[str, float]:
    total: dict[str, float] = {}
    for sign, many in ((1, plus), (-1, minus)):
        for each in many:
            for name, n in each.items():
                total[name] = total.get(name, 0.0) + sign * n
    return total


def _amounts(wanted: Resources) -> str:
    return " and ".join(_amount(name, n) for name, n in wanted.items())


def _amount(name: str, n: float, short: bool = False) -> str:
    return f"{n:g}" if short else f"{n:g} {name}" + ("" if n == 1 else "s")
