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
    decided = written_at(run / artifact.VERDICT / MANIFEST)
    process = defend(*finished.command(run), "--redo", "verdict")
    assert process.returncode == 0, process.said
    assert "Search    done before" in process.said and "Verdict   done before" not in process.said
    assert written_at(run / artifact.VERDICT / MANIFEST) > decided
    assert {folder: stamps(run / folder) for folder in BEFORE} == before
    assert_same_result(run, finished.run)


def test_killed_while_it_trains_the_same_command_ends_with_the_same_result(finished, run):
    before = {folder: stamps(run / folder) for folder in BEFORE}
    command = [*finished.command(run), "--redo", "verdict"]
    decided = written_at(run / artifact.VERDICT / MANIFEST)
    process = defend(*command, wait=False)
    started, committed = run / artifact.CLASSIFIER / STARTED, run / artifact.CLASSIFIER / MANIFEST
    while not (written_at(run / artifact.VERDICT / MANIFEST) > decided and started.exists()):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not committed.exists()
    assert not (run / artifact.CLEAN_ROWS).exists() and not (run / artifact.REMOVED_ROWS).exists()
    again = defend(*command)
    assert again.returncode == 0, again.said
    assert {folder: stamps(run / folder) for folder in BEFORE} == before
    assert_same_result(run, finished.run)


def written_at(path: Path) -> int:
    """Its modification time in nanoseconds; 0 while it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def assert_same_result(run: Path, other: Path) -> None:
    one, two = (Folder(str(folder / artifact.VERDICT)) for folder in (run, other))
    assert one.read_bytes(artifact.VERDICT_FILE) == two.read_bytes(artifact.VERDICT_FILE)
    assert one.read_table(artifact.TRIGGERS) == two.read_table(artifact.TRIGGERS)
    assert scores(run) == scores(other)
    for folder in (artifact.CLEAN_ROWS, artifact.REMOVED_ROWS, artifact.CLEAN):
        assert parquet_digests(run / folder) == parquet_digests(other / folder)
    removed = Path(artifact.PAGE) / artifact.REMOVED_CSV
    assert (run / removed).read_bytes() == (other / removed).read_bytes()
