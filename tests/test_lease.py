"""One driver a run folder, on a disk and on a real S3 server, whatever happens to the drivers."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from poisoncam_ray import s3 as s3_module
from poisoncam_ray.errors import UserError
from poisoncam_ray.facts import Reported
from poisoncam_ray.folder import MANIFEST, Folder
from poisoncam_ray.lease import LEASE, Lease, LeaseLostError
from poisoncam_ray.progress import Progress
from poisoncam_ray.runner import Runner
from poisoncam_ray.settings import load_config
from poisoncam_ray.stage import Outcome, Run, Stage

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"token": "t", "host": "far", "machine": "elsewhere", "pid": 7, "started": "noon"}
HOLDER = """
import sys, time
from poisoncam_ray.folder import Folder
from poisoncam_ray.lease import Lease
with Lease(Folder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["local", "s3"])
def run_folder(request, tmp_path) -> Folder:
    if request.param == "local":
        return Folder(str(tmp_path / "run"))
    server = request.getfixturevalue("s3")
    request.getfixturevalue("use_s3")(server.environment())
    return Folder(server.uri("lease", tmp_path.name))


@pytest.fixture
def local(tmp_path) -> Folder:
    return Folder(str(tmp_path / "run"))


def write(run: Folder, number: int, **changed) -> None:
    state = ELSEWHERE | {"beat": 0, "released": False} | changed
    (run / LEASE).write_json(f"{number:06d}.json", state)


def files(run: Folder) -> list[str]:
    return (run / LEASE).names()


def test_of_drivers_that_start_together_one_works(run_folder):
    for _ in range(3):
        start, entered, refused, ended = threading.Barrier(6), [], [], threading.Event()

        def drive(start=start, entered=entered, refused=refused, ended=ended) -> None:
            lease = Lease(run_folder, beat_s=0.05, watch_s=8)
            start.wait()
            try:
                with lease:
                    entered.append(lease.held())
                    ended.wait(60)
            except UserError as error:
                refused.append(str(error))
            if len(refused) == 5:
                ended.set()

        drivers = [threading.Thread(target=drive) for _ in range(6)]
        for driver in drivers:
            driver.start()
        for driver in drivers:
            driver.join()
        assert entered == [True] and len(refused) == 5
        assert len(files(run_folder)) == 1


def test_a_driver_that_ended_leaves_the_folder_free(run_folder):
    told: list[str] = []
    for number in (1, 2, 3):
        with Lease(run_folder, told.append) as lease:
            assert lease.held() and files(run_folder) == [f"{number:06d}.json"]
    assert not told


def test_a_second_driver_is_refused_by_one_sentence(run_folder):
    with Lease(run_folder, beat_s=0.05), pytest.raises(UserError) as refusal, Lease(run_folder):
        pass
    said = str(refusal.value)
    assert run_folder.uri in said and str(os.getpid()) in said and "\n" not in said


def test_a_driver_killed_on_this_machine_is_followed_at_once(run_folder):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, run_folder.uri], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    told: list[str] = []
    with Lease(run_folder, told.append) as lease:
        assert lease.held() and files(run_folder) == ["000002.json"]
    assert not told


def test_a_silent_driver_elsewhere_is_followed_after_watching(local):
    write(local, 4)
    told: list[str] = []
    with Lease(local, told.append, watch_s=0.3) as lease:
        assert lease.held() and files(local) == ["000005.json"]
    assert len(told) == 1 and "far" in told[0]


def test_a_driver_that_ends_while_it_is_watched_is_followed(local):
    write(local, 1)
    releasing = threading.Timer(0.3, lambda: write(local, 1, released=True))
    releasing.start()
    with Lease(local, watch_s=20) as lease:
        assert lease.held() and files(local) == ["000002.json"]


def test_a_driver_that_beats_elsewhere_is_named(local):
    write(local, 1)
    beating = threading.Timer(0.3, lambda: write(local, 1, beat=1))
    beating.start()
    with pytest.raises(UserError, match="process 7 on far, since noon"), Lease(local, watch_s=20):
        pass
    beating.join()
    assert files(local) == ["000001.json"]


def test_a_process_number_used_again_proves_nothing(local):
    with Lease(local):
        ours = (local / LEASE).read_json("000001.json")
    write(local, 1, machine=ours["machine"], pid=os.getpid())
    told: list[str] = []
    with Lease(local, told.append, watch_s=0.3) as lease:
        assert lease.held()
    assert told


