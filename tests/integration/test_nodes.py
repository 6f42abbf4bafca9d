"""SIGKILL of a worker process, of all training workers and of a worker node, in every stage of one job: it
ends as if undisturbed. (SIGKILL of the driver: test_kill.py.)"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from poisoncam_ray import artifact
from poisoncam_ray.folder import MANIFEST, STARTED, Folder, Manifest
from tests.cluster import RayNodes, freeze, thaw, title_of
from tests.integration.conftest import defend_on
from tests.small import parquet_digests, scores

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

STAGES = {
    "Index": artifact.INDEX,
    "Pretrain": artifact.ENCODER,
    "Embed": artifact.FEATURES,
    "Cluster": artifact.CLUSTERS,
    "Search": artifact.SEARCH,
    "Classify": artifact.CLASSIFIER,
    "Judge": artifact.SCORES,
    "Clean": artifact.CLEAN,
}
# Of some tasks in them, over in tens of milliseconds on an idle machine.
SHORT = ("Embed", "Cluster", "Judge", "Clean")
JOB_S = 600
POOL = r"MapWorker\(MapBatches\(_OnImages\)\)"


@dataclass(frozen=True)
class Strike:
    """Kill what works for `stage` under a title that matches `title`; in Pretrain not before `step`."""

    fault: str
    stage: str
    title: str
    step: int = 0

    def begun(self, folder: Path) -> bool:
        if not self.step:
            return (folder / STARTED).exists()
        names = [path.parent.name for path in folder.glob("checkpoints/*/state.json")]
        return max(names, default="") >= f"step-{self.step:08d}"

    def __str__(self) -> str:
        return f"{self.fault} | {self.stage}"


PROCESSES = [
    Strike("worker process", "Index", r"_on_slice"),
    Strike("one training worker", "Pretrain", r"RayTrainWorker$", step=1),
    Strike("training worker group", "Pretrain", r"RayTrainWorker$", step=3),
    Strike("actor at its start", "Embed", rf"{POOL}\.__init__"),
    Strike("actor at work", "Embed", rf"{POOL}\.submit"),
    Strike("worker process", "Cluster", r"ray::fit_centroids"),
    Strike("worker process, assigning", "Cluster", r"_on_slice"),
    Strike("actor at its start", "Search", r"Scorer\.__init__"),
    Strike("actor at work", "Search", r"Scorer\.work"),
    Strike("worker process", "Classify", r"ray::train_model"),
    Strike("worker process, validating", "Classify", r"ray::validate_family"),
    Strike("actor at its start", "Judge", rf"{POOL}\.__init__"),
    Strike("actor at work", "Judge", rf"{POOL}\.submit"),
    Strike("worker process", "Clean", r"ray::write_unit"),
]
NODES = [
    Strike("worker node", "Index", r"_on_slice"),
    Strike("worker node", "Pretrain", r"RayTrainWorker$", step=1),
    Strike("worker node", "Embed", rf"{POOL}\.submit"),
    Strike("worker node", "Cluster", r"ray::fit_centroids|_on_slice"),
    Strike("worker node", "Search", r"Scorer\.work"),
    Strike("worker node", "Classify", r"ray::train_model"),
    Strike("worker node", "Judge", rf"{POOL}\.submit"),
    Strike("worker node", "Clean", r"ray::write_unit"),
]


@dataclass
class Struck:
    """A job that ended, and when in it each strike hit."""

    run: Path
    code: int
    said: str
    hits: dict[Strike, str]


def strike_all(nodes: RayNodes, corpus: Path, run: Path, strikes: list[Strike]) -> Struck:
    process = defend_on(nodes, corpus, run)
    began = time.monotonic()
    hits: dict[Strike, str] = {}

    def over(folder: Path) -> bool:
        late = time.monotonic() > began + JOB_S
        return late or (folder / MANIFEST).exists() or process.poll() is not None

    try:
        for strike in strikes:
            folder = run / STAGES[strike.stage]
            while not strike.begun(folder) and not over(folder):
                time.sleep(0.01)
            while strike not in hits and not over(folder):
                if victim := hit(nodes, strike, folder / MANIFEST):
                    hits[strike] = f"{victim} after {time.monotonic() - began:.0f} s"
                time.sleep(0.005)
        said, _ = process.communicate(timeout=JOB_S)
    finally:
        process.kill()
    return Struck(run, process.returncode, said, hits)


def hit(nodes: RayNodes, strike: Strike, manifest: Path) -> str:
    """Kill the victims of the strike if they work on this stage; who was killed, or "".

    Victims are stopped before it is checked that they work on the stage: they cannot finish meanwhile.
    """
    for node, process in nodes.find(strike.title):
        stopped = freeze(victims(nodes, strike, node.tree, process))
        if re.search(strike.title, title_of(process.pid)) and not manifest.exists():
            if strike.fault == "worker node":
                nodes.kill_node(node)
                nodes.add_node_later()
                return node.ip
            for victim in stopped:
                os.kill(victim.pid, signal.SIGKILL)
            return " and ".join(str(victim.pid) for victim in stopped)
        thaw(stopped)
    return ""


def victims(
    nodes: RayNodes, strike: Strike, tree: Callable[[], list[psutil.Process]], process: psutil.Process
) -> Callable[[], list[psutil.Process]]:
    if strike.fault == "worker node":
        return tree
    if strike.fault == "training worker group":
        return lambda: [one for _, one in nodes.find(strike.title)]
    return lambda: [process]


@pytest.fixture(scope="module")
def processes_lost(nodes, calm, node_corpus, tmp_path_factory) -> Struck:
    return strike_all(nodes, node_corpus, tmp_path_factory.mktemp("processes") / "run", PROCESSES)


@pytest.fixture(scope="module")
def nodes_lost(nodes, calm, node_corpus, tmp_path_factory) -> Struck:
    return strike_all(nodes, node_corpus, tmp_path_factory.mktemp("lost") / "run", NODES)


@pytest.fixture
def struck(request: pytest.FixtureRequest) -> Struck:
    of_nodes = request.node.callspec.params["strike"] in NODES
    return request.getfixturevalue("nodes_lost" if of_nodes else "processes_lost")


@pytest.mark.parametrize("strike", [*PROCESSES, *NODES], ids=str)
def test_a_stage_that_loses_its_workers_ends_with_every_row(strike, struck, calm):
    if strike not in struck.hits and strike.stage in SHORT:
        pytest.skip(f"{strike.stage} was over before it could be struck")
    assert strike in struck.hits, struck.said
    ended, undisturbed = (
        Manifest.read(Folder(str(run / STAGES[strike.stage]))) for run in (struck.run, calm)
    )
    assert ended and undisturbed, struck.said
    assert ended.ledger == undisturbed.ledger
    assert ended.ledger is None or ended.ledger.balanced


@pytest.mark.parametrize("lost", ["processes_lost", "nodes_lost"])
def test_the_job_ends_as_the_undisturbed_one(lost, request, calm, capsys):
    struck = request.getfixturevalue(lost)
    with capsys.disabled():
        print("\nfault | stage | struck")
        for strike, victim in struck.hits.items():
            print(f"{strike} | {victim}")
    assert struck.code == 0, struck.said
    assert scores(struck.run) == scores(calm)
    for folder in (artifact.CLEAN_ROWS, artifact.REMOVED_ROWS):
        assert parquet_digests(struck.run / folder) == parquet_digests(calm / folder)
