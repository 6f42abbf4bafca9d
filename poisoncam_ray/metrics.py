"""Counters and gauges on Ray's own Prometheus endpoint, as `ray_poisoncam_…`.

    counters  rows{stage}   dead{stage, kind}   removed   retries      (Prometheus adds `_total`)
    gauge     stage_seconds{stage}

A process without Ray counts nothing, and importing this module does not import Ray. Workers report every ten
seconds and when they end. A killed worker loses what it counted since, and work that is done twice after a
failure counts twice. The ledger is exact; these metrics are for dashboards.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import Any

PREFIX = "poisoncam_"


def count(name: str, n: int = 1, **tags: str) -> None:
    """Add `n` to a counter, or nothing when `n` is not positive. Never raises. Each name has one set of
    tags."""
    _record("Counter", "inc", name, n, tags)


def gauge(name: str, value: float, **tags: str) -> None:
    """Set a gauge. Never raises. Ray shows it for about twenty seconds after it was set, so ask Prometheus
    for its last value over time."""
    _record("Gauge", "set", name, value, tags)


def _record(kind: str, method: str, name: str, value: float, tags: dict[str, str]) -> None:
    ray = sys.modules.get("ray")
    # A metric must never fail the work that it counts. A counter refuses numbers that are not positive.
    with contextlib.suppress(Exception):
        if ray is not None and ray.is_initialized():
            getattr(_metric(kind, name, tuple(tags)), method)(value, tags)


@functools.cache
def _metric(kind: str, name: str, tag_keys: tuple[str, ...]) -> Any:
    from ray.util import metrics

    return getattr(metrics, kind)(PREFIX + name, tag_keys=tag_keys)
