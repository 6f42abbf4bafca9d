"""The search in a worker that keeps freed memory, against one that returns it to the system."""

from __future__ import annotations

import numpy as np

from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.research.benchmark.apart import apart
from poisoncam_ray.research.benchmark.candidate import Sizes, naive_way, prepared
from poisoncam_ray.research.benchmark.compare import Measured, Row, Setting, alternate
from poisoncam_ray.research.benchmark.search import Work, masks_of, paste_on_all, windows

SMALL = Sizes("resnet_tiny_s2", 32, 4, 11, candidates=16, naive_masks=128, flip_images=100, k=32, batch=128)
THREADS = 1
"""Threads of each process: as many as each of two actors has on two cores."""


def measure_allocator(setting: Setting, sizes: Sizes) -> Measured:
    """Two processes with the same candidates."""
    with apart(THREADS, keep=True) as keeps, apart(THREADS, keep=False) as returns:
        for process in (keeps, returns):
            process.submit(_prepare, setting, sizes).result()
        ways = (
            lambda: keeps.submit(_search, sizes).result(),
            lambda: returns.submit(_search, sizes).result(),
        )
        seconds, (ours, other) = alternate(ways, setting.rounds)
    same = all(np.array_equal(a, b) for a, b in zip(ours, other, strict=True))
    row = Row(
        f"masks and pastes of {sizes.candidates} candidates",
        ("freed memory kept", "freed memory returned"),
        (seconds[0], seconds[1]),
        f"{sizes.backbone}, {sizes.image_size} px, float32, batches of {sizes.batch}, {THREADS} thread",
        units=sizes.candidates * (sizes.naive_masks + sizes.flip_images),
        unit="forwards",
        answers="answers equal" if same else "answers differ",
    )
    return Measured([row])


_prepared: list[tuple[Encoder, Work]] = []
"""In a process apart: its encoder and its candidates."""


def _prepare(setting: Setting, sizes: Sizes) -> None:
    _prepared.append(prepared(setting, sizes, "float32"))


def _search(sizes: Sizes) -> list[np.ndarray]:
    encoder, work = _prepared[0]
    way = naive_way(sizes)
    own_N, box_N4 = windows(encoder, work, way, masks_of(way, sizes.image_size), "distance")
    return [answer.numpy() for answer in (box_N4, *paste_on_all(encoder, work, own_N, box_N4))]
