"""Embed and Judge on Ray, against a bare torch loop over the same bytes: a DataLoader with as many reading
processes as the stage has readers, in a process without Ray.

N images   D feature dimensions   C channels   H = W image side
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, Slice, open_by
from poisoncam_ray.corpus.slices import slices_of
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.benchmark.apart import apart
from poisoncam_ray.research.benchmark.compare import Measured, Row, Setting, alternate
from poisoncam_ray.research.benchmark.images import draw_images
from poisoncam_ray.research.benchmark.made_up import UntrainedClassifier, with_checkpoint
from poisoncam_ray.research.benchmark.timed_stage import Lap, TimedStage, stage_config, timed
from poisoncam_ray.stage import Stage
from poisoncam_ray.stages.compute import device
from poisoncam_ray.stages.embed import Embed, embed_images, load_encoder, read_features
from poisoncam_ray.stages.ensembles import load_ensembles
from poisoncam_ray.stages.index import Index
from poisoncam_ray.stages.judge import Judge
from poisoncam_ray.stages.pixels import read_slice, read_views
from poisoncam_ray.stages.pretrain import Pretrain

AT_LEAST = 0.9


@dataclass(frozen=True)
class Case:
    """One corpus and one network.

    Attributes:
        backbone, image_size: the encoder.
        images: in the corpus.
        stored: the side of a stored image in pixels.
        rows_per_slice: rows of a slice.
        batch: images through the encoder at once, on a CPU.
    """

    backbone: str
    image_size: int
    images: int
    stored: int
    rows_per_slice: int
    batch: int = 128


EMBED = (
    Case("vit_small_patch16_224", 224, 512, 224, 32, 32),
    Case("resnet_tiny_s2", 32, 32_768, 64, 1024),
)
JUDGE = (Case("resnet_tiny_s2", 32, 8192, 64, 256),)


def measure_embed(setting: Setting, cases: tuple[Case, ...]) -> Measured:
    """The Embed stage against a bare loop."""
    found = Measured()
    for case in cases:
        stage, bare_laps, answers = _compare(
            setting, case, "embed", [Index(), Pretrain(), Embed()], _embedded
        )
        stored_ND = torch.cat([read_features(stage.out, name)[1] for name in stage.out.parts()])
        difference = float((stored_ND - answers).abs().max())
        said = f"largest difference {difference:.1g} (stored as float16)"
        found.rows += _rows("Embed", case, stage, bare_laps, said)
        found.notes.append(_start_up(case, stage))
    return found


def measure_judge(setting: Setting, cases: tuple[Case, ...]) -> Measured:
    """The Judge stage against a bare loop."""
    found = Measured()
    for case in cases:
        stage, bare_laps, answers = _compare(
            setting, case, "judge", [Index(), UntrainedClassifier(), Judge()], _judged
        )
        stored_N = torch.cat(
            [torch.tensor(stage.out.read_table(name)["p_poison"].to_pylist()) for name in stage.out.parts()]
        )
        same = int(((stored_N > 0.5) == (answers > 0.5)).sum())
        found.rows += _rows("Judge", case, stage, bare_laps, f"{same:,} of {len(answers):,} fates equal")
        found.notes.append(_start_up(case, stage))
    return found


def _compare(
    setting: Setting, case: Case, name: str, stages: list[Stage], bare: Callable[..., tuple[Lap, Tensor]]
) -> tuple[TimedStage, list[Lap], Tensor]:
    """Run the last stage and the bare loop in turns.

    Returns:
        The stage, the laps of the loop, and the loop's answers.
    """
    folder = setting.out / f"{name}-{case.backbone}-{case.images}"
    corpus = draw_images(setting.out / "corpora", case.images, case.stored, case.stored, shards=4)
    config = stage_config(
        setting,
        f"encoder.backbone={case.backbone}",
        f"encoder.image_size={case.image_size}",
        f"corpus.rows_per_slice={case.rows_per_slice}",
        f"embed.batch_size={setting.batch(case.batch)}",
    )
    config = with_checkpoint(config, folder)
    stage, laps, answers = TimedStage(corpus, folder / "run", config, stages), list[Lap](), list[Tensor]()
    with apart(setting.threads) as process:

        def loop() -> None:
            lap, answer = process.submit(bare, corpus.uri, config, folder / "run", setting.threads).result()
            laps.append(lap)
            answers.append(answer)

        alternate((stage.again, loop), setting.rounds, warm=False)
    return stage, laps, answers[-1]


def _rows(name: str, case: Case, stage: TimedStage, bare: list[Lap], answers: str) -> Iterator[Row]:
    """The whole stage, and the second half of its slices."""
    resources = stage.runner.config.resources
    regime = (
        f"{case.images:,} JPEGs of {case.stored} px in slices of {case.rows_per_slice}, "
        f"{case.image_size} px, {resources.precision}, {resources.readers} readers each"
    )
    ways = ("stage on Ray", "bare loop")
    whole = [lap.whole for lap in stage.laps], [lap.whole for lap in bare]
    half = [lap.second_half for lap in stage.laps], [lap.second_half for lap in bare]
    what = (
        f"{name}, {case.backbone if name == 'Embed' else 'three networks at ' + str(case.image_size) + ' px'}"
    )
    yield Row(f"{what}, start-up included", ways, whole, regime, units=case.images, answers=answers)
    yield Row(f"{what}, second half", ways, half, regime, at_least=AT_LEAST, units=case.images / 2)


def _start_up(case: Case, stage: TimedStage) -> str:
    return (
        f"{case.images:,} images: {stage.start_up():.1f} s until the first slice was done. Readers run ahead "
        "meanwhile, so the second half is a little too good where reading is much of the work."
    )


# ---------------------------------------------------------------- the bare loops, in a process without Ray


class Slices(Dataset[Any]):
    """Slices of a corpus, several times over, each read by `read`, which also gets the number of the pass."""

    def __init__(self, slices: list[Slice], passes: int, read: Callable[[Slice, int], Tensor]) -> None:
        self.slices, self.passes, self.read = slices, passes, read

    def __len__(self) -> int:
        return self.passes * len(self.slices)

    def __getitem__(self, i: int) -> Tensor:
        number, at = divmod(i, len(self.slices))
        return self.read(self.slices[at], number)


def loaded(
    uri: str, config: Config, run: Folder, readers: int, read: Callable[..., Tensor], passes: int = 1
) -> DataLoader[Any]:
    """A DataLoader over the slices of a run.

    Args:
        uri: the corpus.
        config: the configuration.
        run: the run folder, in which the corpus is indexed.
        readers: reading processes.
        read: called with the corpus, the configuration, the index, a slice and the number of the pass.
        passes: over the corpus.
    """
    index = run / artifact.INDEX
    read_one = partial(read, open_by(config.corpus, uri), config, index)
    slices = Slices(slices_of(index.read_table(artifact.SLICES)), passes, read_one)
    return DataLoader(slices, batch_size=None, num_workers=readers, pin_memory=device().type == "cuda")


def _pixels(corpus: Corpus, config: Config, index: Folder, slice_: Slice, number: int) -> Tensor:
    return torch.from_numpy(read_slice(corpus, config, index, slice_)[1])


def _views(corpus: Corpus, config: Config, index: Folder, slice_: Slice, number: int) -> Tensor:
    return torch.from_numpy(read_views(corpus, config, index, slice_)[1])


def _embedded(uri: str, config: Config, run: Folder, readers: int) -> tuple[Lap, Tensor]:
    encoder, found = load_encoder(run / artifact.ENCODER, config.resources.precision), list[Tensor]()

    def loop() -> Iterator[None]:
        for x_NCHW in loaded(uri, config, run, readers, _pixels):
            found.append(embed_images(encoder, x_NCHW, config.embed.batch_size))
            yield

    return timed(loop()), torch.cat(found)


def _judged(uri: str, config: Config, run: Folder, readers: int) -> tuple[Lap, Tensor]:
    ensembles, found = load_ensembles(config, run / artifact.CLASSIFIER), list[Tensor]()

    def loop() -> Iterator[None]:
        for x_NCHW in loaded(uri, config, run, readers, _views):
            p_N, flagged_AN = ensembles.judge(x_NCHW)
            ensembles.locate(x_NCHW, flagged_AN)
            found.append(p_N)
            yield

    return timed(loop()), torch.cat(found)
