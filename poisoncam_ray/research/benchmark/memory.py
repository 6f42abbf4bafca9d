"""Peak memory of every stage against the number of rows, and the sizes of a run's files.

Images are tiny and networks do little. What is left is the flow of rows, ids and features through driver,
workers and object store, which could grow with the rows.
"""

from __future__ import annotations

import io
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch
from PIL import Image

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.defence import stages as defence
from poisoncam_ray.errors import UserError
from poisoncam_ray.facts import Facts
from poisoncam_ray.folder import Folder
from poisoncam_ray.progress import Progress
from poisoncam_ray.research.benchmark.made_up import with_checkpoint
from poisoncam_ray.research.benchmark.processes import Peaks, Sampler, sample
from poisoncam_ray.runner import Runner
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.batches import Batches
from poisoncam_ray.stages.ray_cluster import start_ray
from poisoncam_ray.stages.training_data import Epochs
from poisoncam_ray.store import whole_file

SETTINGS = (
    "encoder.image_size=16",
    "cluster.iterations=1",
    "search.masks=4",
    "search.flip_images=8",
    "search.prune=0.9",
    "classify.models=1",
    "classify.steps=6",
    "classify.top_k=8",
)
"""The smallest values of everything that does not depend on the number of rows."""

DISTINCT = 2**16
SHARD_ROWS = 2**16
PEAKS = {"driver": "driver", "worker": "largest worker", "ray": "Ray's own", "store": "object store"}


@dataclass(frozen=True)
class Shuffled(Facts):
    """Of Shuffle."""

    rows: int

    @property
    def summary(self) -> str:
        return f"{self.rows:,} rows"


class Shuffle(Stage):
    """One epoch of training batches, read and shuffled in a worker as Pretrain does, without the training."""

    name = f"{artifact.WORK}/shuffled"
    title = "Shuffle"
    version = 1
    inputs = (artifact.INDEX,)
    sections = ("pretrain",)

    def run(self, run: Run) -> Outcome:
        settings = run.config.pretrain
        epochs = Epochs(run.slice_rows(), 1, settings.batch_size, run.config.seed, settings.shuffle_rows)
        batches = Batches(run.corpus, run.config, run.folder / artifact.INDEX, 1.0, epochs)
        read = ray.remote(_read_epoch).options(num_cpus=run.config.resources.cpus_per_actor)
        return Outcome(Shuffled(ray.get(read.remote(batches))))


def _read_epoch(batches: Batches) -> int:
    return sum(len(x_B2CHW) for x_B2CHW in batches.read(0, 1, 0, torch.device("cpu")))


class Watch(Progress):
    """Records the peaks of each stage. A resumed run keeps those of the stages that it had finished."""

    def __init__(self, out: Folder) -> None:
        super().__init__()
        self.out, self.sampler = out, Sampler()
        self.stages: list[dict[str, Any]] = out.read_json("stages.json") if out.exists("stages.json") else []

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        self.sampler.peaks, began = Peaks(), time.monotonic()
        with super().stage(title):
            yield
        # A stage may end before the first sample.
        self.sampler.peaks.raise_to(sample())
        self.stages.append(
            {"stage": title, "seconds": time.monotonic() - began, **asdict(self.sampler.peaks)}
        )
        self.out.write_json("stages.json", self.stages)


def measure_memory(config: Config, out: Folder, rows: int) -> str:
    """Run the defence over tiny images in a local cluster, and record peak memory and file sizes.

    The run lies in `out`/rows-N. memory.json and memory.md in `out` hold all such runs. A killed run resumes.

    Args:
        config: the configuration.
        out: the folder of the results.
        rows: number of images.

    Returns:
        The text of memory.md.

    Raises:
        UserError: Ray runs in this process already; the measurement needs its own cluster.
    """
    if ray.is_initialized():
        raise UserError("The memory benchmark needs a Ray cluster of its own: start it in a new process.")
    folder = out / f"rows-{rows}"
    draw_tiny_corpus(folder / "corpus", rows, config.seed)
    config = with_checkpoint(config, folder)
    first, *others = defence()
    runner = Runner((folder / "corpus").uri, (folder / "run").uri, config, [first, Shuffle(), *others])
    start_ray()
    watch = Watch(folder)
    watch.sampler.start()
    try:
        runner.run(watch)
    finally:
        watch.sampler.stop()
        ray.shutdown()
    folder.write_json(
        "memory.json", {"rows": rows, "stages": watch.stages, "files": file_sizes(folder / "run")}
    )
    names = (name for name in out.names() if (out / name).exists("memory.json"))
    found = sorted(((out / name).read_json("memory.json") for name in names), key=lambda one: one["rows"])
    table = markdown(found)
    out.write_json("memory.json", found)
    out.write_bytes("memory.md", table.encode())
    return table


