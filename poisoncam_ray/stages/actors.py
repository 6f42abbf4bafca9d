"""Chunks of work over actors that come and go with the cluster's nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError


def spread(actors: list[ActorHandle], chunks: list[Any]) -> Iterator[Any]:
    """`actor.work(chunk)` of every chunk, results as they come, one chunk under way in an actor.

    An actor gets work when it stands: neither one that still waits for a node nor one whose node is gone
    holds a chunk back. A lost actor's chunk goes to the next one free. Raises RayActorError when every actor
    has died for good (its `max_restarts`), and what `work` raises.
    """
    left, free = list(reversed(chunks)), list[ActorHandle]()
    starting: dict[ray.ObjectRef, ActorHandle] = {actor.ready.remote(): actor for actor in actors}
    busy: dict[ray.ObjectRef, tuple[ActorHandle, Any]] = {}
    while left or busy:
        while left and free:
            actor, chunk = free.pop(), left.pop()
            busy[actor.work.remote(chunk)] = (actor, chunk)
        ref = ray.wait([*starting, *busy], num_returns=1)[0][0]
        if ref in starting:
            actor = starting.pop(ref)
            try:
                ray.get(ref)
            except ActorDiedError:
                if not (starting or busy or free):
                    raise
                continue
        else:
            actor, chunk = busy.pop(ref)
            try:
                yield ray.get(ref)
            except RayActorError:
                left.append(chunk)
                starting[actor.ready.remote()] = actor
                continue
        free.append(actor)
