"""Attack success as a training goes on: what an attack needs until it works.

One process trains on a poisoned corpus that is held in memory, with the objective, the colours and the
optimiser of Pretrain. Its crops are almost those of Pretrain (`Pictures.crops`). Every so many images the
encoder is probed as a victim would use it: classifiers are trained on clean labelled images, and the trigger
is put on validation images.

N labelled images   M validation images   P images of the poisoned corpus   D feature dimensions
f features   y labels   q features of validation images
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.method.probes import (
    accuracy,
    attack_success,
    choose_labelled,
    choose_penalty,
    knn_predict,
    linear_predict,
)
from poisoncam_ray.research.claim import claim
from poisoncam_ray.research.evaluate.joined import read_truth
from poisoncam_ray.research.regime.pictures import Pictures, batches, hold
from poisoncam_ray.stages.compute import device
from poisoncam_ray.stages.embed import embed_images
from poisoncam_ray.stages.own_encoder import own_encoder
from poisoncam_ray.stages.precision import choose, dtype_of
from poisoncam_ray.stages.pretrain import restore, save
from poisoncam_ray.stages.training_step import Schedule, Trainer

CURVE, SETTINGS = "curve.json", "settings.json"
LABELLED = 0.1
"""Share of the clean labels that the linear classifier learns from."""
LAST = 0.1
"""The figures of a training are means over this last share of it: attack success swings."""


@dataclass(frozen=True)
class Corpora:
    """What an attack is trained on and judged by.

    Attributes:
        attacked_uri: the output folder of jobs/attack.py: corpus/, truth.parquet, attack.json. Of a clean
            corpus: the corpus itself, for an encoder that never saw poison.
        clean_uri: the labelled corpus before the attack.
        validation_uri: labelled validation images.
        patched_uri: the same with the trigger on each.
        target: the target's label.
        label_column: their column of labels.
    """

    attacked_uri: str
    clean_uri: str
    validation_uri: str
    patched_uri: str
    target: str
    label_column: str = "label"


@dataclass(frozen=True)
class Judge:
    """The clean labelled images, and the validation images with and without trigger, at the encoder's size.

    `poisoned_P` says which images of the training corpus are poisoned.
    """

    bank_NCHW: Tensor
    y_N: Tensor
    few_n: Tensor
    clean_MCHW: Tensor
    patched_MCHW: Tensor
    y_M: Tensor
    target: int
    trained_PCHW: Tensor
    poisoned_P: Tensor

    def figures(self, encoder: Encoder, batch: int = 512) -> dict[str, float]:
        """Probe an encoder.

        Returns:
            Shares 0 … 1. asr_linear, asr_tuned, asr_knn: of patched images of other classes, those predicted
            as the target. unpatched_linear …: the same of these images without trigger. acc_linear …: clean
            accuracy. linear has the penalty of all other tables, tuned the one that a victim would choose.
            near_poison: of patched images of other classes, those whose most
            similar training image is poisoned; near_poison_unpatched: without trigger.
        """
        f_ND, q_MD, t_MD = (
            embed_images(encoder, x, batch) for x in (self.bank_NCHW, self.clean_MCHW, self.patched_MCHW)
        )
        n_classes = int(self.y_N.max()) + 1
        both_MD = torch.cat([q_MD, t_MD])
        found: dict[str, float] = {}
        few_nD, y_n = f_ND[self.few_n], self.y_N[self.few_n]
        tuned = choose_penalty(few_nD, y_n, n_classes)
        for name, both_M in (
            ("linear", linear_predict(few_nD, y_n, both_MD, n_classes)),
            ("tuned", linear_predict(few_nD, y_n, both_MD, n_classes, tuned)),
            ("knn", knn_predict(f_ND, self.y_N, both_MD, n_classes=n_classes)),
        ):
            clean_M, patched_M = both_M.chunk(2)
            found[f"asr_{name}"] = attack_success(patched_M, self.y_M, self.target)
            found[f"unpatched_{name}"] = attack_success(clean_M, self.y_M, self.target)
            found[f"acc_{name}"] = accuracy(clean_M, self.y_M)
        other_M = self.y_M != self.target
        f_PD = embed_images(encoder, self.trained_PCHW, batch)
        for name, of_MD in (("near_poison", t_MD), ("near_poison_unpatched", q_MD)):
            nearest_m = (of_MD[other_M] @ f_PD.T).argmax(1)
            found[name] = float(self.poisoned_P[nearest_m].float().mean())
        return found


def train(
    corpora: Corpora,
    output_uri: str,
    config: Config,
    images: int,
    points: int = 20,
    held: int = 3,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train on the attacked corpus and probe on the way.

    A cut training goes on from its last point. A finished one is not made again.

    Args:
        corpora: the attacked corpus and what it is judged by.
        output_uri: the folder for `curve.json` and the weights `model.safetensors` at the end.
        config: its sections encoder and pretrain, and its seed. `epochs` and `max_images` are not used.
        images: shown in all.
        points: probes on the way, evenly spread.
        held: the shorter side of a picture in memory, at most, in sides of the encoder's image.
        tell: gets a line a point.

    Returns:
        The report: `settings`, `points` with `images` and the figures of `Judge.figures`, and `last`, their
        means over the last tenth of the training.

    Raises:
        UserError: the folder holds a training with other settings, the corpora do not fit each other, or the
            training has fewer steps than points.
    """
    out, settings = Folder(output_uri), _settings(corpora, config, images, points, held)
    claim(out, SETTINGS, settings, "another training")
    if out.exists(artifact.WEIGHTS):
        return out.read_json(CURVE)
    trained, judge = _read(corpora, config, held)
    batch = config.pretrain.batch_size
    total, warm = images // batch, round(config.pretrain.warmup_epochs * len(trained) / batch)
    if total < points:
        raise UserError(
            f"{images:,} images are {total} steps of {batch}: show more, or ask for fewer points."
        )
    precision = choose(config.pretrain.precision, gpu=False)
    start = own_encoder(config.pretrain.init, config).state_dict() if config.pretrain.init else None
    trainer = Trainer(config, Schedule(total, min(warm, total - 1)), torch.device("cpu"), precision, start)
    done, points_done = restore(out, trainer.model, trainer.optimizer)
    report: dict[str, Any] = {"settings": settings, "points": points_done}
    began = time.monotonic()
    probed = {round(total * (i + 1) / points) for i in range(points)}
    side, least = config.encoder.image_size, config.pretrain.crop_min
    loss = 0.0
    for step, i_B in batches(len(trained), batch, config.seed, done):
        if step == total:
            break
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        loss += float(
            trainer.step(step, trained.crops(i_B, side, least, generator, 2, config.pretrain.crop_shape))
        )
        if step + 1 not in probed:
            continue
        encoder = copy.deepcopy(trainer.model.encoder).freeze(dtype_of(precision)).to(device())
        figures = judge.figures(encoder)
        shown = (step + 1) * batch
        report["points"].append({"images": shown, "loss": loss / (step + 1 - done), **figures})
        done, loss = step + 1, 0.0
        tell(f"{shown:,} images: {words(figures)}, {time.monotonic() - began:.0f} s")
        out.write_json(CURVE, report)
        save(out, step + 1, trainer.model, trainer.optimizer, report["points"])
    report["last"] = last_tenth(report["points"], images)
    out.write_json(CURVE, report)
    # The weights come last: a folder that has them is finished.
    out.write_tensors(artifact.WEIGHTS, trainer.model.encoder.state_dict())
    return report


