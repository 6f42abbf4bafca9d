"""SIGKILL in stage after stage, the same command again: the same verdicts, and finished parts stay as is."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from poisoncam_ray import artifact
from poisoncam_ray.folder import MANIFEST, STARTED
from tests.small import SETTINGS, defend, draw_small, stamps, verdicts

STAGES = (
    artifact.INDEX,
    artifact.ENCODER,
    artifact.FEATURES,
    artifact.CLUSTERS,
    artifact.SEARCH,
    artifact.CLASSIFIER,
    artifact.SCORES,
    artifact.CLEAN_ROWS,
    "report",
)

# One of each way to go on: checkpoints, slices, rounds, a whole stage done again, shards.
OF_EACH_KIND = (
    artifact.ENCODER,
    artifact.FEATURES,
    artifact.SEARCH,
    artifact.CLASSIFIER,
    artifact.CLEAN_ROWS,
)

# Over in a fraction of a second on this corpus.
SHORT = (artifact.CLEAN_ROWS, "report")


def kill_in(stage: str, command: list[str], run: Path, seed: int) -> None:
    """Start the command and SIGKILL its process group at a random moment of `stage`."""
    process = defend(*command, wait=False)
    started, committed = run / stage / STARTED, run / stage / MANIFEST
    while not started.exists() and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.stdout.read()
    deadline = time.monotonic() + random.Random(seed).uniform(0.0, 0.1 if stage in SHORT else 2.0)
    while time.monotonic() < deadline and not committed.exists():
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Ray's own processes notice the driver's death; until then they may finish the piece in hand.
    time.sleep(3)


def finished_files(run: Path) -> dict[str, tuple[str, int]]:
    """What must never be written again: a committed stage, and the finished pieces of a running one."""
    committed = {stage for stage in STAGES if (run / stage / MANIFEST).exists()}
    rounds = {f"04_search/{path.parent.name}" for path in (run / artifact.SEARCH).glob("round=*/live.json")}

    def finished(name: str) -> bool:
        stage, _, rest = name.partition("/")
        return (
            stage in committed
            or rest.startswith(("part-", "family_", "_units/", "centroids"))
            or any(name.startswith(f"{folder}/") for folder in rounds)
        )

    return {name: stamp for name, stamp in stamps(run).items() if finished(name)}


@pytest.mark.parametrize(
    "struck",
    [
        pytest.param(OF_EACH_KIND, id="of each kind"),
        pytest.param(STAGES, id="every stage", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.timeout(1500)
def test_killed_stage_after_stage_it_ends_as_if_undisturbed(struck, tmp_path):
    corpus = draw_small(tmp_path / "corpus", 160)
    calm, run = tmp_path / "calm", tmp_path / "run"
    undisturbed = defend("--input", str(corpus), "--output", str(calm), *SETTINGS)
    assert undisturbed.returncode == 0, undisturbed.said
    command = ["--input", str(corpus), "--output", str(run), *SETTINGS]
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
    assert verdicts(run) == verdicts(calm)
    clean = {k: v[0] for k, v in stamps(run / artifact.CLEAN_ROWS).items() if k.endswith(".parquet")}
    assert clean == {k: v[0] for k, v in stamps(calm / artifact.CLEAN_ROWS).items() if k.endswith(".parquet")}
