"""How stages use Ray: connect, stream slices through tasks and actors, one committed part a slice.

A slice (a fixed run of corpus rows) is the unit of work, of loss and of commit: block layout changes between
runs, slices do not. Ray Data sees one row per slice. Torch is not imported here: reading and decoding tasks
run in many processes, and it would cost each of them seconds.

N images   C channels   H = W encoder image side
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, Slice
from poisoncam_ray.decode import decode
from poisoncam_ray.errors import LedgerError
from poisoncam_ray.folder import Folder, part_index, part_name
from poisoncam_ray.stage import Run

# Reading, training workers and actor pools wait for each other without an error when logical CPUs run out.
LOCAL_CPUS = 8
NO_PROGRESS_S = 900
START_TRIES = 3
WAVE = 4096
# Of one task or actor: preempted nodes come and go, but one that dies every time must fail the job.
RESTARTS = 20
# Files in memory beside their pixels.
FETCHED_AT_ONCE = 256

Pixels = NDArray[np.uint8]


def connect() -> None:
    """Join the cluster of RAY_ADDRESS (set inside `ray job submit`), or start one on this machine."""
    if not ray.is_initialized():
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if not os.environ.get("RAY_ADDRESS"):
            # "local": a cluster that happens to run here is joined only when RAY_ADDRESS says so.
            cpus = max(LOCAL_CPUS, os.cpu_count() or 1)
            quiet |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        _start(quiet)
    hush()


def _start(options: dict[str, Any]) -> None:
    """Ray gives its own processes a fixed 30 s to start, which a busy machine can exceed."""
    for left in reversed(range(START_TRIES)):
        try:
            ray.init(**options)
            return
        except Exception as error:
            ray.shutdown()
            if left == 0 or "timed out during startup" not in str(error):
                raise


def hush() -> None:
    """Our line a stage replaces Ray Data's progress; a stuck pipeline raises instead of waiting."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    # Or the cause of a failed task, perhaps a sentence of ours, is lost on its way to the driver.
    context.raise_original_map_exception = True
    for name in ("ray.data", "ray.train", "ray.util"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def readers(config: Config) -> ray.data.TaskPoolStrategy:
    """How many reading tasks run at once."""
    return ray.data.TaskPoolStrategy(size=config.resources.readers)


def missing(slices: list[Slice], out: Folder) -> list[Slice]:
    """Slices whose part is not committed yet."""
    done = {part_index(name) for name in out.parts()}
    return [piece for piece in slices if piece.index not in done]


@dataclass(frozen=True)
class Filled:
    """What `fill_parts` did: rows of all parts, slices in all, and slices that were finished before."""

    rows: int
    slices: int
    reused: int


def fill_parts(run: Run, stream: Callable[[list[Slice]], Iterator[Any]]) -> Filled:
    """Write the part of every slice that has none yet.

    Args:
        run: whose `out` gets the parts.
        stream: writes the parts of the slices that it is given, and yields once for each.
    """
    slices = run.slices()
    todo = missing(slices, run.out)
    for _ in stream(todo):
        pass
    return Filled(run.out.total_rows(), len(slices), len(slices) - len(todo))


def read_slice(corpus: Corpus, config: Config, index: Folder, piece: Slice) -> tuple[list[str], Pixels]:
    """Ids and pixels x_NCHW of the slice's indexed rows, in order.

    Raises LedgerError when the corpus no longer holds what was indexed.
    """
    indexed = index.read_table(part_name(piece.index), ["image_id", *digest_columns(piece)])
    # Each image's digest, None in a shard.
    ids, *digests = (column.to_pylist() for column in indexed.columns)
    wanted = dict(zip(ids, *digests, strict=True)) if digests else dict.fromkeys(ids)
    size = config.encoder.image_size
    x_NCHW = np.empty((len(ids), 3, size, size), np.uint8)
    found: list[str] = []
    for row in corpus.read(piece):
        if row.image_id in wanted:
            if row.error:
                raise LedgerError(f"{row.image_id} could be read when it was indexed: {row.error[1]}")
            digest = wanted[row.image_id]
            if digest and hashlib.sha256(row.data or b"").hexdigest() != digest:
                raise LedgerError(f"{row.image_id} changed since it was indexed: use a new output folder")
            x_NCHW[len(found)] = decode_indexed(row.data, config)
            found.append(row.image_id)
    if found != ids:
        raise LedgerError(f"{piece.source} changed since it was indexed: use a new output folder")
    return ids, x_NCHW


def digest_columns(piece: Slice) -> list[str]:
    """The column of the index that says whether an image is still the one that was indexed: of a folder's
    slices alone, since of a shard the version is checked where it is opened."""
    return ["sha256"] if piece.files else []


def fetch_images(corpus: Corpus, config: Config, ids: list[str]) -> Pixels:
    """Pixels x_NCHW of images anywhere in the corpus, in the order of `ids`."""
    size = config.encoder.image_size
    x_NCHW = np.empty((len(ids), 3, size, size), np.uint8)
    for first in range(0, len(ids), FETCHED_AT_ONCE):
        for i, data in enumerate(corpus.fetch(ids[first : first + FETCHED_AT_ONCE]), first):
            x_NCHW[i] = decode_indexed(data, config)
    return x_NCHW


def decode_indexed(data: bytes | None, config: Config) -> Pixels:
    limits = config.corpus
    return decode(data or b"", config.encoder.image_size, limits.max_pixels, limits.max_bytes)


def stream_slices(
    run: Run, todo: list[Slice], work: Callable[[Slice], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """`work` on every slice as a Ray Data task; yields its small dictionaries as they come."""
    on_slice = partial(_on_slice, work=work)
    cpus = run.config.resources.cpus_per_reader
    for wave, seen in _waves(todo):
        dataset = _dataset(wave).map(on_slice, compute=readers(run.config), num_cpus=cpus)
        yield from _count(run, dataset, seen, len(todo))


def stream_images(
    run: Run, todo: list[Slice], actor: type, arguments: tuple[Any, ...]
) -> Iterator[dict[str, Any]]:
    """Decode every slice in CPU tasks, hand it to a pool of `actor`s: actor(*arguments)(index, ids, x_NCHW).

    Yields the actors' small dictionaries as they come.
    """
    resources = run.config.resources
    read = partial(_decode_slice, corpus=run.corpus, config=run.config, index=run.folder / artifact.INDEX)
    for wave, seen in _waves(todo):
        most = min(resources.actors, len(wave))
        dataset = (
            _dataset(wave)
            .map(read, compute=readers(run.config), num_cpus=resources.cpus_per_reader)
            .map_batches(
                _OnImages,
                fn_constructor_args=(actor, arguments, run.config.encoder.image_size),
                batch_size=1,
                batch_format="pyarrow",
                # One slice under work in an actor, one waiting: all that a lost node can take with it.
                compute=ray.data.ActorPoolStrategy(
                    min_size=min(resources.min_actors, most), max_size=most, max_tasks_in_flight_per_actor=2
                ),
                num_cpus=resources.cpus_per_actor,
                num_gpus=resources.gpus_per_actor,
            )
        )
        yield from _count(run, dataset, seen, len(todo))


def _waves(todo: list[Slice]) -> Iterator[tuple[list[Slice], int]]:
    """Runs of slices small enough for one dataset, each with the number of slices before it: the driver keeps
    a record of every block of a dataset until the dataset is done."""
    for first in range(0, len(todo), WAVE):
        yield todo[first : first + WAVE], first


def stream_pixels(order: Iterator[Slice], corpus: Corpus, config: Config, index: Folder) -> Iterator[Pixels]:
    """x_NCHW of each slice in the order given, decoded by cluster tasks ahead of their use."""
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    read = partial(_decode_slice, corpus=corpus, config=config, index=index)
    while wave := list(islice(order, WAVE)):
        dataset = _dataset(wave).map(read, compute=readers(config), num_cpus=config.resources.cpus_per_reader)
        for row in dataset.iter_rows():
            yield as_pixels(row["pixels"], config.encoder.image_size)


def in_flight(submit: Iterator[Callable[[], ray.ObjectRef]], most: int) -> Iterator[Any]:
    """Results of plain tasks as they come, at most `most` of them under way or waiting in the cluster."""
    waiting: list[ray.ObjectRef] = []
    for call in submit:
        if len(waiting) >= most:
            ready, waiting = ray.wait(waiting)
            yield from ray.get(ready)
        waiting.append(call())
    while waiting:
        ready, waiting = ray.wait(waiting)
        yield from ray.get(ready)


class _OnImages:
    def __init__(self, actor: type, arguments: tuple[Any, ...], size: int) -> None:
        self.size, self.actor = size, actor(*arguments)

    def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        row = batch.to_pylist()[0]
        x_NCHW = as_pixels(row["pixels"], self.size)
        return {key: [value] for key, value in self.actor(row["index"], row["ids"], x_NCHW).items()}


def as_pixels(data: bytes, size: int) -> Pixels:
    """x_NCHW from the bytes that travel between processes; a copy, since torch must be able to write."""
    return np.frombuffer(bytearray(data), np.uint8).reshape(-1, 3, size, size)


def _dataset(todo: list[Slice]) -> ray.data.Dataset:
    items = [{"slice": json.dumps(asdict(piece))} for piece in todo]
    return ray.data.from_items(items, override_num_blocks=len(items))


def _on_slice(row: dict[str, Any], work: Callable[[Slice], dict[str, Any]]) -> dict[str, Any]:
    return work(Slice(**json.loads(row["slice"])))


def _decode_slice(row: dict[str, Any], corpus: Corpus, config: Config, index: Folder) -> dict[str, Any]:
    piece = Slice(**json.loads(row["slice"]))
    ids, x_NCHW = read_slice(corpus, config, index, piece)
    return {"index": piece.index, "ids": ids, "pixels": x_NCHW.tobytes()}


def _count(run: Run, dataset: ray.data.Dataset, seen: int, total: int) -> Iterator[dict[str, Any]]:
    for done, row in enumerate(dataset.iter_rows(), start=seen + 1):
        run.progress.update(f"{done} of {total} slices")
        yield row
