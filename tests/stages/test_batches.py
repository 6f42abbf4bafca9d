"""Training batches as tasks of the cluster read them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image

from poisoncam_ray import artifact
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.corpus.slices import slice_table
from poisoncam_ray.folder import Folder, part_name
from poisoncam_ray.method.crops import in_sample
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.batches import Batches, ahead, most_in_flight
from poisoncam_ray.stages.index import index_slice
from poisoncam_ray.stages.ray_cluster import in_order
from poisoncam_ray.stages.sample import count_drawn
from poisoncam_ray.stages.training_data import Epochs
from tests.small import QUICK, ROOT

SIDE = 16
ROWS = [0, 7, 9, 0, 12, 5]
CPU = torch.device("cpu")


def png(value: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), value, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def made(folder: Path) -> Batches:
    """A corpus whose image i is of shade i throughout, in slices of ROWS rows that decode."""
    shade = count()
    (folder / "corpus").mkdir(parents=True)
    for shard, n in enumerate(ROWS):
        images = [png(next(shade)) for _ in range(n)]
        # A shard of broken rows only is a slice without any; elsewhere one breaks the numbering of rows.
        images.insert(n // 2, b"broken")
        table = pa.table({"image": pa.array(images, pa.binary())})
        pq.write_table(table, folder / "corpus" / f"{shard}.parquet")
    config = load_config(overrides=[f"encoder.image_size={SIDE}", "pretrain.batch_size=8"])
    corpus, run = open_corpus(str(folder / "corpus")), Folder(str(folder / "run"))
    index, slices = run / artifact.INDEX, corpus.slices()
    for slice_ in slices:
        index_slice(slice_, corpus, config, index, run / artifact.DEAD_ROWS)
    index.write_table(artifact.SLICES, slice_table(slices, ROWS))
    return Batches(corpus, config, index, 1.0, Epochs(ROWS, 2, 8, 0, 20))


@pytest.fixture(scope="module")
def batches(tmp_path_factory) -> Batches:
    return made(tmp_path_factory.mktemp("batches"))


def shades(stream: Iterator[torch.Tensor]) -> list[list[int]]:
    return [x_B2CHW[:, 0, 0, 0, 0].tolist() for x_B2CHW in stream]


def test_batches_cover_the_corpus_and_a_resumed_stream_is_the_tail(ray_cluster, batches):
    assert batches.epochs.steps_per_epoch == 4 and batches.epochs.lanes == 1
    stream = list(batches.read(0, 1, 0, CPU))
    assert all(x.shape == (8, 2, 3, SIDE, SIDE) and x.dtype == torch.uint8 for x in stream)
    assert all(bool((x == x[:, :1, :1, :1, :1]).all()) for x in stream), "both crops are of one image"
    everything = shades(iter(stream))
    assert len(everything) == batches.epochs.total == 8
    for epoch in (everything[:4], everything[4:]):
        seen = [s for batch in epoch for s in batch]
        assert len(set(seen)) == 32 and set(seen) <= set(range(33))
    assert everything[:4] != everything[4:]
    for step in (3, 6, 8):
        assert shades(batches.read(0, 1, step, CPU)) == everything[step:]


def test_two_workers_read_exactly_the_rows_that_one_reads(ray_cluster, batches):
    two = zip(*(batches.read(rank, 2, 0, CPU) for rank in (0, 1)), strict=True)
    one = batches.read(0, 1, 0, CPU)
    for x_B2CHW, parts in zip(one, two, strict=True):
        assert [len(part) for part in parts] == [4, 4]
        assert torch.equal(torch.cat(parts), x_B2CHW)


def test_of_a_sample_only_its_rows_are_read(ray_cluster, batches):
    counted = count_drawn(batches.index, [part_name(i) for i in range(len(ROWS))], 0, 0.6)
    rows = [counted[i] for i in range(len(ROWS))]
    assert 8 <= sum(rows) < sum(ROWS)
    some = Batches(batches.corpus, batches.config, batches.index, 0.6, Epochs(rows, 2, 8, 0, 20))
    seen = {shade for batch in shades(some.read(0, 1, 0, CPU)) for shade in batch}
    names = [
        batches.index.read_table(part_name(i), ["image_id"])["image_id"].to_pylist() for i in range(len(ROWS))
    ]
    ids = [image_id for part in names for image_id in part]
    assert seen <= {i for i, image_id in enumerate(ids) if in_sample(0, 0.6, image_id)}
    assert len(seen) >= some.epochs.steps_per_epoch * 8


def test_a_sample_is_a_share_of_every_shard_and_another_with_another_seed():
    ids = [f"shard-{shard:03d}#{row}" for shard in range(20) for row in range(500)]
    drawn = {image_id for image_id in ids if in_sample(3, 0.2, image_id)}
    assert abs(len(drawn) - 2000) < 200
    by_shard = Counter(image_id.split("#")[0] for image_id in drawn)
    assert len(by_shard) == 20 and min(by_shard.values()) > 50
    assert drawn < {image_id for image_id in ids if in_sample(3, 0.4, image_id)}
    assert abs(len(drawn & {image_id for image_id in ids if in_sample(4, 0.2, image_id)}) - 400) < 100
    assert all(in_sample(seed, 1.0, image_id) for seed in range(3) for image_id in ids)


def test_results_come_in_order_and_a_bounded_number_ahead(ray_cluster):
    @ray.remote(num_cpus=0.1)
    def slow_first(i: int) -> int:
        time.sleep(0.3 if i == 0 else 0)
        return i

    submitted: list[int] = []

    def call(i: int):
        submitted.append(i)
        return slow_first.remote(i)

    room = 4
    taken = in_order((lambda i=i: call(i) for i in range(20)), lambda: room)
    assert next(taken) == 0 and len(submitted) == 4
    assert [next(taken) for _ in range(3)] == [1, 2, 3] and len(submitted) == 7
    # The cluster has shrunk: no more is submitted until what is due has been taken.
    room = 2
    assert list(taken) == list(range(4, 20)) and submitted == list(range(20))


CLUSTER = {"CPU": 80.0, "GPU": 8.0, "object_store_memory": 160e9}


@pytest.mark.parametrize(
    ("settings", "workers", "cluster", "each"),
    [
        (["resources.cpus_per_actor=4", "resources.readers=null"], 8, CLUSTER, 12),
        (["resources.cpus_per_actor=4", "resources.readers=null"], 2, CLUSTER, 72),
        # Other nodes join.
        (["resources.cpus_per_actor=4", "resources.readers=null"], 8, CLUSTER | {"CPU": 160.0}, 32),
        (["resources.cpus_per_actor=4", "resources.readers=40"], 8, CLUSTER, 5),
        # Where the ranks hold every CPU, the waiting readers are what tells of it.
        (["resources.cpus_per_actor=10", "resources.readers=null"], 8, CLUSTER, 2),
        # Half the object store holds 16 pieces of 1,024 images of 64 px.
        (
            ["resources.cpus_per_actor=4", "resources.readers=null", "encoder.image_size=64"],
            8,
            CLUSTER | {"object_store_memory": 32 * 1024 * 6 * 64**2},
            2,
        ),
        (
            ["resources.cpus_per_actor=4", "resources.readers=null", "encoder.image_size=64"],
            4,
            CLUSTER | {"object_store_memory": 32 * 1024 * 6 * 64**2},
            4,
        ),
    ],
)
def test_each_rank_has_its_share_of_the_free_cpus_in_flight(settings, workers, cluster, each):
    assert most_in_flight(load_config(overrides=settings), workers, 1024, cluster) == each


def test_items_are_made_ahead_in_a_thread():
    made: list[int] = []
    asked = threading.Event()

    def items() -> Iterator[int]:
        for i in range(6):
            made.append(i)
            yield i
        asked.wait()
        raise ValueError("the seventh")

    found = ahead(items(), 3)
    assert next(found) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3], "no more than three wait"
    asked.set()
    assert [next(found) for _ in range(5)] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="the seventh"):
        next(found)
    assert list(ahead(iter([1, 2]), 3)) == [1, 2]


ON_FAKE_GPUS = """
import json, sys
from pathlib import Path

