"""SIGKILL in stage after stage, then the same command: the same result, and no finished work is redone."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from poisoncam_ray import artifact
from poisoncam_ray.defence import stages
from poisoncam_ray.folder import MANIFEST, STARTED
from tests.cluster import is_alive, until
from tests.small import defend, parquet_digests, scores, stamps

pytestmark = pytest.mark.cluster

STAGES = tuple(stage.name for stage in stages())
# One for each way to resume: checkpoints, slices, rounds, a stage that starts again, units.
OF_EACH_KIND = (
    artifact.ENCODER,
    artifact.FEATURES,
    artifact.SEARCH,
    artifact.CLASSIFIER,
    artifact.CLEAN,
)
# Over in a fraction of a second on this corpus.
SHORT = (artifact.VERDICT, artifact.CLEAN, artifact.REPORT)
# Which stage each folder of the run belongs to.
OWNER = {folder: stage.name for stage in stages() for folder in (stage.name, *stage.writes)}


def kill_in(stage: str, command: list[str], run: Path, seed: int) -> None:
    """Start the command, and SIGKILL its process group at a random moment of `stage`."""
    process = defend(*command, wait=False)
    started, committed = run / stage / STARTED, run / stage / MANIFEST
    while not started.exists() and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.stdout.read()
    deadline = time.monotonic() + random.Random(seed).uniform(0.0, 0.1 if stage in SHORT else 2.0)
    while time.monotonic() < deadline and not committed.exists():
        time.sleep(0.005)
    # Ray's processes end when they notice the driver's death; until then they may finish a slice.
    below = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: not any(is_alive(process) for process in below), 60, "Ray outlives its driver")


def finished_files(run: Path) -> dict[str, tuple[str, int]]:
    """Files that must never be written again: of committed stages, and what a running stage has finished."""
    committed = {stage for stage in STAGES if (run / stage / MANIFEST).exists()}
    rounds = tuple(
        f"{path.parent.relative_to(run)}/"
        for path in (run / artifact.SEARCH).glob(f"round=*/{artifact.ROUND_STATE}")
    )

    def finished(name: str) -> bool:
        owner = next((stage for folder, stage in OWNER.items() if name.startswith(f"{folder}/")), None)
        if owner in committed or name.startswith(rounds):
            return True
        file = name.removeprefix(f"{owner}/")
        # A unit's reasons are written before the marker that commits the unit.
        unit = file.startswith("unit-") and file.endswith(".json")
        return unit or file.startswith(("part-", "family_", artifact.CENTROIDS))

    return {name: stamp for name, stamp in stamps(run).items() if finished(name)}


@pytest.mark.parametrize(
    "struck",
    [
        pytest.param(OF_EACH_KIND, id="of each kind"),
        pytest.param(STAGES, id="every stage", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.timeout(1500)
def test_killed_stage_after_stage_it_ends_as_if_undisturbed(struck, finished, tmp_path):
    run = tmp_path / "run"
    command = finished.command(run)
    earlier: dict[str, tuple[str, int]] = {}
    for number, stage in enumerate(struck):
        kill_in(stage, command, run, seed=number)
        now = finished_files(run)
        assert {name: now.get(name) for name in earlier} == earlier
        earlier = now
    last = defend(*command)
    assert last.returncode == 0, last.said
    after = finished_files(run)
    assert {name: after.get(name) for name in earlier} == earlier
    assert scores(run) == scores(finished.run)
    for folder in (artifact.CLEAN_ROWS, artifact.REMOVED_ROWS):
        assert parquet_digests(run / folder) == parquet_digests(finished.run / folder)
