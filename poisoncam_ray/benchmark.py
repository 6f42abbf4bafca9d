"""What the method and the cluster cost: two ways of the same work in turns, in one run on one machine.

Timings drift with whatever else a machine does; two ways that take turns drift together. So every line is a
ratio taken round by round, with its median and its spread, and says whether both ways gave the same answers.

N candidates   B masks, or images of a training batch   F flip-test images   K clusters   D feature dimensions
C channels   H = W encoder image side   w window side
"""

from __future__ import annotations

import io
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from poisoncam_ray.artifact import Folder
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.decode import DecodeError, decode
from poisoncam_ray.errors import UserError
from poisoncam_ray.method.augment import two_views
from poisoncam_ray.method.cam import (
    ScoreKind,
    best_window,
    candidate_windows,
    heat_map,
    mask_scores,
    mean_colour,
)
from poisoncam_ray.method.encoder import Encoder, build_encoder
from poisoncam_ray.method.kmeans import assign, auto_k, kmeans
from poisoncam_ray.method.masks import keep_only, make_masks
from poisoncam_ray.method.moco import MoCoV3
from poisoncam_ray.method.paste import crop, random_places
from poisoncam_ray.method.score import poison_scores
from poisoncam_ray.progress import Progress
from poisoncam_ray.stages.compute import device, set_threads

COLUMNS = ("work", "ours", "rate", "against", "rate", "ratio", "answers")
LEARNING_RATE = 1e-4  # any: the batch stays the same and nobody looks at the weights
# A stage shorter than this many start-ups is mostly start-up: no rate without it can be told.
START_UPS = 3


@dataclass(frozen=True)
class Sizes:
    """`candidates` scored and `steps` trained in one round; `rounds` of each way."""

    candidates: int = 16
    steps: int = 10
    rounds: int = 5


@dataclass(frozen=True)
class Comparison:
    """One line of the table. `ways`: ours and the other; `rates`: units a second of both in every round."""

    work: str
    unit: str
    ways: tuple[str, str]
    rates: tuple[list[float], list[float]]
    answers: str
    facts: dict[str, Any]

    @property
    def ratios(self) -> list[float]:
        return [ours / other for ours, other in zip(*self.rates, strict=True)]


def benchmark(
    uri: str, config: Config, out: Folder, sizes: Sizes, peak: tuple[float, float] | None, use_ray: bool
) -> str:
    """Measure all three and write benchmark.json and benchmark.md into `out`; returns the Markdown.

    `peak`: the device's TFLOP/s in float32 and in bfloat16, as its maker states them; without it no share of
    the peak is told. UserError when the corpus at `uri` is too small.
    """
    set_threads(config.resources, processes=1)
    facts = machine() | {"load_before": os.getloadavg()[0]}
    found: list[Comparison] = []
    for compared in _comparisons(uri, config, out, sizes, use_ray):
        found.append(_with_share(compared, peak))
        rows = [asdict(c) | {"ratios": c.ratios} for c in found]
        out.write_json("benchmark.json", {"machine": facts, "sizes": asdict(sizes), "comparisons": rows})
        out.write_bytes("benchmark.md", markdown(found, facts).encode())
    return markdown(found, facts)


def _comparisons(uri: str, config: Config, out: Folder, sizes: Sizes, use_ray: bool) -> Iterator[Comparison]:
    batch = config.pretrain.batch_size // config.pretrain.workers
    n = max(batch, sizes.candidates + config.search.flip_images)
    x_NCHW = first_images(uri, config, n).to(device())
    yield compare_search(x_NCHW, config, sizes)
    yield compare_training(x_NCHW[:batch], config, sizes)
    if use_ray:
        yield from compare_embed(uri, config, out, sizes.rounds)


def alternate(ways: Sequence[Callable[[], Any]], rounds: int) -> tuple[list[list[float]], list[Any]]:
    """Seconds of each way in each round, and each way's answer from an untimed first call.

    Every other round goes backwards: a steady drift favours no way.
    """
    answers = [way() for way in ways]
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(rounds):
        order = range(len(ways)) if turn % 2 == 0 else reversed(range(len(ways)))
        for i in order:
            _synchronize()
            began = time.perf_counter()
            ways[i]()
            _synchronize()
            seconds[i].append(time.perf_counter() - began)
    return seconds, answers


