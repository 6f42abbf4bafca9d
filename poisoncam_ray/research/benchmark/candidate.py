"""What one candidate of the search costs: the naive loop, batches, low precision, every saver, the race.

A forward pass costs the same whichever mask or paste it sees, so the long ways are timed on a part of their
work, in turns with the others, and scaled up. What is timed whole says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from poisoncam_ray.config import Precision
from poisoncam_ray.method.encoder import Encoder, build_encoder
from poisoncam_ray.method.masks import SMOOTH, cell_of_patches
from poisoncam_ray.method.race import RaceRules, pastes
from poisoncam_ray.research.benchmark.compare import (
    Measured,
    Row,
    Setting,
    added,
    alternate,
    low_precision,
    scaled,
)
from poisoncam_ray.research.benchmark.images import pixels
from poisoncam_ray.research.benchmark.search import (
    Work,
    masks_of,
    one_at_a_time,
    paste_in_race,
    paste_on_all,
    windows,
    work_on,
)
from poisoncam_ray.research.study.flops import NAIVE, Bill, Way, bill, forward_flops, steps
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.compute import device
from poisoncam_ray.stages.precision import dtype_of
from poisoncam_ray.stages.ranking import race_rules

PAPER = 1
"""A naive loop has one candidate at a time."""


@dataclass(frozen=True)
class Sizes:
    """Of the parts `cam` and `pastes`.

    Attributes:
        backbone, image_size: the encoder.
        cell, window: sides in pixels.
        candidates: in one search.
        masks: of our ways; None: as many as the preset's.
        naive_masks: of the paper's way.
        flip_images: flip-test images.
        k: clusters.
        batch: images through the encoder at once, on a CPU.
        saver_candidates: candidates that a saver is timed on.
        sampled: the naive loop does one in so many of its masks and pastes.
        all_pastes: whether pasting on all is timed whole.
    """

    backbone: str = "vit_small_patch16_224"
    image_size: int = 224
    cell: int = 28
    window: int = 60
    candidates: int = 16
    masks: int | None = None
    naive_masks: int = 256
    flip_images: int = 1000
    k: int = 20
    batch: int = 32
    saver_candidates: int = 2
    sampled: int = 16
    all_pastes: bool = False


FULL = Sizes()


def measure_cam(setting: Setting, sizes: Sizes) -> Measured:
    """The naive loop against batches, against low precision, and against each saver."""
    encoder, work = prepared(setting, sizes, "float32")
    low, side, rules = low_precision(), sizes.image_size, shipped_race()
    fast = copy.deepcopy(encoder).freeze(dtype_of(low))
    naive = naive_way(sizes)
    ours_way = shipped_way(sizes, encoder.patch_size)
    named = steps(naive, ours_way)
    way_names, ways = zip(*named, strict=True)
    bills = [bill(encoder, way) for way in (naive, *ways)]
    part = work.some(PAPER, max(1, sizes.flip_images // sizes.sampled))
    m_BHW = masks_of(naive, side)[:: sizes.sampled].to(device())
    masks = [masks_of(way, side).to(device()) for way in ways]
    few = work.some(sizes.saver_candidates, 1)

    def batched(encoder: Encoder) -> None:
        own_N, box_N4 = windows(encoder, part, naive, m_BHW, "hard")
        paste_on_all(encoder, part, own_N, box_N4)

    def pasted() -> None:
        paste_on_all(fast, part, part.own_N, _corner(part, sizes.window))

    def found(way: Way, m_BHW: Tensor) -> None:
        windows(fast, few, way, m_BHW, "distance")

    def whole() -> None:
        own_N, box_N4 = windows(fast, work, ways[-1], masks[-1], "distance")
        paste_in_race(fast, work, own_N, box_N4, rules)

    looped = partial(one_at_a_time, encoder, part, naive, m_BHW, "hard")
    # The last way differs from the one before by its pastes alone, and is timed whole.
    savers = [partial(found, *one) for one in zip(ways[:-1], masks[:-1], strict=True)]
    todo: list[Callable[[], object]] = [looped, partial(batched, encoder), partial(batched, fast)]
    todo += [pasted, *savers, whole]
    seconds, _ = alternate(todo, setting.rounds, warm=False)
    n_part = len(m_BHW) + len(part.x_FCHW)
    forwards = sizes.naive_masks + sizes.flip_images
    loop, batch32, batch16 = (scaled(s, forwards / n_part) for s in seconds[:3])
    all_pastes = scaled(seconds[3], sizes.flip_images / len(part.x_FCHW))
    ours = [added(scaled(s, 1 / sizes.saver_candidates), all_pastes) for s in seconds[4:-1]]
    ours.append(scaled(seconds[-1], 1 / sizes.candidates))
    where = f"{sizes.backbone}, {side} px, batches of {work.batch}, a candidate"
    found_rows = [
        Row("naive bill", ("batches, float32", "one at a time"), (batch32, loop), where, None, _two(bills)),
        Row("naive bill", (f"batches, {low}", "one at a time"), (batch16, loop), where, None, _two(bills)),
    ]
    for name, each, cost in zip(way_names, ours, bills[1:], strict=True):
        last = cost is bills[-1]
        found_rows.append(
            Row(
                "search of one candidate",
                (f"{'all of these, and ' if last else '+ '}{name}, {low}", "naive loop, float32"),
                (each, loop),
                f"{where}; {ours_way.masks} masks"
                + (f"; whole, {sizes.candidates} candidates" if last else "; pastes scaled"),
                at_least=8 if last else None,
                flop=(cost.total, bills[0].total),
                flop_at_least=10 if last else None,
            )
        )
    forward = forward_flops(encoder)
    notes = [
        f"One forward pass: {forward / 1e9:.3g} GFLOP. The naive loop did one in {sizes.sampled} of its "
        f"{sizes.naive_masks} masks and {sizes.flip_images} pastes and is scaled up; savers were timed on "
        f"{sizes.saver_candidates} candidates, and {len(part.x_FCHW)} pastes are scaled to those of all.",
        "A bill, in whole forward passes (masks / refinement / checks / pastes): "
        + "; ".join(
            f"{name} {_shares(cost, forward)}"
            for name, cost in zip(("naive", *way_names), bills, strict=True)
        )
        + ".",
    ]
    return Measured(found_rows, notes=notes)


def measure_pastes(setting: Setting, cases: tuple[Sizes, ...]) -> Measured:
    """Every candidate pasted on all flip-test images, against the race."""
    return Measured([_pastes(setting, sizes) for sizes in cases])


def _pastes(setting: Setting, sizes: Sizes) -> Row:
    low, rules, n_flip = low_precision(), shipped_race(), sizes.flip_images
    encoder, work = prepared(setting, sizes, low)
    box_N4 = _corner(work, sizes.window)
    part, factor = work, 1.0
    if not sizes.all_pastes:
        part = work.some(PAPER, max(1, n_flip // sizes.sampled))
        factor = sizes.candidates * n_flip / len(part.x_FCHW)

    def on_all() -> tuple[Tensor, Tensor]:
        return paste_on_all(encoder, part, part.own_N, box_N4[: len(part.x_NCHW)])

    def in_race() -> Tensor:
        return paste_in_race(encoder, work, work.own_N, box_N4, rules).order_N

    seconds, (race_order_N, (changed_N, _)) = alternate((in_race, on_all), setting.rounds, warm=False)
    n_raced = pastes(sizes.candidates, n_flip, rules)
    forward = forward_flops(encoder)
    answers = ""
    if sizes.all_pastes:
        stayed = int(sizes.candidates * rules.keep) or 1
        best = set(changed_N.topk(stayed).indices.tolist())
        kept = len(best & set(race_order_N[:stayed].tolist()))
        answers = f"{kept} of the {stayed} best are the same (an untrained encoder)"
    return Row(
        f"pastes of {sizes.candidates} candidates",
        (f"race, {n_raced:,} pastes", f"all, {sizes.candidates * n_flip:,} pastes"),
        (seconds[0], scaled(seconds[1], factor)),
        f"{sizes.backbone}, {sizes.image_size} px, batches of {work.batch}, {low}; first "
        f"{rules.first} images, factor {rules.factor}, {rules.keep:.3g} kept"
        + ("" if sizes.all_pastes else f"; of all pastes {len(part.x_FCHW)} were timed"),
        flop=(n_raced * forward, sizes.candidates * n_flip * forward),
        answers=answers,
    )


def shipped_race() -> RaceRules:
    """The rules of the race in the preset at the paper's sizes."""
    return race_rules(load_config("imagenet100").search)