import ray
import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from tests.stages.test_batches import made, shades

folder = Path(sys.argv[1])


def train(config):
    rank = ray.train.get_context().get_world_rank()
    seen = shades(config["batches"].read(rank, 4, 0, torch.device("cpu")))
    group = ray.util.get_current_placement_group()
    told = {"seen": seen, "gpus": ray.get_gpu_ids(), "group": bool(group)}
    (folder / f"{rank}.json").write_text(json.dumps(told))


ray.init(num_cpus=7, num_gpus=4, include_dashboard=False, log_to_driver=False)
TorchTrainer(
    train,
    torch_config=TorchConfig(backend="gloo"),
    train_loop_config={"batches": made(folder / "made")},
    scaling_config=ScalingConfig(num_workers=4, use_gpu=True, resources_per_worker={"CPU": 1, "GPU": 1}),
    run_config=RunConfig(name="train", storage_path=str(folder / "train")),
).fit()
"""


@pytest.mark.cluster
def test_the_readers_of_every_rank_run_beside_trains_own_bundles(tmp_path, batches):
    """Four ranks with a GPU and a CPU each, on a node of seven CPUs: Ray Data would give each rank 3 // 4 = 0
    CPUs to read with (tests/infra/test_reading.py)."""
    subprocess.run(
        [sys.executable, "-c", ON_FAKE_GPUS, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | QUICK | {"RAY_ADDRESS": "local"},
        check=True,
        timeout=240,
        capture_output=True,
    )
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    assert sorted(gpu for each in told for gpu in each["gpus"]) == [0, 1, 2, 3]
    assert all(each["group"] for each in told)
    joined = [list(chain(*parts)) for parts in zip(*(each["seen"] for each in told), strict=True)]
    ours = batches.epochs
    stream = ours.batches(_by_shade, ours.positions(0, 1))
    assert joined == [x_B.tolist() for x_B in stream]


def _by_shade(pieces) -> Iterator[np.ndarray]:
    starts = np.cumsum([0, *ROWS])
    return (starts[piece.slice] + piece.rows_R for piece in pieces)
