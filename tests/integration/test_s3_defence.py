"""The defence with corpus, run folder and output on S3, while storage fails in every stage.

One run a kind of fault: a few faults of it strike at random moments of each stage. Each run must end as the
undisturbed one on local disk does: the same scores, ledgers and clean bytes.
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from poisoncam_ray import artifact
from poisoncam_ray.defence import stages
from poisoncam_ray.folder import MANIFEST, STARTED
from tests.chaos import Chaos
from tests.cluster import RayNodes
from tests.s3 import S3Server
from tests.small import SETTINGS, defend, draw_small

pytestmark = [pytest.mark.cluster, pytest.mark.s3]

STAGES = tuple(stage.name for stage in stages())
# Faults a stage. A black hole costs the client's read timeout each, a killed server its start.
FAULTS = {"503": 3, "reset": 3, "cut": 3, "lost_ack": 3, "black_hole": 1, "kill": 1}
# The storage tests have these too, for every way to read and write.
MORE = ("503", "reset", "cut", "lost_ack", "black_hole")
AWAY_S = 3.0
POLL_S = 0.05
# Over in a fraction of a second on this corpus.
SHORT = (artifact.CLUSTERS, artifact.VERDICT, artifact.CLEAN, artifact.REPORT)
LIGHT = [*SETTINGS, "pretrain.epochs=1", "search.max_rounds=3"]


class Bucket:
    """The store beside the code under test: straight to the server, patient while it is away."""

    def __init__(self, server: S3Server) -> None:
        self.server, self.client = server, server.client()

    def has(self, key: str) -> bool:
        try:
            self.client.head_object(Bucket=self.server.bucket, Key=key)
        except (BotoCoreError, ClientError):
            return False
        return True

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.server.bucket, Key=key)["Body"].read()

    def folder(self, prefix: str) -> dict[str, bytes]:
        """Content of every object below, by its name there."""
        return {key.removeprefix(prefix): self.read(key) for key in self.server.objects(prefix)}

    def upload(self, folder: Path, prefix: str) -> None:
        for path in sorted(folder.iterdir()):
            self.client.upload_file(str(path), self.server.bucket, f"{prefix}/{path.name}")


class Trouble(threading.Thread):
    """Injects `fault` into each stage of the run at `prefix`; `struck` counts the faults of each stage."""

    def __init__(
        self, fault: str, chaos: Chaos, bucket: Bucket, prefix: str, ended: Callable[[], bool]
    ) -> None:
        super().__init__(daemon=True)
        self.fault, self.chaos, self.bucket, self.prefix, self.ended = fault, chaos, bucket, prefix, ended
        self.random = random.Random(fault)
        self.struck: dict[str, int] = {}

    def run(self) -> None:
        for stage in STAGES:
            while not self.bucket.has(f"{self.prefix}/{stage}/{STARTED}"):
                if self.ended():
                    return
                time.sleep(POLL_S)
            self.struck[stage] = self.kill(stage) if self.fault == "kill" else self.spoil(stage)

    def spoil(self, stage: str) -> int:
        """The first at once, the others one by one at random moments, for as long as the stage lasts."""
        before, left = self.chaos.injected[self.fault], FAULTS[self.fault]
        until = 0.0
        while not self.bucket.has(f"{self.prefix}/{stage}/{MANIFEST}") and not self.ended():
            if left and not self.chaos.left and time.monotonic() > until:
                self.chaos.inject(self.fault, 1)
                left, until = left - 1, time.monotonic() + self.random.uniform(0.0, 1.0)
            time.sleep(POLL_S)
        self.chaos.calm()
        return self.chaos.injected[self.fault] - before

    def kill(self, stage: str) -> int:
        time.sleep(0.0 if stage in SHORT else self.random.uniform(0.0, 1.0))
        in_time = not self.bucket.has(f"{self.prefix}/{stage}/{MANIFEST}")
        self.bucket.server.kill()
        time.sleep(AWAY_S)
        self.bucket.server.start()
        return int(in_time)


@pytest.fixture(scope="module")
def chaos(s3) -> Iterator[Chaos]:
    with Chaos(s3.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def cluster(s3, chaos) -> Iterator[RayNodes]:
    # Workers get their environment from `ray start`, not from the driver.
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment(chaos.endpoint).items():
            patch.setenv(name, value)
        nodes = RayNodes(workers=0, head_cpus=8)
    with nodes:
        yield nodes


@pytest.fixture(scope="module")
def titles() -> Iterator[set[str]]:
    """Every process title on this machine seen while the tests ran."""
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.5):
            for process in psutil.process_iter(["cmdline", "name"]):
                seen.add(f"{process.info['name']} {' '.join(process.info['cmdline'] or [])}")

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    yield seen
    done.set()
    watcher.join()


@pytest.fixture(scope="module")
def corpus(s3, tmp_path_factory) -> Path:
    folder = draw_small(tmp_path_factory.mktemp("drawn") / "corpus", 160)
    Bucket(s3).upload(folder, "corpus")
    return folder


@pytest.fixture(scope="module")
def start_defence(s3, chaos, cluster, titles) -> Callable[[str, str], subprocess.Popen]:
    """Start a defence on the cluster, storage by way of the proxy."""

    def start(source: str, output: str) -> subprocess.Popen:
        place = cluster.environment() | s3.environment(chaos.endpoint)
        return defend("--input", source, "--output", output, *LIGHT, wait=False, environment=place)

    return start


@pytest.fixture(scope="module")
def calm(start_defence, corpus, tmp_path_factory) -> dict[str, bytes]:
    """The files of an undisturbed run on local disk."""
    run = tmp_path_factory.mktemp("calm") / "run"
    process = start_defence(str(corpus), str(run))
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


@dataclass
class Outcome:
    """One run: faults that struck in each stage, the driver's output, how it ended, seconds of each stage."""

    struck: dict[str, int]
    said: str
    words: str
    seconds: dict[str, float] = field(default_factory=dict)


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, Outcome]]:
    """Of each fault; said as a table at the end."""
    told: dict[str, Outcome] = {}
    yield told
    print()
    for fault, outcome in told.items():
        for stage in STAGES:
            struck, seconds = outcome.struck.get(stage, 0), outcome.seconds.get(stage, 0)
            print(f"{fault:<10} | {stage:<17} | {struck} struck | {seconds:5.1f} s | {outcome.words}")