@dataclass(frozen=True)
class Candidates:
    """What one actor of the search works on, on one device."""

    x_NCHW: Tensor
    own_N: Tensor
    seeds_N: Tensor
    x_FCHW: Tensor
    y_F: Tensor
    c_KD: Tensor
    m_BHW: Tensor
    keep_B: Tensor
    kind: ScoreKind
    window: int
    batch: int


def compare_search(x_NCHW: Tensor, config: Config, sizes: Sizes) -> Comparison:
    """Cluster Activation Masking and poison scores: shared batches against one image at a time."""
    encoder = fresh_encoder(config)
    work = candidates(encoder, x_NCHW, config, sizes.candidates)
    forwards = len(work.x_NCHW) * (len(work.m_BHW) + len(work.x_FCHW))
    ways = (lambda: batched(encoder, work), lambda: one_at_a_time(encoder, work))
    seconds, (ours, other) = alternate(ways, sizes.rounds)
    windows = int((ours[0] == other[0]).all(dim=1).sum())
    counts = int(((ours[1] == other[1]) & (ours[2] == other[2])).sum())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder.embed(work.x_FCHW)
    return Comparison(
        work=f"masks and pastes of {len(work.x_NCHW)} candidates",
        unit="forwards/s",
        ways=(f"batches of {work.batch}", "one at a time"),
        rates=_rates(forwards, seconds),
        answers=f"{windows} of {len(work.x_NCHW)} windows and {counts} of {len(work.x_NCHW)} counts equal",
        facts={
            "forwards": forwards,
            "flop_per_unit": counter.get_total_flops() / len(work.x_FCHW),
            "precision": "float32",
        },
    )


def candidates(encoder: Encoder, x_NCHW: Tensor, config: Config, n: int) -> Candidates:
    """The first `n` images as candidates, the next as flip-test images, clusters of them all."""
    settings, side = config.search, config.encoder.image_size
    with torch.inference_mode():
        f_ND = torch.cat(
            [encoder.embed(x_BCHW.float() / 255) for x_BCHW in x_NCHW.split(settings.batch_size)]
        )
    c_KD = kmeans(f_ND, config.cluster.k or auto_k(len(f_ND)), config.cluster.iterations, config.seed)
    y_N, _ = assign(f_ND, c_KD)
    generator = torch.Generator().manual_seed(config.seed)
    m_BHW = make_masks(
        settings.strategy, settings.masks, side, config.cell_px, config.window_px, generator
    ).to(x_NCHW.device)
    flip = slice(n, n + settings.flip_images)
    return Candidates(
        x_NCHW=x_NCHW[:n].float() / 255,
        own_N=y_N[:n],
        seeds_N=torch.arange(n),
        x_FCHW=x_NCHW[flip].float() / 255,
        y_F=y_N[flip],
        c_KD=c_KD,
        m_BHW=m_BHW,
        keep_B=keep_only(settings.strategy, len(m_BHW)).to(x_NCHW.device),
        kind=settings.score,
        window=config.window_px,
        batch=settings.batch_size,
    )


def batched(encoder: Encoder, work: Candidates) -> tuple[Tensor, Tensor, Tensor]:
    """As the search stage calls the method: box_N4, changed_N, gain_N."""
    box_N4, _ = candidate_windows(
        encoder, work.x_NCHW, work.own_N, work.c_KD, work.m_BHW, work.kind, work.keep_B, work.window,
        mean_colour(work.x_NCHW), work.batch,
    )  # fmt: skip
    changed_N, gain_N = poison_scores(
        encoder, crop(work.x_NCHW, box_N4), work.x_FCHW, work.y_F, work.own_N, work.c_KD, work.seeds_N,
        work.batch,
    )  # fmt: skip
    return box_N4, changed_N, gain_N


