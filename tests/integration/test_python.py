"""`pc.defend` beside another Ray, beside an event loop, off the main thread; and `run.clean()`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import poisoncam_ray as pc
from poisoncam_ray import api, artifact, results
from poisoncam_ray.folder import Folder
from tests.fake_run import make_fake_run, png
from tests.small import QUICK, ROOT, SETTINGS, draw_small
from tests.tars import plain_members, tar_bytes
from tests.test_python import run_examples

pytestmark = pytest.mark.cluster

SCRIPT = """
import asyncio, json, logging, signal, sys
import ray, ray.data
import poisoncam_ray as pc

settings, told = json.loads(sys.argv[1]), {}
def call(**more):
    return pc.defend("photos/", "out/", preset="tiny-cnn", seed=1, overrides=settings, **more)
def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
def options():
    return [ray.data.DataContext.get_current().enable_progress_bars, logging.getLogger("ray.data").level]

ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
cluster, before = ray.get_runtime_context().gcs_address, (handlers(), options())
async def beside_a_loop():
    ticks = asyncio.create_task(asyncio.sleep(1e6))
    run = await asyncio.to_thread(call)
    ticks.cancel()
    return run
run = asyncio.run(beside_a_loop())
told["finished"] = run.finished
told["same cluster"] = ray.is_initialized() and ray.get_runtime_context().gcs_address == cluster
told["as before"] = before == (handlers(), options())
ray.shutdown()

before = (handlers(), options())
async def within_a_loop():
    return call(redo="judge", progress=False)
print("QUIET")
run = asyncio.run(within_a_loop())
print("QUIET")
told["finished again"] = run.finished
told["no Ray left"] = not ray.is_initialized()
told["as before again"] = before == (handlers(), options())
told["nothing to do"] = call(progress=False).counts.rows
told["still no Ray"] = not ray.is_initialized()
print("TOLD", json.dumps(told))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/, and out/, which the script has made of it."""
    place = tmp_path_factory.mktemp("script")
    draw_small(place / "photos", 120)
    environment = os.environ | QUICK | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, json.dumps(SETTINGS)]
    ran = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (place / "said.txt").write_text(ran.stdout)
    return place


def test_it_works_beside_another_ray_and_leaves_none_of_its_own(place):
    said = (place / "said.txt").read_text()
    told = json.loads(said.partition("TOLD ")[2])
    assert told.pop("nothing to do") == 120
    assert told and all(told.values()), told
    assert "Search" in said.partition("QUIET")[0]
    assert said.split("QUIET")[1].strip() == ""


def test_the_examples_of_a_call(place, monkeypatch, ray_cluster):
    monkeypatch.chdir(place)
    # The import at the start of the examples gives the package; the settings would take minutes.
    monkeypatch.setattr(pc, "defend", partial(api.defend, overrides=SETTINGS), raising=False)
    assert run_examples(api, {}, only="defend") == 4
    run = pc.open_run("out")
    assert run_examples(results, {"run": run}, only="clean") == 1
    kept = {row["id"] for row in run.clean().take_all()}
    assert len(kept) == run.counts.kept


@pytest.mark.parametrize("format", ["folder", "webdataset"])
def test_the_clean_corpus_of_another_format_is_a_dataset(format, tmp_path, ray_cluster):
    run = Folder(make_fake_run(tmp_path, poison=False).run)
    clean = Path((run / artifact.CLEAN_ROWS).path)
    shutil.rmtree(clean)
    with pytest.raises(pc.UserError, match="no clean corpus"):
        pc.open_run(run.uri).clean()
    (clean / "dog").mkdir(parents=True)
    if format == "folder":
        for i in range(3):
            (clean / "dog" / f"{i}.png").write_bytes(png(i))
        (clean / "dog" / "3.txt").write_text("a dog")
    else:
        for i in range(2):
            (clean / "dog" / f"{i}.tar").write_bytes(tar_bytes(plain_members(3)))
        # img2dataset writes a table beside each tar.
        (clean / "dog" / "0.parquet").write_bytes(b"no shard of its own")
    rows = pc.open_run(run.uri).clean().take_all()
    if format == "folder":
        assert sorted(Path(row["path"]).name for row in rows) == ["0.png", "1.png", "2.png"]
        assert rows[0]["image"].shape == (40, 48, 3)
    else:
        assert len(rows) == 6 and all("__key__" in row for row in rows)
