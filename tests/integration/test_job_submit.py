"""`ray job submit` on a real cluster of two nodes with a token: exit codes, logs, resumption, refusals."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from poisoncam_ray import artifact
from poisoncam_ray.defence import stages
from poisoncam_ray.folder import MANIFEST, STARTED, Folder, Manifest
from tests.cluster import RAY, RayNodes, until
from tests.infra.render import ray_job, render
from tests.small import ROOT, SETTINGS, draw_small, scores, stamps

pytestmark = [pytest.mark.cluster, pytest.mark.s3]

RUNS = "python jobs/defend.py"
LIGHT = [
    "pretrain.epochs=2",
    "search.masks=16",
    "search.refine=false",
    "search.max_rounds=2",
    "classify.steps=8",
]


class Jobs:
    """What a user does with `ray job …` from a clean checkout."""

    def __init__(self, cluster: RayNodes, checkout: Path) -> None:
        self.cluster, self.checkout = cluster, checkout
        self.environment = os.environ | cluster.environment()

    def call(self, *arguments: str, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess:
        """`ray job ARGUMENTS`; its `stdout` holds both streams."""
        return subprocess.run(
            [*RAY, "job", *arguments],
            cwd=self.checkout,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def submit(self, name: str, *arguments: str, wait: bool = True) -> subprocess.CompletedProcess:
        """Submit a defence under the submission id `name`; with `wait` until it ends, with its log."""
        follow = [] if wait else ["--no-wait"]
        command = [*RUNS.split(), *arguments]
        return self.call("submit", *follow, "--submission-id", name, "--working-dir", ".", "--", *command)

    def ask(self, name: str = "", token: str | None = None) -> Any:
        """The job's record as the dashboard's API gives it; of all jobs without a name."""
        request = urllib.request.Request(f"{self.cluster.dashboard_url}/api/jobs/{name}")
        bearer = self.cluster.token if token is None else token
        if bearer:
            request.add_header("Authorization", f"Bearer {bearer}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def ended(self, name: str) -> bool:
        return self.ask(name)["status"] in ("SUCCEEDED", "FAILED", "STOPPED")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """This tree as a user has it: what is under version control, and what Ray must not upload."""
    folder = tmp_path_factory.mktemp("checkout") / "poisoncam"
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    for name in (".venv", "runs"):
        (folder / name).mkdir()
        with (folder / name / "large").open("wb") as file:
            # Ray refuses to upload more than 100 MiB.
            file.truncate(200 * 2**20)
    return folder


@pytest.fixture(scope="module")
def cluster(checkout, s3) -> Iterator[RayNodes]:
    """As the manifests make it: code, S3 and Python are the nodes' own; a job brings none of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(checkout)
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        for name, value in s3.environment().items():
            patch.setenv(name, value)
        # The head works too: after the other node is lost, the job goes on there.
        nodes = RayNodes(workers=1, cpus=8, head_cpus=4, dashboard=True)
    with nodes:
        yield nodes


@pytest.fixture(scope="module")
def jobs(cluster, checkout) -> Jobs:
    return Jobs(cluster, checkout)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return draw_small(tmp_path_factory.mktemp("small") / "corpus", 160)


@pytest.fixture(scope="module")
def finished(jobs, corpus, tmp_path_factory) -> tuple[Path, str]:
    """(run folder, log) of a job that nothing disturbed."""
    run = tmp_path_factory.mktemp("jobs") / "run"
    job = jobs.submit("calm", "--input", str(corpus), "--output", str(run), *SETTINGS)
    assert job.returncode == 0, job.stdout
    return run, job.stdout


def test_a_job_ends_with_exit_code_0_and_its_log_shows_stages_and_counts(finished, jobs):
    run, log = finished
    for stage in stages():
        assert f"{stage.title:<9} …" in log
    assert "160 rows = " in log and " + 0 dead" in log
    assert f"{run}/{artifact.PAGE}/{artifact.HTML}" in log
    assert "Traceback" not in log
    assert jobs.ask("calm")["driver_exit_code"] == 0


def test_a_mistake_is_told_in_the_log_and_the_job_fails(jobs, corpus, tmp_path):
    job = jobs.submit("typo", "--input", str(corpus), "--output", str(tmp_path / "run"), "search.maks=3")
    assert job.returncode == 1
    assert "no configuration key 'search.maks'; did you mean 'search.masks', " in job.stdout
    assert "Traceback" not in job.stdout
    assert jobs.ask("typo")["driver_exit_code"] == 2
    assert not (tmp_path / "run").exists()


def test_submitted_again_it_has_nothing_to_do(finished, jobs, corpus):
    run, _ = finished
    before = stamps(run / artifact.CLEAN_ROWS)
    job = jobs.submit("again", "--input", str(corpus), "--output", str(run), *SETTINGS)
    assert job.returncode == 0, job.stdout
    assert "Nothing to do" in job.stdout
    assert stamps(run / artifact.CLEAN_ROWS) == before


def test_a_duplicate_submission_id_is_refused_and_touches_nothing(finished, jobs, corpus):
    run, _ = finished
    before = stamps(run)
    job = jobs.submit("calm", "--input", str(corpus), "--output", str(run), *SETTINGS, "seed=3")
    assert job.returncode != 0
    assert "calm already exists" in job.stdout
    assert stamps(run) == before
    assert jobs.ask("calm")["status"] == "SUCCEEDED"


