"""`--redo verdict`: decides again from the stored candidates, also after a kill; earlier artifacts stay."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from poisoncam_ray import artifact
from poisoncam_ray.folder import MANIFEST, STARTED, Folder
from tests.small import defend, parquet_digests, scores, stamps

pytestmark = pytest.mark.cluster

BEFORE = (
    artifact.INDEX,
    artifact.ENCODER,
    artifact.FEATURES,
    artifact.CLUSTERS,
    artifact.SEARCH,
    artifact.DEAD_ROWS,
)


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory) -> Path:
    """A copy of the finished run, with its files' times."""
    folder = tmp_path_factory.mktemp("redo") / "run"
    shutil.copytree(finished.run, folder)
    return folder


def test_the_verdict_again_gives_the_same_result(finished, run):
    before = {folder: stamps(run / folder) for folder in BEFORE}
    decided = (run / artifact.VERDICT / MANIFEST).stat().st_mtime_ns
    process = defend(*finished.command(run), "--redo", "verdict")
    assert process.returncode == 0, process.said
    assert "Search    done before" in process.said and "Verdict   done before" not in process.said
    assert (run / artifact.VERDICT / MANIFEST).stat().st_mtime_ns > decided
    assert {folder: stamps(run / folder) for folder in BEFORE} == before
    assert_same_result(run, finished.run)


def test_killed_while_it_trains_the_same_command_ends_with_the_same_result(finished, run):
    before = {folder: stamps(run / folder) for folder in BEFORE}
    command = [*finished.command(run), "--redo", "verdict"]
    process = defend(*command, wait=False)
    started, committed = run / artifact.CLASSIFIER / STARTED, run / artifact.CLASSIFIER / MANIFEST
    # Until then the earlier classifier lies there, committed.
    while (committed.exists() or not started.exists()) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (run / artifact.VERDICT / MANIFEST).exists() and not committed.exists(), process.stdout.read()
    assert not (run / artifact.CLEAN_ROWS).exists() and not (run / artifact.REMOVED_ROWS).exists()
    again = defend(*command)
    assert again.returncode == 0, again.said
    assert {folder: stamps(run / folder) for folder in BEFORE} == before
    assert_same_result(run, finished.run)


def assert_same_result(run: Path, other: Path) -> None:
    one, two = (Folder(str(folder / artifact.VERDICT)) for folder in (run, other))
    assert one.read_bytes(artifact.VERDICT_FILE) == two.read_bytes(artifact.VERDICT_FILE)
    assert one.read_table(artifact.TRIGGERS) == two.read_table(artifact.TRIGGERS)
    assert scores(run) == scores(other)
    for folder in (artifact.CLEAN_ROWS, artifact.REMOVED_ROWS, artifact.CLEAN):
        assert parquet_digests(run / folder) == parquet_digests(other / folder)
    removed = Path(artifact.PAGE) / artifact.REMOVED_CSV
    assert (run / removed).read_bytes() == (other / removed).read_bytes()
