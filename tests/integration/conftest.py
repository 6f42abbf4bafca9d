"""A cluster of several nodes, and the run that no fault disturbed: made once for all tests that strike."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import RayNodes
from tests.small import SETTINGS, defend, draw_small

# Units enough for two nodes; threads fixed, since by default they follow the number of nodes.
ON_NODES = [
    *SETTINGS,
    "corpus.rows_per_slice=16",
    "pretrain.workers=2",
    "pretrain.epochs=1",
    "pretrain.batch_size=32",
    "pretrain.checkpoint_every=1",
    "resources.readers=1",
    "search.chunk=3",
    "resources.actors=2",
    "resources.threads_per_actor=1",
]


def defend_on(nodes: RayNodes, corpus: Path, run: Path, *settings: str) -> subprocess.Popen:
    """Start the defence as a client of the cluster."""
    command = ["--input", str(corpus), "--output", str(run), *ON_NODES, *settings]
    return defend(*command, wait=False, environment=nodes.environment())


@pytest.fixture(scope="session")
def nodes() -> Iterator[RayNodes]:
    """A head without CPUs and two workers."""
    with RayNodes(2, cpus=4) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def node_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_small(tmp_path_factory.mktemp("nodes") / "corpus", 160)


@pytest.fixture(scope="session")
def calm(nodes: RayNodes, node_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a defence of `node_corpus` that nothing disturbed."""
    run = tmp_path_factory.mktemp("nodes") / "calm"
    process = defend_on(nodes, node_corpus, run)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return run