@torch.inference_mode()
def one_at_a_time(encoder: Encoder, work: Candidates) -> tuple[Tensor, Tensor, Tensor]:
    """The same written down as one says it: one image, one mask, one paste, one forward."""
    found = []
    for x_CHW, own, seed in zip(work.x_NCHW, work.own_N, work.seeds_N, strict=True):
        fill_C11 = x_CHW.mean(dim=(1, 2), keepdim=True)
        scores = []
        for m_HW in work.m_BHW:
            f_1D = encoder.embed((x_CHW * m_HW + fill_C11 * (1 - m_HW))[None])
            scores.append(mask_scores(f_1D[None], own[None], work.c_KD, work.kind))
        a_1HW = _map_of(torch.cat(scores, dim=1), work)
        box_14, _ = best_window(a_1HW, work.window)
        x0, y0, x1, y1 = box_14[0].tolist()
        t_Cww = x_CHW[:, y0:y1, x0:x1]
        places_F4 = random_places(
            seed[None], torch.arange(len(work.x_FCHW)), *t_Cww.shape[1:], *x_CHW.shape[1:]
        )[0]
        moved = []
        for flip_CHW, (x0, y0, x1, y1) in zip(work.x_FCHW, places_F4.tolist(), strict=True):
            pasted_CHW = flip_CHW.clone()
            pasted_CHW[:, y0:y1, x0:x1] = t_Cww
            moved.append(assign(encoder.embed(pasted_CHW[None]), work.c_KD)[0])
        moved_F = torch.cat(moved)
        gain = (moved_F == own).sum() - (work.y_F == own).sum()
        found.append((box_14[0], (moved_F != work.y_F).sum(), gain))
    box_N4, changed_N, gain_N = (torch.stack(column) for column in zip(*found, strict=True))
    return box_N4, changed_N, gain_N


def _map_of(s_1B: Tensor, work: Candidates) -> Tensor:
    a_1HW = torch.zeros_like(work.x_NCHW[:1, 0])
    for keep in (False, True):
        chosen_B = work.keep_B == keep
        if chosen_B.any():
            read_1HW = heat_map(s_1B[:, chosen_B], work.m_BHW[chosen_B], keep)
            a_1HW += (read_1HW - read_1HW.mean()) / read_1HW.std(correction=0).clamp(min=1e-6)
    return a_1HW


def compare_training(x_BCHW: Tensor, config: Config, sizes: Sizes) -> Comparison:
    """One worker's MoCo-v3 steps, without Ray, against their two views alone: the ratio of the rates is the
    share of a step that augmentation takes."""
    settings, where = config.pretrain, x_BCHW.device
    model = MoCoV3(fresh_encoder(config), settings.hidden_dim, settings.out_dim, settings.temperature)
    model = model.to(where).to(memory_format=torch.channels_last).train()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, LEARNING_RATE, fused=True)
    generator = torch.Generator().manual_seed(config.seed)

    def views() -> tuple[Tensor, Tensor]:
        v1_BCHW, v2_BCHW = two_views(x_BCHW.float() / 255, (settings.crop_min, 1.0), generator)
        channels_last = torch.channels_last
        return v1_BCHW.contiguous(memory_format=channels_last), v2_BCHW.contiguous(
            memory_format=channels_last
        )

    def learn(v1_BCHW: Tensor, v2_BCHW: Tensor) -> None:
        model.update_key(settings.momentum)
        with torch.autocast(where.type, dtype=torch.bfloat16, enabled=where.type == "cuda"):
            loss = model(v1_BCHW, v2_BCHW)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def train() -> None:
        for _ in range(sizes.steps):
            learn(*views())

    def augment() -> None:
        for _ in range(sizes.steps):
            views()

    seconds, _ = alternate((train, augment), sizes.rounds)
    given = views()
    with FlopCounterMode(display=False) as counter:
        learn(*given)
    return Comparison(
        work=f"MoCo-v3 steps of {len(x_BCHW)} images",
        unit="images/s",
        ways=("whole step", "its two views alone"),
        rates=_rates(sizes.steps * len(x_BCHW), seconds),
        answers="the ratio is augmentation's share of a step",
        facts={
            "flop_per_unit": counter.get_total_flops() / len(x_BCHW),
            "precision": "bfloat16" if where.type == "cuda" else "float32",
        },
    )


