"""What several files share: a finished defence on this machine, and a cluster of several nodes
with the run on it that no fault disturbed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cluster import RayNodes
from tests.small import SETTINGS, defend, draw_small

# Rows of the first shard that hold no image, and what they hold instead.
BROKEN = {3: b"", 17: b"no image", 30: None, 41: "truncated"}
WITHOUT = 50
"""A row without an image: not even its path is there."""
# Slices and chunks for two nodes; a fixed number of threads, since the default follows the number of actors.
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


@dataclass(frozen=True)
class Finished:
    """A defence that ended: its corpus, its run folder, what it said, and its command."""

    corpus: Path
    run: Path
    said: str

    def command(self, run: Path | None = None) -> list[str]:
        """The arguments of the same defence, of another run folder if one is given."""
        return ["--input", str(self.corpus), "--output", str(run or self.run), *SETTINGS]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """An undisturbed defence of 240 rows, four of them broken and one null, with SETTINGS. Tests do not
    change it."""
    folder = tmp_path_factory.mktemp("finished")
    corpus = draw_small(folder / "corpus")
    _break_some(corpus / "part-00000.parquet")
    process = defend("--input", str(corpus), "--output", str(folder / "run"), *SETTINGS)
    assert process.returncode == 0, process.said
    return Finished(corpus, folder / "run", process.said)


def _break_some(shard: Path) -> None:
    table = pq.read_table(shard)
    images = table["image"].to_pylist()
    for row, data in BROKEN.items():
        images[row]["bytes"] = images[row]["bytes"][:200] if data == "truncated" else data
    images[WITHOUT] = {"bytes": None, "path": None}
    column = pa.array(images, table.schema.field("image").type)
    index = table.schema.get_field_index("image")
    pq.write_table(table.set_column(index, table.schema.field(index), column), shard)


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
