"""Chunks of work on a group of actors, whose nodes may join and leave the cluster meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError


@dataclass(frozen=True)
class ActorGroup:
    """Actors of one class, and the arguments of their constructor.

    Ray puts arguments of more than 100 KB into its object store and releases them once the actor is up. An
    actor whose node is lost can then not be started again (ray-project/ray#53727, Ray 2.60). The references
    held here keep the arguments for as long as the group exists.

    Attributes:
        actors: the actors. Their class has the method `ready()`.
        arguments: references to the constructor's arguments.
    """

    actors: list[ActorHandle]
    arguments: list[ray.ObjectRef]

    @classmethod
    def start(cls, actor: Any, n: int, *arguments: Any) -> ActorGroup:
        """Start a group.

        Args:
            actor: the remote class, with its options.
            n: the number of actors.
            arguments: of the constructor. Each is sent once to every node.
        """
        references = [ray.put(argument) for argument in arguments]
        return cls([actor.remote(*references) for _ in range(n)], references)


def run_on(group: ActorGroup, chunks: list[Any], method: str = "work", at_once: int = 1) -> Iterator[Any]:
    """Call a method with every chunk.

    An actor gets its first chunk when it is up: an actor that waits for a node, or whose node is gone, holds
    no chunk. The chunk of a lost actor goes to the next free actor.

    Args:
        group: the actors.
        chunks: the arguments of the method.
        method: its name.
        at_once: chunks that an actor has at a time.

    Yields:
        What the method returns, in the order in which the calls end.

    Raises:
        RayActorError: every actor has died more often than its `max_restarts` allows.
        RayTaskError: the method raised an exception.
    """
    left, free = list(reversed(chunks)), list[ActorHandle]()
    # An actor stands in these once for each chunk that it can take.
    places = group.actors * at_once
    starting: dict[ray.ObjectRef, ActorHandle] = {actor.ready.remote(): actor for actor in places}
    busy: dict[ray.ObjectRef, tuple[ActorHandle, Any]] = {}
    while left or busy:
        while left and free:
            actor, chunk = free.pop(), left.pop()
            busy[getattr(actor, method).remote(chunk)] = (actor, chunk)
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