def compare_embed(uri: str, config: Config, out: Folder, rounds: int) -> list[Comparison]:
    """The Embed stage on Ray (read, decode, embed, write) against one process that reads, decodes and embeds
    the same slices with the same functions: with start-up time and, where the corpus is long enough, without.
    """
    from poisoncam_ray.pipeline import Runner
    from poisoncam_ray.stages.dataflow import connect, read_slice
    from poisoncam_ray.stages.embed import Embed, embed_images, load_encoder, read_features
    from poisoncam_ray.stages.index import Index
    from poisoncam_ray.stages.pretrain import Pretrain

    if device().type == "cuda" and not config.resources.gpus_per_actor:
        raise UserError("The stage would not see the GPU: add resources.gpus_per_actor=1, or give --no-ray.")
    run, clock = out / "run", Clock()
    config = _with_checkpoint(config, out)
    Runner(uri, run.uri, config, [Index(), Pretrain()])
    began = time.perf_counter()
    connect()
    connected = time.perf_counter() - began
    Runner(uri, run.uri, config, [Index(), Pretrain()]).run(clock)
    runner = Runner(uri, run.uri, config, [Index(), Pretrain(), Embed()])
    slices, index = runner.corpus.slices(), run / Index.name
    encoder = load_encoder(run / Pretrain.name)

    def stage() -> Tensor:
        (run / Embed.name).delete()
        clock.restart()
        runner.run(clock)
        clock.stop()
        features = run / Embed.name
        return torch.cat([read_features(features, name)[1] for name in features.parts()])

    def bare() -> Tensor:
        parts = []
        for piece in slices:
            _, x_NCHW = read_slice(runner.corpus, config, index, piece)
            parts.append(embed_images(encoder, torch.from_numpy(x_NCHW), config.embed.batch_size))
        return torch.cat(parts)

    (_, bare_seconds), (ours_ND, other_ND) = alternate((stage, bare), rounds)
    rows, laps = len(ours_ND), clock.laps[1:]
    bare_rates = [rows / seconds for seconds in bare_seconds]
    facts: dict[str, Any] = {
        "images": rows,
        "slices": len(slices),
        "seconds_to_connect": connected,
        "seconds_to_first_slice": median(lap.start_up for lap in laps),
    }
    answers = f"largest difference {float((ours_ND - other_ND).abs().max()):.1g} (kept as float16)"
    ways, whole = ("stage on Ray", "one process"), [rows / lap.whole for lap in laps]
    found = [Comparison("Embed, start-up included", "images/s", ways, (whole, bare_rates), answers, facts)]
    if all(lap.whole >= START_UPS * lap.start_up for lap in laps):
        steady = [rows / lap.second_half / 2 for lap in laps]
        found.append(
            Comparison(
                "Embed, second half of the slices", "images/s", ways, (steady, bare_rates), answers, {}
            )
        )
    else:
        facts["without_start_up"] = "the corpus is too short to tell: give a longer one"
    return found


@dataclass(frozen=True)
class Lap:
    """Seconds of one run of a stage: until its first slice came back, for the later half of them, in all."""

    start_up: float
    second_half: float
    whole: float


class Clock(Progress):
    """Says nothing and notes when each slice came back. Slices are about equal; while actors start, readers
    run ahead, so only the second half of the slices shows the pace of both together."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.laps: list[Lap] = []
        self.restart()

    def restart(self) -> None:
        self._ticks = [time.perf_counter()]

    def update(self, text: str) -> None:
        self._ticks.append(time.perf_counter())

    def stop(self) -> None:
        began, ticks, ended = self._ticks[0], self._ticks[1:], time.perf_counter()
        # By interpolation, so that an odd number of slices is halved as well.
        middle = float(np.interp(len(ticks) / 2, range(len(ticks) + 1), [began, *ticks]))
        self.laps.append(Lap(ticks[0] - began, ticks[-1] - middle, ended - began))


def _with_checkpoint(config: Config, out: Folder) -> Config:
    """Untrained weights, as a checkpoint of the user's own: embedding takes as long as with trained ones."""
    if config.encoder.checkpoint:
        return config
    out.write_tensors("encoder.safetensors", fresh_encoder(config).state_dict())
    encoder = config.encoder.model_copy(update={"checkpoint": (out / "encoder.safetensors").uri})
    return config.model_copy(update={"encoder": encoder})


