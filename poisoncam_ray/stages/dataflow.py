"""Streams over slices: each slice goes through Ray tasks and actors, and gives one committed part.

A slice (a fixed run of corpus rows) is the unit of work, of loss and of commit: Ray Data's blocks change from
run to run, slices do not. A dataset has one row a slice.

Torch is not imported here: reading and decoding tasks run in many processes, and it would cost each of them
seconds.

N images   C channels   H = W encoder image side
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, Slice
from poisoncam_ray.folder import Folder, part_index
from poisoncam_ray.stage import Run
from poisoncam_ray.stages.pixels import SecondViews, as_pixels, read_slice, read_views
from poisoncam_ray.stages.ray_cluster import actors_at_most

# Slices of one dataset: the driver keeps a record of every block of a dataset until the dataset is done.
WAVE = 4096


def missing(slices: list[Slice], out: Folder) -> list[Slice]:
    """The slices that have no part in `out` yet."""
    done = {part_index(name) for name in out.parts()}
    return [slice_ for slice_ in slices if slice_.index not in done]


@dataclass(frozen=True)
class Filled:
    """What `fill_parts` did.

    Attributes:
        rows: rows of all parts.
        slices: slices in all.
        reused: slices whose part an earlier attempt had written.
    """

    rows: int
    slices: int
    reused: int


def fill_parts(run: Run, stream: Callable[[list[Slice]], Iterator[Any]]) -> Filled:
    """Write the part of every slice that has none yet.

    Args:
        run: the run; the parts lie in its `out`.
        stream: writes the part of each slice that it is given, and yields once for each.

    Returns:
        How many rows and slices there are now.
    """
    slices = run.slices()
    todo = missing(slices, run.out)
    reused = len(slices) - len(todo)
    run.progress.update(reused, len(slices), "slices")
    for done, _ in enumerate(stream(todo), start=reused + 1):
        run.progress.update(done, len(slices), "slices")
    return Filled(run.out.total_rows(), len(slices), reused)


def stream_slices(
    run: Run, todo: list[Slice], work: Callable[[Slice], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Call a function on every slice, each in a Ray Data task.

    Args:
        run: the run, whose resources are used.
        todo: the slices.
        work: returns a small dictionary.

    Yields:
        What `work` returns, in the order in which the tasks end.
    """
    on_slice = partial(_on_slice, work=work)
    cpus = run.config.resources.cpus_per_reader
    for wave in _waves(todo):
        yield from (
            _dataset(wave).map(on_slice, compute=readers(run.config, len(wave)), num_cpus=cpus).iter_rows()
        )


def stream_images(
    run: Run, todo: list[Slice], actor: type, arguments: tuple[Any, ...], both_views: bool = False
) -> Iterator[dict[str, Any]]:
    """Decode every slice in a CPU task, and call an actor of a pool on its images.

    Args:
        run: the run, whose resources are used.
        todo: the slices.
        actor: the class of the actors. An instance is called as (index of the slice, image ids, x_NCHW) and
            returns a small dictionary.
        arguments: of the class's constructor.
        both_views: whether the actors also get, as a fourth argument, the SecondViews of the slice.

    Yields:
        What the actors return, in the order in which they end.
    """
    resources = run.config.resources
    decode = _decode_both_views if both_views else _decode_slice
    read = partial(decode, corpus=run.corpus, config=run.config, index=run.folder / artifact.INDEX)
    for wave in _waves(todo):
        most = min(actors_at_most(resources, run.config.pretrain.workers), len(wave))
        dataset = (
            _dataset(wave)
            .map(read, compute=readers(run.config, len(wave)), num_cpus=resources.cpus_per_reader)
            .map_batches(
                _OnImages,
                fn_constructor_args=(actor, arguments, run.config.encoder.image_size),
                batch_size=1,
                batch_format="pyarrow",
                # One slice under work in an actor and one that waits: a lost node loses no more than these.
                compute=ray.data.ActorPoolStrategy(
                    min_size=min(resources.min_actors, most), max_size=most, max_tasks_in_flight_per_actor=2
                ),
                num_cpus=resources.cpus_per_actor,
                num_gpus=resources.gpus_per_actor,
            )
        )
        yield from dataset.iter_rows()


def readers(config: Config, slices: int) -> ray.data.TaskPoolStrategy:
    """How many reading tasks run at once: no more than there are `slices`, or Ray warns."""
    most = config.resources.readers
    return ray.data.TaskPoolStrategy(size=None if most is None else min(most, slices))


class _OnImages:
    """The actor as Ray Data makes it: one row, which is one slice, at a time."""

    def __init__(self, actor: type, arguments: tuple[Any, ...], size: int) -> None:
        self.size, self.actor = size, actor(*arguments)

    def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        row = batch.to_pylist()[0]
        given = [row["index"], row["ids"], as_pixels(row["pixels"], self.size)]
        if "second" in row:
            rows_M = np.frombuffer(bytearray(row["second_rows"]), np.int32)
            part_M4 = np.frombuffer(bytearray(row["second_parts"]), np.int32).reshape(-1, 4)
            given.append(SecondViews(rows_M, as_pixels(row["second"], self.size), part_M4))
        return {key: [value] for key, value in self.actor(*given).items()}


def _waves(todo: list[Slice]) -> Iterator[list[Slice]]:
    """The slices of one dataset after the other."""
    for first in range(0, len(todo), WAVE):
        yield todo[first : first + WAVE]


def _dataset(todo: list[Slice]) -> ray.data.Dataset:
    return _of_rows([_as_row(slice_) for slice_ in todo])


def _as_row(slice_: Slice) -> dict[str, Any]:
    return {"slice": json.dumps(asdict(slice_))}


def _of_rows(rows: list[dict[str, Any]]) -> ray.data.Dataset:
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def _on_slice(row: dict[str, Any], work: Callable[[Slice], dict[str, Any]]) -> dict[str, Any]:
    return work(Slice(**json.loads(row["slice"])))


def _decode_slice(row: dict[str, Any], corpus: Corpus, config: Config, index: Folder) -> dict[str, Any]:
    slice_ = Slice(**json.loads(row["slice"]))
    ids, x_NCHW = read_slice(corpus, config, index, slice_)
    return {"index": slice_.index, "ids": ids, "pixels": x_NCHW.tobytes()}


def _decode_both_views(row: dict[str, Any], corpus: Corpus, config: Config, index: Folder) -> dict[str, Any]:
    slice_ = Slice(**json.loads(row["slice"]))
    ids, x_NCHW, second = read_views(corpus, config, index, slice_)
    return {
        "index": slice_.index,
        "ids": ids,
        "pixels": x_NCHW.tobytes(),
        "second_rows": second.rows_M.tobytes(),
        "second": second.x_MCHW.tobytes(),
        "second_parts": second.part_M4.tobytes(),
    }