def draw_tiny_corpus(folder: Folder, rows: int, seed: int) -> None:
    """Write Parquet shards of images of 2 × 2 px, about 90 bytes each.

    They are noise. A number after the end of each picture makes all bytes different.

    Args:
        folder: where the shards lie.
        rows: number of images.
        seed: seed of the noise.
    """
    starts = range(0, rows, SHARD_ROWS)
    if folder.exists(_shard(len(starts) - 1)):
        return
    rng = np.random.default_rng(seed)
    pixels_NHWC = rng.integers(0, 256, (min(rows, DISTINCT), 2, 2, 3), dtype=np.uint8)
    images = pa.array([_png(pixels_HWC) for pixels_HWC in pixels_NHWC], pa.binary())
    for shard, first in enumerate(starts):
        numbers = np.arange(first, min(first + SHARD_ROWS, rows))
        drawn = images.take(pa.array(rng.integers(0, len(images), len(numbers))))
        own = pc.cast(pc.cast(pa.array(numbers), pa.string()), pa.binary())
        table = pa.table({"image": pc.binary_join_element_wise(drawn, own, b"")})
        with whole_file(folder.uri, _shard(shard)) as path:
            pq.write_table(table, path, row_group_size=1024)


def _shard(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _png(pixels_HWC: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels_HWC).save(sink, "PNG")
    return sink.getvalue()


def file_sizes(run: Folder) -> dict[str, dict[str, int]]:
    """Number and bytes of a run's files. Files that differ in their number only are counted together."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: {"files": 0, "bytes": 0})
    for path, info in run.filesystem.find(run.path, detail=True).items():
        kind = re.sub(r"\d{3,}", "*", str(path)[len(run.path.rstrip("/")) + 1 :])
        found[kind]["files"] += 1
        found[kind]["bytes"] += info["size"]
    return dict(found)


def markdown(measured: list[dict[str, Any]]) -> str:
    """Tables of the peaks in MiB for each number of rows, of their growth, and of the files."""
    lines = ["| rows | stage | seconds | " + " | ".join(PEAKS.values()) + " |", "|---:|---|" + "---:|" * 5]
    for one in measured:
        for at in one["stages"]:
            peaks = (f"{at[kind]:.0f}" for kind in PEAKS)
            lines.append(_row(f"{one['rows']:,}", at["stage"], f"{at['seconds']:.0f}", *peaks))
    small, large = measured[0], measured[-1]
    if small is not large:
        lines += ["", f"Peaks at {large['rows']:,} rows over those at {small['rows']:,}:", ""]
        lines += ["| stage | " + " | ".join(PEAKS.values()) + " |", "|---|" + "---:|" * 4]
        after = {at["stage"]: at for at in large["stages"]}
        for at in small["stages"]:
            ratios = (f"{after[at['stage']][k] / at[k]:.2f}" if at[k] else "–" for k in PEAKS)
            lines.append(_row(at["stage"], *ratios))
    lines += ["", f"Files of the run over {large['rows']:,} rows:", ""]
    lines += ["| files | number | bytes | bytes a row |", "|---|---:|---:|---:|"]
    for kind, size in sorted(large["files"].items()):
        share = size["bytes"] / large["rows"]
        lines.append(_row(kind, f"{size['files']:,}", f"{size['bytes']:,}", f"{share:.2f}"))
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
