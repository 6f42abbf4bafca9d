"""Chunks of work over actors that come and go with the cluster's nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError


@dataclass(frozen=True)
class ActorGroup:
    """Actors of one kind, and what all of them are made of.

    Ray lets go of what it put into the object store for an actor (everything of more than 100 KB) when the
    actor stands, and cannot start it again when its node is lost (ray-project/ray#53727, Ray 2.60): these
    references hold it as long as the group lives.
    """

    actors: list[ActorHandle]
    given: list[ray.ObjectRef]

    @classmethod
    def start(cls, actor: Any, n: int, *arguments: Any) -> ActorGroup:
        """`n` actors `actor.remote(*arguments)`; each argument travels once to every node."""
        given = [ray.put(argument) for argument in arguments]
        return cls([actor.remote(*given) for _ in range(n)], given)


def spread(group: ActorGroup, chunks: list[Any]) -> Iterator[Any]:
    """`actor.work(chunk)` of every chunk, results as they come, one chunk under way in an actor.

    An actor gets work when it stands: neither one that still waits for a node nor one whose node is gone
    holds a chunk back. A lost actor's chunk goes to the next one free. Raises RayActorError when every actor
    has died for good (its `max_restarts`), and what `work` raises.
    """
    left, free = list(reversed(chunks)), list[ActorHandle]()
    starting: dict[ray.ObjectRef, ActorHandle] = {actor.ready.remote(): actor for actor in group.actors}
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
