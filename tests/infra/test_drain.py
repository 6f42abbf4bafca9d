"""The workers' preStop, with processes made of files and a `ray` that only writes down what it was told."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from threading import Thread

import pytest

from tests.infra.render import INFRA

NODE = "6416f365a1afdca4"
RAYLET = ("raylet", "--node_manager_port=0", f"--node_id={NODE}")
IDLE = (("ray::IDLE",), ("ray::DashboardAgent",), ("ray::RuntimeEnvAgent",))


class Pod:
    def __init__(self, folder: Path, refuses: bool = False) -> None:
        self.proc, self.told = folder / "proc", folder / "told"
        ray = folder / "bin" / "ray"
        ray.parent.mkdir()
        ray.write_text(f'#!/bin/sh\necho "$@" >> {self.told}\nexit {int(refuses)}\n')
        ray.chmod(0o755)
        self.path = f"{ray.parent}:/usr/bin:/bin"

    def runs(self, *processes: tuple[str, ...]) -> None:
        for number, words in enumerate(processes):
            folder = self.proc / str(number)
            folder.mkdir(parents=True)
            (folder / "cmdline").write_text("\0".join(words) + "\0")

    def drain(self, seconds: int) -> subprocess.CompletedProcess[str]:
        script = (INFRA / "drain.sh").read_text().replace("/proc/", f"{self.proc}/")
        command = ["/bin/sh", "-c", script, "drain.sh", str(seconds)]
        environment = {"PATH": self.path, "RAY_ADDRESS": "head:6379"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_an_idle_node_is_drained_and_leaves_at_once(pod: Pod):
    pod.runs(RAYLET, *IDLE)
    # Longer than drain() waits: to sit it out would be seen.
    assert pod.drain(600).returncode == 0
    (told,) = pod.told.read_text().splitlines()
    assert told.startswith(f"drain-node --address head:6379 --node-id {NODE} ")
    assert "--deadline-remaining-seconds 600" in told


def test_a_busy_node_waits_for_its_work(pod: Pod):
    pod.runs(RAYLET, *IDLE, ("ray::Scorer.score",))
    work = pod.proc / "4" / "cmdline"

    def finish() -> None:
        while not pod.told.exists():
            time.sleep(0.05)
        work.unlink()

    finishing = Thread(target=finish)
    finishing.start()
    assert pod.drain(600).returncode == 0
    finishing.join()
    assert not work.exists()


def test_a_busy_node_waits_no_longer_than_it_may(pod: Pod):
    pod.runs(RAYLET, ("ray::Scorer.score",))
    assert pod.drain(1).returncode == 0
    assert (pod.proc / "1" / "cmdline").exists()


def test_a_pod_without_a_raylet_does_not_wait(pod: Pod):
    pod.runs(("bash",), ("ray::Scorer.score",))
    assert pod.drain(600).returncode == 0
    assert not pod.told.exists()


def test_a_head_that_is_gone_does_not_hold_the_pod(tmp_path: Path):
    pod = Pod(tmp_path, refuses=True)
    pod.runs(RAYLET, ("ray::Scorer.score",))
    assert pod.drain(600).returncode == 0
    assert pod.told.exists()
