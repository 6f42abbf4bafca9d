"""The training's batches, read by cluster tasks ahead of their use.

The tasks are plain Ray tasks in the order of their use. A rank must not have a Ray Data execution of its own:
Ray would divide what Train leaves of each node among all executions, rounding down, and on nodes of ten CPUs
each of eight ranks would get none.

B images of a batch, of one rank   2 crops of an image   C channels   H = W image side
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import ray
import torch
from torch import Tensor

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus
from poisoncam_ray.corpus.slices import slices_of
from poisoncam_ray.folder import Folder
from poisoncam_ray.stages.pixels import read_crops
from poisoncam_ray.stages.ray_cluster import RESTARTS, in_order
from poisoncam_ray.stages.training_data import Epochs, Piece

BATCHES_AHEAD = 3
"""Batches that lie ready while a step runs."""
LEAST_IN_FLIGHT = 2
"""Reading tasks of a rank: one decodes while another's result waits."""
STORE_SHARE = 0.5
"""Of the cluster's object store: what lies in it read ahead, at most. Beyond it, Ray writes to disk."""
ASK_EVERY_S = 30.0

T = TypeVar("T")


@dataclass(frozen=True)
class Batches:
    """The batches of a training.

    Attributes:
        index: the artifact of Index.
        share: of the rows, as `method.crops.in_sample` draws them: those that `epochs` counts.
        epochs: the order.
    """

    corpus: Corpus
    config: Config
    index: Folder
    share: float
    epochs: Epochs

    def read(self, rank: int, workers: int, start: int, device: torch.device) -> Iterator[Tensor]:
        """Read a rank's part of every batch. What is lost with a node, Ray reads again.

        Args:
            rank: the rank.
            workers: the number of ranks.
            start: the first step, counted through all epochs.
            device: of the rank. A GPU is fed from pinned memory, and no step waits for the copy.

        Returns:
            An iterator over x_B2CHW, uint8, of every step from `start` on: the positions of the global batch
            that `epochs.positions` gives the rank.
        """
        room = asked_now_and_then(self.config, workers, max(self.epochs.slice_rows))
        own = self.epochs.batches(
            lambda pieces: in_order(self._calls(pieces), room), self.epochs.positions(rank, workers), start
        )
        return ahead((_moved(x_B2CHW, device) for x_B2CHW in own), BATCHES_AHEAD)

    def _calls(self, pieces: Iterator[Piece]) -> Iterator[Callable[[], ray.ObjectRef]]:
        # "DEFAULT": outside of Train's placement group, whose CPUs belong to the ranks.
        task: Any = ray.remote(read_crops).options(
            num_cpus=self.config.resources.cpus_per_reader,
            max_retries=RESTARTS,
            scheduling_strategy="DEFAULT",
        )
        table = self.index.read_table(artifact.SLICES)
        given = ray.put(self.corpus), ray.put(self.config), self.index
        for piece in pieces:
            # A slice becomes an object only when it is due: those of a large corpus would fill the memory.
            (slice_,) = slices_of(table.take([piece.slice]))
            yield partial(task.remote, *given, slice_, piece.epoch, self.share, piece.rows_R)


def most_in_flight(config: Config, workers: int, slice_rows: int, cluster: Mapping[str, float]) -> int:
    """How many reading tasks each rank has in flight.

    Args:
        config: the configuration.
        workers: the number of ranks.
        slice_rows: images of a slice, at most.
        cluster: what the cluster has (`ray.cluster_resources`).

    Returns:
        As many as find place beside the ranks, shared among them, and no more than `resources.readers`; at
        least two.
    """
    resources = config.resources
    free = cluster.get("CPU", 0) - workers * resources.cpus_per_actor
    most = free / resources.cpus_per_reader
    if resources.readers is not None:
        most = min(most, resources.readers)
    if store := cluster.get("object_store_memory"):
        crops = 2 * 3 * config.encoder.image_size**2
        most = min(most, STORE_SHARE * store / (slice_rows * crops))
    return max(LEAST_IN_FLIGHT, math.floor(most / workers))


def asked_now_and_then(config: Config, workers: int, slice_rows: int) -> Callable[[], int]:
    """`most_in_flight`, where nodes may join and leave the cluster meanwhile."""
    asked, most = -math.inf, 0

    def room() -> int:
        nonlocal asked, most
        if time.monotonic() - asked > ASK_EVERY_S:
            asked, most = (
                time.monotonic(),
                most_in_flight(config, workers, slice_rows, ray.cluster_resources()),
            )
        return most

    return room


def ahead(items: Iterator[T], most: int) -> Iterator[T]:
    """The same items, made in a thread, `most` of them before they are asked for."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    due = deque(thread.submit(next, items, None) for _ in range(most))
    try:
        while (item := due.popleft().result()) is not None:
            due.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


def _moved(x_B2CHW: Tensor, device: torch.device) -> Tensor:
    """The batch on the device. On a GPU the copy is queued before the kernels that use it."""
    if device.type != "cuda":
        return x_B2CHW
    # A new thread is on the first GPU of the node, which may be another rank's.
    with torch.cuda.device(device):
        return x_B2CHW.pin_memory().to(device, non_blocking=True)
