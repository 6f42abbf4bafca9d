"""Chunks on actors: every chunk once, lost actors replaced, no wait for actors without a node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError

from poisoncam_ray.stages.actors import ActorGroup, run_on
from tests.small import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]


class Worker:
    """Returns the chunk; a negative one kills the process the first time."""

    def __init__(self, met: str) -> None:
        self.met, self.barrier = met, threading.Barrier(2)

    @ray.method(max_task_retries=-1)
    def ready(self) -> None:
        pass

    def meet(self, _: str) -> int:
        """Return how many calls are here, once there are two."""
        return self.barrier.wait(60) >= 0 and self.barrier.parties

    def work(self, chunk: int) -> tuple[int, int]:
        if chunk == 13:
            raise ValueError("unlucky")
        if chunk < 0 and not os.path.exists(f"{self.met}/{chunk}"):
            open(f"{self.met}/{chunk}", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return chunk, os.getpid()


def workers(folder, n: int, restarts: int = 5, **needs) -> ActorGroup:
    actor = ray.remote(Worker).options(num_cpus=0.1, max_restarts=restarts, **needs)
    return ActorGroup.start(actor, n, str(folder))


def test_every_chunk_is_done_once_by_all_of_the_actors(tmp_path):
    group = workers(tmp_path, 2)
    ray.get([actor.ready.remote() for actor in group.actors])
    found = list(run_on(group, list(range(100, 140))))
    assert sorted(chunk for chunk, _ in found) == list(range(100, 140))
    assert len({pid for _, pid in found}) == 2
    assert list(run_on(workers(tmp_path, 1), [])) == []


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_killed_actor_costs_no_chunk_even_the_last(tmp_path, at_once):
    group = workers(tmp_path, 2, max_concurrency=at_once)
    found = [chunk for chunk, _ in run_on(group, [1, -2, 3, 4, -5], at_once=at_once)]
    assert sorted(found) == [-5, -2, 1, 3, 4]


def test_an_actor_has_several_chunks_at_once(tmp_path):
    """The second call begins while the first waits for it."""
    group = workers(tmp_path, 1, max_concurrency=2)
    assert list(run_on(group, ["first", "second"], "meet", at_once=2)) == [2, 2]


def test_an_actor_without_a_place_holds_nothing_back(tmp_path):
    here, nowhere = workers(tmp_path, 1), workers(tmp_path, 1, resources={"nowhere": 1})
    both = ActorGroup(here.actors + nowhere.actors, here.arguments + nowhere.arguments)
    assert sorted(chunk for chunk, _ in run_on(both, list(range(8)))) == list(range(8))


def test_an_actor_with_large_arguments_is_made_again_on_another_node():
    program = [sys.executable, "-m", "tests.stages.moving_actor"]
    done = subprocess.run(
        program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert done.returncode == 0 and "moved" in done.stdout, done.stdout


def test_a_chunk_lost_with_an_actor_that_never_returns_goes_to_an_idle_one(tmp_path):
    found = [chunk for chunk, _ in run_on(workers(tmp_path, 2, restarts=0), [1, -3])]
    assert sorted(found) == [-3, 1]


def test_when_every_actor_is_gone_for_good_it_raises(tmp_path):
    with pytest.raises(RayActorError):
        list(run_on(workers(tmp_path, 1, restarts=0), [-1, -2]))


def test_what_work_raises_reaches_the_caller(tmp_path):
    with pytest.raises(RayTaskError, match="unlucky"):
        list(run_on(workers(tmp_path, 1), [13]))
