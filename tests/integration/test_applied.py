"""Known triggers in new shards: exactly the rows that carry one are removed, also after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import poisoncam_ray as pc
from poisoncam_ray import api, artifact
from poisoncam_ray.cli import TOP
from poisoncam_ray.folder import MANIFEST, Folder
from poisoncam_ray.inspection import inspect_image
from poisoncam_ray.program import as_app
from poisoncam_ray.report.words import tell
from tests.fake_run import FakeRun, png, with_trigger
from tests.real_classifier import TRIGGER, make_judged_run
from tests.small import ROOT, parquet_digests, rows_of
from tests.test_python import finish, run_examples

pytestmark = pytest.mark.cluster

POISONED = {3, 11, 17, 30}
"""Rows of the new shards, counted through, that carry the trigger."""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    return finish(make_judged_run(tmp_path_factory.mktemp("earlier")))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, earlier: FakeRun) -> Path:
    """A folder with out/, the earlier run, and new/, two shards of twenty images."""
    place = tmp_path_factory.mktemp("applied")
    (place / "out").symlink_to(earlier.run)
    (place / "new").mkdir()
    for shard in range(2):
        rows = []
        for row in range(20 * shard, 20 * shard + 20):
            data = png(1000 + row)
            x, y = 6 + row % 20, row % 24
            box = (x, y, x + 12, y + 12)
            rows.append({"id": row, "image": with_trigger(data, TRIGGER, box) if row in POISONED else data})
        pq.write_table(pa.Table.from_pylist(rows), place / "new" / f"{shard}.parquet", row_group_size=10)
    return place


@pytest.fixture(scope="module")
def applied(place, ray_cluster) -> pc.Results:
    settings = {"corpus": {"rows_per_slice": 10}}
    return pc.apply(place / "out", place / "new", place / "new-out", progress=False, **settings)


def test_exactly_the_rows_with_the_trigger_are_removed(applied, place):
    removed = {row["id"] for row in rows_of(place / "new-out" / artifact.REMOVED_ROWS)}
    kept = {row["id"] for row in rows_of(place / "new-out" / artifact.CLEAN_ROWS)}
    assert removed == POISONED and kept == set(range(40)) - POISONED
    assert applied.counts.rows == 40 and set(applied.removed()["family"].to_pylist()) == {1}
    assert applied.words == tell(applied.verdict, 4, {1: 4})
    assert applied.words[0].startswith("Known triggers only, of ")
    page = (place / "new-out" / artifact.PAGE / artifact.HTML).read_text()
    assert "Only known triggers were looked for" in page and "4 of 40 images were removed" in page
    assert artifact.SEARCH not in [f"work/{name}" for name in Folder(str(place / "new-out/work")).names()]


def test_other_commands_know_its_fewer_stages(applied, place):
    run = str(place / "new-out")
    for command, words in (("verify", None), ("status", "Finished."), ("inspect", "Known triggers only")):
        ran = CliRunner().invoke(as_app(*TOP), [command, run], catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        assert words is None or words in ran.stdout
    story = inspect_image(run, "0.parquet#3")
    assert story.record.fate == "removed" and story.nearest is None and story.heat is not None


def test_the_example_of_the_call(applied, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(pc, "apply", _with_small_slices, raising=False)
    assert run_examples(api, {"pc": pc, "run": pc.open_run("out")}, only="apply") == 3


def _with_small_slices(*places, **settings):
    return api.apply(*places, corpus={"rows_per_slice": 10}, **settings)


def test_a_changed_earlier_run_is_refused(applied, place, earlier, tmp_path):
    shutil.copytree(earlier.run, tmp_path / "out")
    shutil.copytree(place / "new-out", tmp_path / "new-out")
    with pytest.raises(pc.UserError, match=r"adopted_from: '?.* then, '?.* now"):
        api.apply(tmp_path / "out", place / "new", tmp_path / "new-out", corpus={"rows_per_slice": 10})


@pytest.mark.parametrize("at", [artifact.CLASSIFIER, artifact.CLEAN])
def test_killed_and_started_again_the_result_is_the_same(at, applied, place, tmp_path):
    out = tmp_path / "run"
    program = "import sys; sys.argv[0] = 'poisoncam'; from poisoncam_ray.cli import main; main()"
    command = [sys.executable, "-c", program, "apply", str(place / "out"), "--input", str(place / "new")]
    process = subprocess.Popen(
        [*command, "--output", str(out), "corpus.rows_per_slice=10"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    while not (out / at / "_started.json").exists():
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / artifact.REPORT / MANIFEST).exists()
    api.apply(place / "out", place / "new", out, progress=False, corpus={"rows_per_slice": 10})
    for name in (artifact.CLEAN_ROWS, artifact.REMOVED_ROWS, artifact.CLEAN, artifact.SCORES):
        assert parquet_digests(out / name) == parquet_digests(place / "new-out" / name)