@pytest.mark.parametrize(("token", "code"), [("", 401), ("wrong" * 12, 403)])
def test_without_the_token_nothing_is_told_or_submitted(jobs, token, code):
    with pytest.raises(urllib.error.HTTPError) as refused:
        jobs.ask(token=token)
    assert refused.value.code == code
    job = jobs.call("submit", "--submission-id", f"none{code}", "--", "true", RAY_AUTH_TOKEN=token or " ")
    assert job.returncode != 0, job.stdout
    assert f"none{code}" not in {known["submission_id"] for known in jobs.ask()}


def test_a_second_job_on_the_folder_is_refused_and_a_stopped_one_resumes(finished, jobs, corpus, tmp_path):
    run = tmp_path / "run"
    arguments = ["--input", str(corpus), "--output", str(run), *SETTINGS]
    assert jobs.submit("first", *arguments, wait=False).returncode == 0
    in_stage(run / artifact.INDEX, jobs, "first")
    second = jobs.submit("second", *arguments)
    assert second.returncode == 1, second.stdout
    assert f"{run} is in use by another driver" in second.stdout
    assert jobs.ask("second")["driver_exit_code"] == 2
    in_stage(run / artifact.SEARCH, jobs, "first")
    began = time.monotonic()
    stopped = jobs.call("stop", "first")
    assert stopped.returncode == 0, stopped.stdout
    until(lambda: jobs.ended("first"), 60, f"still running {time.monotonic() - began:.0f} s after the stop")
    assert jobs.ask("first")["status"] == "STOPPED"
    assert "Stopped. Finished work is kept" in jobs.call("logs", "first").stdout
    before = stamps(run / artifact.FEATURES)
    third = jobs.submit("third", *arguments)
    assert third.returncode == 0, third.stdout
    assert "Embed     done before" in third.stdout
    assert stamps(run / artifact.FEATURES) == before
    assert scores(run) == scores(finished[0])


# Ten minutes; a small job loses a node in every stage in test_nodes.py.
@pytest.mark.exhaustive
@pytest.mark.timeout(1500)
def test_the_demo_survives_a_node_lost_in_search(jobs, cluster, tmp_path):
    # After one epoch there is no backdoor to find: whatever is best is taken for one.
    light = ["pretrain.epochs=1", "search.masks=32", "search.refine=false", "search.max_rounds=3"]
    light += ["verdict.false_alarm_rate=1", "classify.models=1", "classify.steps=20", "resources.actors=3"]
    assert jobs.submit("demo", "--output", str(tmp_path / "demo"), *light, wait=False).returncode == 0
    run = tmp_path / "demo" / "run"
    in_stage(run / artifact.SEARCH, jobs, "demo", 600)
    (node,) = cluster.workers
    until(lambda: cluster.find("Scorer"), 120, "no actor of the search on the node to lose")
    cluster.kill_node(node)
    assert not (run / artifact.SEARCH / MANIFEST).exists()
    until(lambda: jobs.ended("demo"), 900, "the demo did not end")
    record, log = jobs.ask("demo"), jobs.call("logs", "demo").stdout
    cluster.add_node()
    assert (record["status"], record["driver_exit_code"]) == ("SUCCEEDED", 0), log
    ledger = Manifest.read(Folder(str(run / artifact.CLEAN))).ledger
    assert ledger is not None and ledger.balanced
    assert ledger.rows_in == len(scores(run)) == 3000
    assert ledger.removed == sum(row["fate"] == artifact.REMOVE for row in scores(run))


def test_the_manifests_own_entrypoint_and_environment(jobs, corpus, s3):
    """As KubeRay's submitter does it: no working folder, the runtime environment as JSON."""
    spec = ray_job(render("overlays/kind"))["spec"]
    # With less to train and to search: its own settings take minutes, and are tested with the presets.
    words = [*shlex.split(spec["entrypoint"]), *LIGHT]
    source, output = (urlsplit(words[words.index(option) + 1]) for option in ("--input", "--output"))
    client = s3.client()
    client.create_bucket(Bucket=source.netloc)
    for path in corpus.iterdir():
        client.upload_file(str(path), source.netloc, f"{source.path.strip('/')}/{path.name}")
    environment = json.dumps(yaml.safe_load(spec["runtimeEnvYAML"]))
    job = jobs.call("submit", "--submission-id", "kind", "--runtime-env-json", environment, "--", *words)
    assert job.returncode == 0, job.stdout
    assert jobs.ask("kind")["driver_exit_code"] == 0
    manifest = f"{output.path.strip('/')}/{artifact.CLEAN}/{MANIFEST}"
    ledger = json.load(client.get_object(Bucket=output.netloc, Key=manifest)["Body"])["ledger"]
    assert ledger["rows_in"] == 160 == ledger["rows_out"] + ledger["removed"] + ledger["dead"]


def in_stage(stage: Path, jobs: Jobs, name: str, seconds: float = 300) -> None:
    """Wait until the job works on `stage`."""

    def begun() -> bool:
        return (stage / STARTED).exists() or jobs.ended(name)

    until(begun, seconds, f"{name} never came to {stage.name}")
    assert not jobs.ended(name), jobs.call("logs", name).stdout
    assert not (stage / MANIFEST).exists()