def shipped_way(sizes: Sizes, patch_size: int | None) -> Way:
    """How the preset at the paper's sizes treats a candidate, at these sizes."""
    settings = load_config("imagenet100").search
    cell = sizes.cell
    if settings.hiding == "drop" and settings.strategy not in SMOOTH:
        cell = cell_of_patches(cell, patch_size or 1)
    if settings.strategy == "gradcam":
        raise ValueError("Grad-CAM has no masks to count")
    return Way(
        settings.strategy, sizes.masks or settings.masks, cell, sizes.window, settings.hiding,
        settings.refine, settings.refine_hidden, settings.refine_shown, settings.refine_passes, checks=2,
        flip_images=sizes.flip_images, rules=race_rules(settings), candidates=sizes.candidates,
    )  # fmt: skip


def prepared(setting: Setting, sizes: Sizes, precision: Precision) -> tuple[Encoder, Work]:
    """An untrained encoder for inference at this precision, and its work."""
    torch.manual_seed(0)
    encoder = build_encoder(sizes.backbone, sizes.image_size).to(device()).freeze(dtype_of(precision))
    x_NCHW = pixels(sizes.candidates + sizes.flip_images, sizes.image_size).to(device())
    return encoder, work_on(encoder, x_NCHW, sizes.candidates, sizes.k, setting.batch(sizes.batch))


def naive_way(sizes: Sizes) -> Way:
    """The paper's way, at these sizes."""
    return Way(
        NAIVE.strategy, sizes.naive_masks, sizes.cell, sizes.window, refine=False, checks=0,
        flip_images=sizes.flip_images,
    )  # fmt: skip


def _corner(work: Work, window: int) -> Tensor:
    """box_N4 in a corner: where a window lies does not change what its pastes cost."""
    return torch.tensor([[0, 0, window, window]], device=work.x_NCHW.device).expand(len(work.x_NCHW), 4)


def _two(bills: list[Bill]) -> tuple[float, float]:
    return bills[0].total, bills[0].total


def _shares(cost: Bill, forward: int) -> str:
    parts = (cost.masks, cost.refinement, cost.checks, cost.pastes)
    told = " / ".join(f"{part / forward:,.1f}" for part in parts)
    return f"{told} = {cost.total / forward:,.0f}"