def words(figures: dict[str, float]) -> str:
    """The figures of a point, or of the end, for the console."""
    linear, tuned, knn = (
        f"{figures[f'asr_{name}']:.3f} ({figures[f'unpatched_{name}']:.3f} unpatched)"
        for name in ("linear", "tuned", "knn")
    )
    return (
        f"attack success {linear} linear, {tuned} with its penalty tuned, {knn} k-NN, clean accuracy "
        f"{figures['acc_linear']:.3f}, {figures['acc_tuned']:.3f}, {figures['acc_knn']:.3f}, near poison "
        f"{figures['near_poison']:.3f}"
    )


def last_tenth(points: list[dict[str, float]], images: int) -> dict[str, float]:
    """Means of the figures over the points of the last tenth of a training; of the last point at least."""
    late = [p for p in points if p["images"] > (1 - LAST) * images] or points[-1:]
    return {key: sum(p[key] for p in late) / len(late) for key in late[0] if key != "images"}


def _read(corpora: Corpora, config: Config, held: int) -> tuple[Pictures, Judge]:
    side, column = config.encoder.image_size, corpora.label_column
    attacked = Folder(corpora.attacked_uri)
    poisoned: set[str] = set()
    if attacked.exists("truth.parquet"):
        truth = read_truth(f"{corpora.attacked_uri}/truth.parquet")
        poisoned = set(truth.poisoned["image_id"].to_pylist())
        trained = hold(f"{corpora.attacked_uri}/corpus", column, held * side)
    else:
        trained = hold(corpora.attacked_uri, column, held * side)
    bank, clean, patched = (
        hold(uri, column, held * side)
        for uri in (corpora.clean_uri, corpora.validation_uri, corpora.patched_uri)
    )
    classes = {label: c for c, label in enumerate(sorted(set(bank.labels)))}
    if corpora.target not in classes:
        raise UserError(f"{corpora.clean_uri} has no label {corpora.target}: give the attack's target.")
    if clean.labels != patched.labels:
        raise UserError(
            f"{corpora.patched_uri} is not {corpora.validation_uri} with triggers: patch that one."
        )
    y_N = torch.tensor([classes[label] for label in bank.labels])
    draw_N = torch.rand(len(y_N), generator=torch.Generator().manual_seed(config.seed))
    return trained, Judge(
        bank.squares(side), y_N, choose_labelled(draw_N, y_N, LABELLED), clean.squares(side),
        patched.squares(side), torch.tensor([classes.get(label, -1) for label in clean.labels]),
        classes[corpora.target], trained.squares(side),
        torch.tensor([image_id in poisoned for image_id in trained.ids]),
    )  # fmt: skip


def _settings(corpora: Corpora, config: Config, images: int, points: int, held: int) -> dict[str, Any]:
    unused = {"epochs", "max_images", "sample", "workers", "shuffle_rows", "checkpoint_every", "max_failures"}
    return {
        "corpora": vars(corpora), "encoder": config.encoder.model_dump(), "seed": config.seed,
        "pretrain": config.pretrain.model_dump(exclude=unused), "images": images, "points": points,
        "held": held,
    }  # fmt: skip
