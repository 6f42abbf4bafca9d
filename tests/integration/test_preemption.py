"""A node with a preemption notice: its work goes on elsewhere, and at most one slice is done again. And where
actors that ask for GPUs are placed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch

from poisoncam_ray import artifact
from poisoncam_ray.folder import MANIFEST
from poisoncam_ray.method.encoder import build_encoder
from tests.cluster import Node, RayNodes, until
from tests.small import QUICK, ROOT, draw_small, parquet_digests

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

# Index, an encoder of one's own, Embed: as the command line runs them.
PROGRAM = """
import sys
from poisoncam_ray.defence import stages as defence
from poisoncam_ray.runner import Runner
from poisoncam_ray.progress import Progress
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.ray_cluster import start_ray

runner = Runner(sys.argv[1], sys.argv[2], load_config(None, None, sys.argv[3:]), defence()[:3])
start_ray()
runner.run(Progress())
"""
# Images large enough that Embed takes longer than the notice.
SIDE = 224
NOTICE_S = 3
SETTINGS = ["corpus.rows_per_slice=16", f"encoder.image_size={SIDE}", "resources.threads_per_actor=1"]
ACTOR, READER = r"MapWorker\(MapBatches\(_OnImages\)\)", r"Map\(_decode_\w+\)"


class Watched:
    """The program under way; notes every write of a part, and the most actors and readers on each node."""

    def __init__(self, nodes: RayNodes, corpus: Path, run: Path, *settings: str) -> None:
        self.nodes, self.features = nodes, run / artifact.FEATURES
        self.writes: set[tuple[str, int]] = set()
        self.most: dict[str, Counter[str]] = {ACTOR: Counter(), READER: Counter()}
        encoder = f"encoder.checkpoint={corpus.parent / 'encoder.safetensors'}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(corpus), str(run), *SETTINGS, encoder, *settings],
            cwd=ROOT,
            env=os.environ | QUICK | nodes.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            # A part is renamed into place: another file each time it is written.
            self.writes |= {(part.name, part.stat().st_ino) for part in self.features.glob("part-*")}
            for title, most in self.most.items():
                most |= Counter(node.ip for node, _ in self.nodes.find(title))
            time.sleep(0.05)

    def finish(self) -> None:
        said, _ = self.process.communicate(timeout=600)
        self._watcher.join()
        assert self.process.returncode == 0, said

    @property
    def over(self) -> bool:
        return self.process.poll() is not None or (self.features / MANIFEST).exists()

    @property
    def written_again(self) -> int:
        return len(self.writes) - len({name for name, _ in self.writes})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few pictures many times over, and an untrained encoder beside them."""
    folder = tmp_path_factory.mktemp("preempted")
    few = draw_small(folder / "few", 160)
    (many := folder / "corpus").mkdir()
    for shard in sorted(few.glob("*.parquet")):
        pq.write_table(pa.concat_tables([pq.read_table(shard)] * 20), many / shard.name)
    encoder = build_encoder("resnet_tiny_s2", SIDE, None)
    safetensors.torch.save_file(encoder.state_dict(), folder / "encoder.safetensors")
    return many


@pytest.fixture(scope="module")
def gpu_nodes(nodes: RayNodes) -> Iterator[list[Node]]:
    """Two nodes with one GPU each, by Ray's books, beside the two without."""
    added = [nodes.add_node(gpus=1) for _ in range(2)]
    yield added
    for node in added:
        nodes.kill_node(node)


@pytest.fixture(scope="module")
def undisturbed(nodes, gpu_nodes, corpus, tmp_path_factory) -> Watched:
    half = ["resources.gpus_per_actor=0.5", "resources.min_actors=4", "resources.actors=4"]
    job = Watched(nodes, corpus, tmp_path_factory.mktemp("undisturbed") / "run", *half)
    job.finish()
    return job


def test_half_a_gpu_puts_two_actors_on_each_and_none_elsewhere(undisturbed, gpu_nodes):
    assert set(undisturbed.most[ACTOR]) == {node.ip for node in gpu_nodes}
    # A process that ends keeps its title while the next one starts.
    assert min(undisturbed.most[ACTOR].values()) >= 2


def test_decoding_goes_on_without_a_gpu(undisturbed, gpu_nodes):
    assert set(undisturbed.most[READER]) - {node.ip for node in gpu_nodes}


def test_a_preempted_node_costs_at_most_what_was_under_way(undisturbed, nodes, gpu_nodes, corpus, tmp_path):
    lost = gpu_nodes[0]
    whole = ["resources.gpus_per_actor=1", "resources.min_actors=2", "resources.actors=2"]
    job = Watched(nodes, corpus, tmp_path / "run", *whole)
    until(lambda: len(job.writes) > 5 or job.over, 300, "Embed did not start")
    nodes.drain_node(lost, NOTICE_S)
    time.sleep(NOTICE_S)
    held_an_actor, struck = lost.ip in job.most[ACTOR], not job.over
    nodes.kill_node(lost)
    job.finish()
    assert held_an_actor
    assert struck
    assert undisturbed.written_again == 0
    assert job.written_again <= 1
    assert parquet_digests(job.features) == parquet_digests(undisturbed.features)