def test_a_half_written_lease_is_watched(local):
    (local / LEASE).write_bytes("000001.json", b'{"tok')
    with Lease(local, watch_s=0.3) as lease:
        assert lease.held() and files(local) == ["000002.json"]


def test_a_driver_that_was_taken_over_knows_and_touches_nothing(local):
    with Lease(local, beat_s=0.05) as lease:
        lease.check()
        write(local, 2)
        (local / LEASE).delete("000001.json")
        assert not lease.held()
        with pytest.raises(LeaseLostError, match="taken over"):
            lease.check()
    assert files(local) == ["000002.json"]
    assert (local / LEASE).read_json("000002.json")["host"] == "far"


def test_a_file_that_comes_late_does_not_count(local, monkeypatch):
    """A driver that looked, slept while others came and went, and only then creates its file."""
    write(local, 2, released=True)
    looks = iter([0])
    highest = Lease._highest
    monkeypatch.setattr(Lease, "_highest", lambda self: next(looks, None) or highest(self))
    monkeypatch.setattr(Lease, "_is_free", lambda self, number: True)
    with Lease(local) as lease:
        assert lease.held() and files(local) == ["000003.json"]


def test_a_lost_answer_does_not_lose_the_lease(s3, chaos, use_s3, tmp_path):
    use_s3(s3.environment(chaos.endpoint))
    run = Folder(s3.uri("lost", tmp_path.name))
    for number in (1, 2):
        chaos.inject("lost_ack", 1, {"PUT"})
        with Lease(run) as lease:
            assert lease.held() and files(run) == [f"{number:06d}.json"]
    assert chaos.injected["lost_ack"] == 2


def test_beats_go_on_after_the_store_was_away(s3, chaos, use_s3, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_module, "PATIENCE_S", 0.0)
    use_s3(s3.environment(chaos.endpoint))
    run = Folder(s3.uri("away", tmp_path.name))
    with Lease(run, beat_s=0.05) as lease:
        chaos.inject("503", 5)
        while chaos.left:
            threading.Event().wait(0.05)
        began = (run / LEASE).read_json("000001.json")["beat"]
        while (run / LEASE).read_json("000001.json")["beat"] < began + 2:
            threading.Event().wait(0.05)
        assert lease.held()
    assert (run / LEASE).read_json("000001.json")["released"]


class Busy(Stage):
    """Does `work` in the middle of a run."""

    name, title, version, inputs, sections = "work/1_busy", "Busy", 1, (), ()

    def __init__(self, work) -> None:
        self.work = work

    def run(self, run: Run) -> Outcome:
        self.work()
        return Outcome(Reported("", {}))


@pytest.fixture
def runner(tmp_path, local):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    pq.write_table(pa.table({"image": pa.array([b"x"], pa.binary())}), corpus / "a.parquet")
    return lambda work=None: Runner(str(corpus), local.uri, load_config(), [Busy(work)])


def quiet() -> Progress:
    return Progress(Console(file=io.StringIO()))


def test_a_run_started_twice_is_refused_and_the_first_one_ends_well(runner, local, monkeypatch):
    monkeypatch.setattr("poisoncam_ray.runner.Lease", partial(Lease, beat_s=0.05))
    second, refused = runner(lambda: pytest.fail("two drivers at work")), []

    def start_again() -> None:
        with pytest.raises(UserError, match="in use by another driver") as refusal:
            second.run(quiet())
        refused.append(refusal)

    runner(start_again).run(quiet())
    assert refused and (local / "work/1_busy").exists(MANIFEST)


def test_a_finished_run_takes_no_lease(runner, local):
    runner(lambda: None).run(quiet())
    before = (local / LEASE).read_bytes("000001.json")
    assert json.loads(before)["released"]
    runner().run(quiet())
    assert files(local) == ["000001.json"] and (local / LEASE).read_bytes("000001.json") == before


def test_nothing_is_committed_after_the_lease_was_lost(runner, local):
    with pytest.raises(LeaseLostError):
        runner(lambda: write(local, 2)).run(quiet())
    assert not (local / "work/1_busy").exists(MANIFEST)


def test_a_folder_with_only_a_lease_is_ours(runner, local):
    write(local, 1, released=True)
    runner(lambda: None).run(quiet())
    assert (local / "work/1_busy").exists(MANIFEST)