@pytest.mark.timeout(1000)
@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=pytest.mark.exhaustive if fault in MORE else ()) for fault in FAULTS]
)
def test_a_fault_in_every_stage_changes_nothing(fault, s3, chaos, calm, start_defence, outcomes):
    bucket, prefix = Bucket(s3), f"run-{fault}"
    process = start_defence(s3.uri("corpus"), s3.uri(prefix))
    trouble = Trouble(fault, chaos, bucket, prefix, lambda: process.poll() is not None)
    trouble.start()
    said = process.communicate(timeout=900)[0]
    trouble.join()
    outcomes[fault] = Outcome(trouble.struck, said, "not as undisturbed")
    assert process.returncode == 0, said
    assert list(trouble.struck) == list(STAGES)
    missed = {stage for stage, struck in trouble.struck.items() if not struck}
    assert missed <= set(SHORT), "over before a fault could strike"
    run = bucket.folder(f"{prefix}/")
    assert scores_of(run) == scores_of(calm)
    assert ledgers_of(run) == ledgers_of(calm)
    assert clean_of(run) == clean_of(calm)
    outcomes[fault].seconds = {stage: json.loads(run[f"{stage}/{MANIFEST}"])["seconds"] for stage in STAGES}
    outcomes[fault].words = "scores, ledgers and clean bytes as undisturbed"


def test_no_secret_is_written_anywhere(s3, cluster, titles, outcomes):
    """After all runs: all objects, what the drivers said, Ray's session logs, process titles."""
    assert outcomes and titles
    secrets = [s3.secret.encode(), s3.key.encode(), cluster.token.encode()]
    places = {key: readable(key, Bucket(s3).read(key)) for key in s3.objects()}
    places |= {str(path): path.read_bytes() for path in cluster.folder.rglob("*") if path.is_file()}
    places |= {f"the driver under {fault}": outcome.said.encode() for fault, outcome in outcomes.items()}
    places |= {"process titles": "\n".join(titles).encode()}
    assert len(places) > 100
    assert [place for place, data in places.items() if any(secret in data for secret in secrets)] == []


def readable(key: str, data: bytes) -> bytes:
    """The data, and of a Parquet file its text too, which lies compressed in it.

    Broken Parquet, which other tests leave on the server, is read as it is.
    """
    if not key.endswith(".parquet"):
        return data
    try:
        return data + repr(pq.read_table(io.BytesIO(data)).to_pydict()).encode()
    except (pa.ArrowException, OSError):
        return data


def scores_of(run: dict[str, bytes]) -> dict[str, Any]:
    parts = [data for name, data in run.items() if name.startswith(f"{artifact.SCORES}/part-")]
    return {row["image_id"]: row for part in parts for row in pq.read_table(io.BytesIO(part)).to_pylist()}


def ledgers_of(run: dict[str, bytes]) -> dict[str, Any]:
    return {stage: json.loads(run[f"{stage}/{MANIFEST}"])["ledger"] for stage in STAGES}


def clean_of(run: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in run.items() if name.startswith(f"{artifact.CLEAN_ROWS}/")}
