"""Stages that make in a moment what a defence makes in hours: weights that are not trained, and fates that
nobody has judged.

N images   C channels   H = W encoder image side
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.facts import Facts
from poisoncam_ray.folder import Folder, part_name
from poisoncam_ray.method.classifier import PoisonClassifier, poison_logit
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.research.benchmark.images import pixels
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.crops import to_png

FAMILY = 1
FLAGGED = 0.02
"""The share of the images that the untrained classifier flags, about."""
REMOVED = 0.05
"""The share of the images whose fate is to be removed."""
PASTE = 0.3
"""The side of the picture of a trigger, of the image side."""


@dataclass(frozen=True)
class MadeUp(Facts):
    """Of a stage here."""

    @property
    def summary(self) -> str:
        return "made up"


class UntrainedClassifier(Stage):
    """An ensemble of one family with random weights."""

    name = artifact.CLASSIFIER
    title = "Classify"
    version = 1
    inputs = (artifact.INDEX,)
    sections = ("classify", "encoder")

    def run(self, run: Run) -> Outcome:
        side = run.config.encoder.image_size
        torch.manual_seed(run.config.seed)
        models = [PoisonClassifier(side).eval() for _ in range(run.config.classify.models)]
        for i, model in enumerate(models):
            run.out.write_tensors(artifact.model_name(FAMILY, i), model.state_dict())
        x_NCHW = pixels(20, side)
        cut = float(poison_logit(models, x_NCHW).quantile(1 - FLAGGED))
        figures = {"erased": True, "threshold_logit": cut, "tail": 0.0}
        run.out.write_json(artifact.VALIDATION, {"families": {str(FAMILY): figures}})
        w = max(2, round(PASTE * side))
        picture = {"family": FAMILY, "picture": to_png(x_NCHW[0, :, :w, :w].float() / 255), "aspect": 1.0}
        table = pa.Table.from_pylist([picture], schema=artifact.WHOLE_TRIGGER_SCHEMA)
        run.out.write_table(artifact.WHOLE_TRIGGERS, table)
        return Outcome(MadeUp())


class DrawnFates(Stage):
    """Scores by lot."""

    name = artifact.SCORES
    title = "Judge"
    version = 1
    inputs = (artifact.INDEX,)
    sections = ()

    def run(self, run: Run) -> Outcome:
        rng, index = np.random.default_rng(run.config.seed), run.folder / artifact.INDEX
        for slice_ in run.slices():
            ids = index.read_table(part_name(slice_.index), ["image_id"])["image_id"].to_pylist()
            removed_N = rng.random(len(ids)) < REMOVED
            columns = {
                "image_id": ids,
                "p_poison": removed_N.astype(np.float32),
                "fate": [artifact.REMOVE if removed else artifact.KEEP for removed in removed_N],
                "family": removed_N.astype(np.int32),
            }
            for side, value in zip(artifact.SIDES, (0, 0, 2, 2), strict=True):
                columns[side] = pa.array(np.full(len(ids), value, np.int32), mask=~removed_N)
            run.out.write_table(part_name(slice_.index), pa.table(columns, schema=artifact.SCORE_SCHEMA))
        return Outcome(MadeUp())


def with_checkpoint(config: Config, out: Folder) -> Config:
    """The configuration with untrained weights as its checkpoint: embedding takes as long as with others."""
    made = config.encoder
    if made.checkpoint:
        return config
    torch.manual_seed(config.seed)
    encoder = build_encoder(made.backbone, made.image_size, made.patch_size)
    out.write_tensors("encoder.safetensors", encoder.state_dict())
    section = made.model_copy(update={"checkpoint": (out / "encoder.safetensors").uri})
    return config.model_copy(update={"encoder": section})
