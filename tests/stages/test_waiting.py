"""What the cluster lacks is said; what only waits for its turn is not."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray
from ray.util import placement_group, remove_placement_group
from rich.console import Console

from poisoncam_ray.progress import Progress
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages import waiting
from poisoncam_ray.stages.waiting import Demand, Node, lack, tell_waiting

GPU_NODE = Node({"CPU": 8, "GPU": 4}, {"CPU": 2, "GPU": 1})
CPU_NODE = Node({"CPU": 16}, {})
WORKER = {"CPU": 1, "GPU": 1}


@pytest.mark.parametrize(
    ("demand", "begun", "said"),
    [
        # Training workers are needed together.
        (Demand(WORKER, 8, together=True), True, "waiting for 8 GPUs, the cluster has 4"),
        (Demand(WORKER, 4, together=True), False, "waiting for 4 GPUs, 3 of the cluster's 4 are free"),
        (Demand(WORKER, 4, together=True), True, ""),
        # Of actors one is enough to begin.
        (Demand(WORKER, 8), True, ""),
        (Demand({"CPU": 1, "GPU": 8}), True, "waiting for 8 GPUs, the cluster has 4"),
        (Demand({"CPU": 30, "GPU": 8}), True, "waiting for 30 CPUs and 8 GPUs, the cluster has 24 and 4"),
        (Demand({"CPU": 20}), True, "waiting for a node with 20 CPUs, the largest has 16"),
        (Demand({"CPU": 8}), False, ""),
        (Demand({"TPU": 1}), True, "waiting for 1 TPU, the cluster has 0"),
    ],
)
def test_what_is_lacking_is_said_in_words(demand, begun, said):
    assert lack([demand], [GPU_NODE, CPU_NODE], begun) == said


def test_a_busy_cluster_is_said_only_before_anything_is_done():
    full = Node({"CPU": 4}, {"CPU": 3.5})
    for begun, said in ((False, "waiting for 1 CPU, 0.5 of the cluster's 4 are free"), (True, "")):
        assert lack([Demand({"CPU": 1}, 9)], [full], begun) == said
    assert lack([], [full], begun=False) == ""
    assert lack([Demand({"CPU": 1})], [], begun=False) == "waiting for 1 CPU, the cluster has 0"


def test_the_readers_of_a_training_are_among_what_is_waited_for():
    """They are plain tasks: where the ranks hold all CPUs, this is said instead of nothing."""
    config = load_config(overrides=["resources.cpus_per_reader=0.5"])
    reader = Demand({"CPU": 0.5}, 2)
    assert reader.each in waiting._shapes(config)
    full = Node({"CPU": 4}, {"CPU": 4})
    assert lack([reader], [full], begun=False) == "waiting for 0.5 CPUs, 0 of the cluster's 4 are free"


@contextmanager
def a_task() -> Iterator[None]:
    """A task that has no place."""

    @ray.remote(num_gpus=1)
    def on_a_gpu() -> None:
        pass

    due = on_a_gpu.remote()
    yield
    ray.cancel(due)


@contextmanager
def training_workers() -> Iterator[None]:
    """Eight workers as Ray Train asks for them, which have no place."""
    workers = placement_group([{"CPU": 1, "GPU": 1}] * 8)
    yield
    remove_placement_group(workers)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (a_task, "waiting for 1 GPU, the cluster has 0"),
        (training_workers, "waiting for 8 GPUs, the cluster has 0"),
    ],
)
def test_work_that_has_no_place_is_said_until_it_is_gone(ray_cluster, monkeypatch, asked, said):
    monkeypatch.setattr(waiting, "LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(waiting, "PATIENCE_S", 0.4)
    config = load_config(None, None, ["resources.gpus_per_actor=1"])
    file = io.StringIO()
    progress = Progress(Console(file=file, soft_wrap=True))

    def until(state: bool) -> None:
        deadline = time.monotonic() + 60
        while bool(progress.work.waiting) != state:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    with tell_waiting(progress, config), progress.stage("Classify"):
        progress.update(0, 3, "models")
        with asked():
            until(True)
            assert progress.work.waiting == said
        until(False)
    lines = re.sub(r" \d\d:\d\d:\d\d ", " ", file.getvalue()).splitlines()
    assert lines[:2] == ["Classify  …", f"Classify  0 of 3 models, {said}"]


def test_what_others_ask_of_the_cluster_is_left_out(ray_cluster, monkeypatch):
    monkeypatch.setattr(waiting, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(waiting, "PATIENCE_S", 0.1)
    looked = []
    look = waiting._look
    monkeypatch.setattr(waiting, "_look", lambda: looked.append(look()) or looked[-1])
    progress = Progress(Console(quiet=True))

    @ray.remote(num_gpus=3)
    def of_another_job() -> None:
        pass

    due = of_another_job.remote()
    with tell_waiting(progress, load_config()), progress.stage("Embed"):
        while not any(demand.each.get("GPU") == 3 for demands, _ in looked for demand in demands):
            time.sleep(0.05)
        seen = len(looked)
        while len(looked) < seen + 3:
            time.sleep(0.05)
        assert progress.work.waiting == ""
    ray.cancel(due)


def test_a_false_warning_of_rays_is_not_printed_and_real_output_is(ray_cluster):
    """In a process of its own: Ray prints it once a process."""
    script = (
        "import os, sys, ray\n"
        "from poisoncam_ray.stages.ray_cluster import start_ray\n"
        "start_ray()\n"
        "class A:\n"
        "    def __init__(self, x): pass\n"
        "    def ready(self): pass\n"
        "a = ray.remote(num_cpus=0, max_restarts=1)(A).remote(ray.put(None))\n"
        "ray.get(a.ready.remote())\n"
        "os.write(2, b'real\\n')\n"
    )
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stderr == "real\n"
