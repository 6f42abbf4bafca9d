"""A training epoch through Ray Train against a bare loop, and two workers against one.

N images   B images of a batch   2 crops of an image   C channels   H = W image side
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import Tensor

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, Slice, open_by
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.benchmark.apart import apart
from poisoncam_ray.research.benchmark.compare import Measured, Row, Setting, alternate
from poisoncam_ray.research.benchmark.images import draw_images
from poisoncam_ray.research.benchmark.inference import loaded
from poisoncam_ray.research.benchmark.step_parts import make_trainer, random_batch
from poisoncam_ray.research.benchmark.timed_stage import Clock, TimedStage, stage_config
from poisoncam_ray.runner import Runner
from poisoncam_ray.stages.batches import Batches
from poisoncam_ray.stages.index import Index
from poisoncam_ray.stages.pixels import read_crops
from poisoncam_ray.stages.precision import choose
from poisoncam_ray.stages.pretrain import Job, Pretrain
from poisoncam_ray.stages.ray_cluster import hush, start_ray

EPOCH_AT_LEAST, WORKERS_AT_LEAST = 0.9, 1.8


@dataclass(frozen=True)
class Sizes:
    """Of the parts `epoch` and `workers`.

    Attributes:
        backbone, image_size: the encoder.
        images: in the corpus.
        stored: the side of a stored image in pixels.
        rows_per_slice: rows of a slice.
        batch: images of a batch.
        epochs: of one training. The first is left out: it waits for the readers.
        stub_images: in the corpus of the stub.
        stub_rate: images that one stub accelerator trains on in a second.
    """

    backbone: str = "resnet_tiny"
    image_size: int = 32
    images: int = 4096
    stored: int = 64
    rows_per_slice: int = 512
    batch: int = 256
    epochs: int = 3
    stub_images: int = 8192
    stub_rate: float = 1000.0


def measure_epoch(setting: Setting, sizes: Sizes) -> Measured:
    """The Pretrain stage against a bare loop over the same bytes, and against steps alone."""
    corpus = draw_images(setting.out / "corpora", sizes.images, sizes.stored, sizes.stored, shards=4)
    config, folder = _config(setting, sizes, 1), setting.out / "epoch"
    stage = TimedStage(corpus, folder / "run", config, [Index(), Pretrain()])
    ours: list[float] = []
    bare: list[float] = []
    alone: list[float] = []

    def train() -> None:
        stage.again()
        ends = [at["seconds"] for at in stage.out.read_json(artifact.HISTORY)]
        ours.append(ends[-1] - ends[0])

    with apart(setting.threads) as process:

        def loop() -> None:
            bare.append(process.submit(_bare, corpus.uri, config, folder / "run", setting.threads).result())

        def steps() -> None:
            alone.append(process.submit(_steps, config, sizes.images // sizes.batch).result())

        alternate((train, loop, steps), setting.rounds, warm=False)
    shown = (sizes.epochs - 1) * (sizes.images // sizes.batch) * sizes.batch
    regime = (
        f"{sizes.backbone}, {sizes.image_size} px, {config.pretrain.precision}, "
        f"batches of {sizes.batch}; {sizes.images:,} JPEGs of "
        f"{sizes.stored} px in slices of {sizes.rows_per_slice}; the first epoch left out"
    )
    what, ways = f"{sizes.epochs - 1} epochs of training", ("Ray Train", "bare loop, same bytes")
    return Measured(
        [
            Row(what, ways, (ours, bare), regime, at_least=EPOCH_AT_LEAST, units=shown),
            Row(
                what,
                ("Ray Train", "steps alone, on crops in memory"),
                (ours, [s * (sizes.epochs - 1) for s in alone]),
                regime,
                units=shown,
            ),
        ]
    )


def measure_workers(setting: Setting, sizes: Sizes) -> Measured:
    """Two training workers against one, each with an accelerator whose step sleeps."""
    corpus = draw_images(setting.out / "corpora", sizes.stub_images, sizes.stored, sizes.stored, shards=4)
    folder = setting.out / "workers"
    start_ray()
    spent: dict[int, list[float]] = {1: [], 2: []}

    def train(workers: int) -> None:
        config = _config(setting, sizes, workers)
        Runner(corpus.uri, (folder / f"{workers}").uri, config, [Index()]).run(Clock())
        spent[workers].append(_with_stub(corpus, folder / f"{workers}", config, sizes))

    alternate((lambda: train(2), lambda: train(1)), setting.rounds, warm=False)
    row = Row(
        "an epoch with stub accelerators",
        ("two workers", "one worker"),
        (spent[2], spent[1]),
        f"each accelerator sleeps through {sizes.stub_rate:,.0f} images/s, ranks meet after every step; "
        f"{sizes.stub_images:,} JPEGs of {sizes.stored} px, two crops of {sizes.image_size} px; "
        "from the first batch to the last",
        at_least=WORKERS_AT_LEAST,
        units=_shown(sizes),
    )
    return Measured([row])


def _shown(sizes: Sizes) -> int:
    """Images between the first batch and the last, the last included."""
    return (sizes.stub_images // sizes.batch - 1) * sizes.batch


def _config(setting: Setting, sizes: Sizes, workers: int) -> Config:
    return stage_config(
        setting,
        f"encoder.backbone={sizes.backbone}",
        f"encoder.image_size={sizes.image_size}",
        f"corpus.rows_per_slice={sizes.rows_per_slice}",
        f"pretrain.batch_size={sizes.batch}",
        f"pretrain.epochs={sizes.epochs}",
        f"pretrain.shuffle_rows={4 * sizes.batch}",
        f"pretrain.workers={workers}",
        "pretrain.checkpoint_every=100000",
    )


def rows_of(run: Folder) -> list[int]:
    """Indexed rows of each slice."""
    return (run / artifact.INDEX).read_table(artifact.SLICES, ["rows"])["rows"].to_pylist()


# ---------------------------------------------------------------- the bare loop, in a process without Ray


def _bare(uri: str, config: Config, run: Folder, readers: int) -> float:
    """Seconds of all epochs but the first, with a DataLoader that decodes and cuts crops."""
    epochs, ends = config.pretrain.epochs, list[float]()
    trainer = make_trainer(config, choose(config.pretrain.precision, gpu=False))
    torch.set_flush_denormal(True)
    slices = loaded(uri, config, run, readers, _crops, epochs)
    batches = _batches(iter(slices), config.pretrain.batch_size)
    per_epoch = sum(rows_of(run)) // config.pretrain.batch_size
    for step, x_B2CHW in enumerate(islice(batches, epochs * per_epoch)):
        trainer.step(step, x_B2CHW)
        if (step + 1) % per_epoch == 0:
            ends.append(time.perf_counter())
    return ends[-1] - ends[0]


def _steps(config: Config, n: int) -> float:
    """Seconds of n steps on crops in memory."""
    trainer = make_trainer(config, choose(config.pretrain.precision, gpu=False))
    torch.set_flush_denormal(True)
    x_B2CHW = random_batch(config)
    trainer.step(0, x_B2CHW)
    began = time.perf_counter()
    for step in range(n):
        trainer.step(step, x_B2CHW)
    return time.perf_counter() - began


def _crops(corpus: Corpus, config: Config, index: Folder, slice_: Slice, epoch: int) -> Tensor:
    return torch.from_numpy(read_crops(corpus, config, index, slice_, epoch))


def _batches(slices: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """Batches x_B2CHW in the order of the slices. Rows left over are dropped."""
    held: list[Tensor] = []
    for slice_N2CHW in slices:
        held.append(slice_N2CHW)
        if sum(map(len, held)) >= size:
            x_N2CHW = torch.cat(held)
            full = len(x_N2CHW) // size * size
            yield from x_N2CHW[:full].split(size)
            held = [x_N2CHW[full:]]


# ---------------------------------------------------------------- a training whose steps sleep


def _with_stub(corpus: Folder, run: Folder, config: Config, sizes: Sizes) -> float:
    """Seconds between the first batch and the last of an epoch, of the slowest rank."""
    index = run / artifact.INDEX
    job = Job(
        config, open_by(config.corpus, corpus.uri), index, run / artifact.ENCODER, rows_of(run), share=1.0
    )
    steps = sizes.stub_images // sizes.batch
    name = f"poisoncam-stub-{uuid.uuid4().hex[:8]}"
    trainer = TorchTrainer(
        sleep_through,
        train_loop_config={"job": job, "rate": sizes.stub_rate, "steps": steps, "out": run},
        scaling_config=ScalingConfig(
            num_workers=config.pretrain.workers,
            resources_per_worker={"CPU": config.resources.cpus_per_actor},
        ),
        run_config=RunConfig(name=name, storage_path=str(Path(tempfile.gettempdir()) / name)),
    )
    trainer.fit()
    return max(run.read_json(f"rank-{rank}.json") for rank in range(config.pretrain.workers))


def sleep_through(config: dict[str, Any]) -> None:
    """Read one epoch as a rank of Ray Train, and sleep as long as an accelerator would compute.

    Args:
        config: the job, the accelerator's rate, the steps of the epoch, and the folder for the seconds.
    """
    job: Job = config["job"]
    hush()
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    began = 0.0
    batches = Batches(job.corpus, job.config, job.index, job.share, job.epochs)
    for step, x_B2CHW in enumerate(batches.read(rank, world, 0, torch.device("cpu"))):
        time.sleep(len(x_B2CHW) / config["rate"])
        if world > 1:
            dist.all_reduce(torch.zeros(1))
        if step == 0:
            began = time.perf_counter()
        if step + 1 == config["steps"]:
            break
    config["out"].write_json(f"rank-{rank}.json", time.perf_counter() - began)
