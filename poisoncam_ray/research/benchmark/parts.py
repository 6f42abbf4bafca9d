"""The parts of the benchmark, and how they are run: one after the other, each written as soon as it is done.

A part that was measured before with the same sizes on the same machine, with the same versions, is not
measured again. A part that fails says so, and the others still run.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

import poisoncam_ray
from poisoncam_ray.errors import UserError
from poisoncam_ray.fingerprint import fingerprint
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.benchmark import (
    allocator,
    candidate,
    decode,
    epoch,
    exponents,
    inference,
    peaks,
    precision,
    search_stage,
    shards,
    training,
    whole_run,
)
from poisoncam_ray.research.benchmark.compare import Measured, Setting
from poisoncam_ray.research.benchmark.machine import load, machine
from poisoncam_ray.research.benchmark.page import markdown
from poisoncam_ray.stages.compute import keep_freed_memory

JSON, PAGE = "benchmark.json", "benchmark.md"


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: as `--part` takes it.
        title: its heading.
        measure: measures it.
        full: its sizes.
        quick: sizes that take seconds, for a test that all works. Their figures mean nothing.
        rounds: the most rounds, where one takes long.
    """

    name: str
    title: str
    measure: Callable[[Setting, Any], Measured]
    full: Any
    quick: Any
    rounds: int = 9


SMALL = candidate.Sizes("resnet_tiny_s2", 32, 4, 11, naive_masks=128, k=32, batch=256, all_pastes=True)
TINY_VIT = candidate.Sizes(
    "vit_tiny_convstem", 32, 4, 11, candidates=4, masks=8, naive_masks=8, flip_images=8, k=4, batch=8,
    saver_candidates=2, sampled=2,
)  # fmt: skip
TINY = candidate.Sizes(
    "resnet_tiny_s2", 32, 4, 11, candidates=8, masks=8, naive_masks=8, flip_images=16, k=4, batch=16,
    all_pastes=True,
)  # fmt: skip
TINY_NETWORK = precision.Network("resnet_tiny_s2", 32, 8, 4)
TINY_CASE = inference.Case("resnet_tiny_s2", 32, 64, 48, 16, 16)
PARTS = (
    Part("cam", "Search of one candidate", candidate.measure_cam, candidate.FULL, TINY_VIT),
    Part("pastes", "Pastes", candidate.measure_pastes, (candidate.FULL, SMALL), (TINY,), 2),
    Part(
        "search", "The Search stage", search_stage.measure_search, search_stage.Sizes(),
        search_stage.Sizes(TINY_VIT, None, (), 64, 48, 4, 1), 2,
    ),
    Part(
        "share", "Everything after Pretrain, counted", whole_run.count_share, whole_run.Sizes(),
        whole_run.Sizes("tiny-cnn", ("cluster.k=16",), 500),
    ),
    Part(
        "embed", "Embed", inference.measure_embed, inference.EMBED, (TINY_CASE,),
    ),
    Part("judge", "Judge", inference.measure_judge, inference.JUDGE, (TINY_CASE,)),
    Part(
        "step", "A training step", training.measure_step, training.Sizes(),
        training.Sizes((("resnet_tiny_s2", 32, 16),), 1),
    ),
    Part(
        "epoch", "A training epoch", epoch.measure_epoch, epoch.Sizes(),
        epoch.Sizes("resnet_tiny_s2", 32, 64, 48, 16, 16, 2), 2,
    ),
    Part(
        "workers", "Two training workers", epoch.measure_workers, epoch.Sizes(),
        epoch.Sizes("resnet_tiny_s2", 32, 64, 48, 16, 16, 1, 64, 1000),
    ),
    Part(
        "decode", "Decoding", decode.measure_decode, decode.Sizes(),
        decode.Sizes(4, ((64, 64), (100, 75)), (32, 64)), 5,
    ),
    Part(
        "shards", "Index and Clean", shards.measure_shards, shards.Sizes(), shards.Sizes(64, 48, 2),
    ),
    Part("memory", "Peak memory", peaks.measure_peaks, peaks.Sizes(), peaks.Sizes((300,))),
    Part(
        "exponents", "Growth", exponents.measure_exponents, exponents.Sizes(),
        exponents.Sizes(8, 64, 4, 2, 4, TINY),
    ),
    Part(
        "precision", "Low precision", precision.measure_precision, precision.Sizes(),
        precision.Sizes(
            (TINY_NETWORK,), (TINY_NETWORK,), 64, 64,
        ),
    ),
    Part("allocator", "Freed memory", allocator.measure_allocator, allocator.SMALL, TINY),
)  # fmt: skip
NAMES = tuple(part.name for part in PARTS)


def measure(
    setting: Setting, names: Sequence[str] = NAMES, quick: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure parts of the benchmark, and write benchmark.json and benchmark.md after each.

    Args:
        setting: of the benchmark.
        names: of the parts.
        quick: with the small sizes.
        say: prints a line.

    Returns:
        benchmark.json: `parts` by name, each with the identity and the machine that it was measured with, and
        with `rows`, `tables` and `notes`, or with `failed`.

    Raises:
        UserError: there is no such part.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise UserError(f"There is no part {unknown[0]}: use {', '.join(NAMES)}.")
    torch.set_num_threads(setting.threads)
    keep_freed_memory()
    found = _read(setting.out)
    for part in PARTS:
        if part.name in names:
            found[part.name] = _one(part, setting, quick, found.get(part.name), say)
            _write(setting.out, found)
    return dict(setting.out.read_json(JSON))


def _one(
    part: Part, setting: Setting, quick: bool, earlier: dict[str, Any] | None, say: Callable[[str], None]
) -> dict[str, Any]:
    setting = replace(setting, rounds=min(setting.rounds, part.rounds))
    sizes, facts = part.quick if quick else part.full, machine(setting.threads)
    identity = fingerprint(
        {
            "part": part.name,
            "sizes": repr(sizes),
            "rounds": setting.rounds,
            "overrides": list(setting.overrides),
            "machine": facts,
            "version": poisoncam_ray.__version__,
        }
    )
    if earlier and earlier["identity"] == identity and "failed" not in earlier:
        say(f"{part.name:<9} measured before")
        return earlier
    say(f"{part.name:<9} …")
    about = {
        "title": part.title,
        "quick": quick,
        "identity": identity,
        "machine": facts,
        "load_before": load(),
    }
    began = time.monotonic()
    try:
        measured = part.measure(setting, sizes).as_json()
    except UserError:
        raise
    except Exception as error:
        traceback.print_exc()
        say(f"{part.name:<9} failed: {type(error).__name__}: {error}")
        return about | {"failed": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    seconds = time.monotonic() - began
    say(f"{part.name:<9} done ({seconds:.0f} s)")
    return about | measured | {"seconds": seconds, "rounds": setting.rounds, "sizes": _sizes(sizes)}


def _sizes(sizes: Any) -> Any:
    return [asdict(one) for one in sizes] if isinstance(sizes, tuple) else asdict(sizes)


def _read(out: Folder) -> dict[str, Any]:
    earlier = out.read_json(JSON)["parts"] if out.exists(JSON) else {}
    return {name: part for name, part in earlier.items() if name in NAMES}


def _write(out: Folder, found: dict[str, Any]) -> None:
    out.write_json(JSON, {"parts": found})
    # From the file, whose keys are sorted: whoever has the file can write the same page.
    out.write_bytes(PAGE, markdown(out.read_json(JSON)).encode())