def fresh_encoder(config: Config) -> Encoder:
    """Untrained, the same for the same seed, at rest on this process's device."""
    torch.manual_seed(config.seed)
    made = config.encoder
    return build_encoder(made.backbone, made.image_size, made.patch_size).to(device()).eval()


def first_images(uri: str, config: Config, n: int) -> Tensor:
    """x_NCHW uint8, the first `n` images of the corpus that decode. UserError when there are fewer."""
    limits = config.index
    corpus = open_corpus(uri, limits.format, limits.image_column, limits.rows_per_slice)
    found: list[np.ndarray] = []
    for row in (row for piece in corpus.slices() for row in corpus.read(piece)):
        if len(found) == n:
            break
        try:
            size = config.encoder.image_size
            found.append(decode(row.data or b"", size, limits.max_pixels, limits.max_bytes))
        except DecodeError:
            continue
    if len(found) < n:
        raise UserError(f"{uri} holds {len(found)} images that decode and {n} are needed: give a larger one.")
    return torch.from_numpy(np.stack(found))


def draw_long_corpus(folder: Folder, seed: int, copies: int) -> None:
    """The demo's 3,000 pictures in `copies` copies of their shards: length without the time to draw it."""
    from poisoncam_ray.demo import draw_corpus

    if not folder.exists("part-00000.parquet"):
        draw_corpus(folder.uri, seed=seed)
    shards = [name for name in folder.parts() if "copy" not in name]
    for copy in range(1, copies):
        for name in shards:
            target = name.replace(".parquet", f"-copy{copy:03d}.parquet")
            if not folder.exists(target):
                folder.write_bytes(target, folder.read_bytes(name))


def machine() -> dict[str, Any]:
    """Where the figures were taken."""
    cuda = device().type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "tf32_convolutions": cuda and torch.backends.cudnn.allow_tf32,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _rates(units: int, seconds: list[list[float]]) -> tuple[list[float], list[float]]:
    ours, other = ([units / s for s in way] for way in seconds)
    return ours, other


def _with_share(compared: Comparison, peak: tuple[float, float] | None) -> Comparison:
    """`compared` with the arithmetic rate of our way and, on a GPU of known peak, its share of that."""
    if "flop_per_unit" not in compared.facts:
        return compared
    tflops = compared.facts["flop_per_unit"] * median(compared.rates[0]) / 1e12
    added: dict[str, Any] = {"tflop_per_s": tflops}
    if peak and device().type == "cuda":
        added["share_of_peak"] = tflops / peak[compared.facts["precision"] == "bfloat16"]
    return Comparison(**(vars(compared) | {"facts": compared.facts | added}))


def markdown(found: Sequence[Comparison], facts: dict[str, Any]) -> str:
    """The table, medians with (least … most) over the rounds, and below it the facts and the machine."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for c in found:
        ours, other = (f"{_span(rates)} {c.unit}" for rates in c.rates)
        cells = (c.work, c.ways[0], ours, c.ways[1], other, _span(c.ratios), c.answers)
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines += [f"- {c.work}: {_listed(c.facts)}" for c in found if c.facts]
    return "\n".join([*lines, f"- machine: {_listed(facts)}", ""])


def _span(values: list[float]) -> str:
    return f"{_short(median(values))} ({_short(min(values))} … {_short(max(values))})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _listed(facts: dict[str, Any]) -> str:
    return ", ".join(
        f"{key.replace('_', ' ')} {_short(value) if isinstance(value, float) else value}"
        for key, value in facts.items()
    )
