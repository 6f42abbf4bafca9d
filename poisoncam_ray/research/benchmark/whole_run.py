"""The floating point operations of a whole run, stage by stage, counted from its configuration: what
everything after Pretrain costs against Pretrain.

As in study/flops.py, matrix products and convolutions count. Left out are the heads of the training, which
makes Pretrain look cheaper than it is, and the parts of images longer than 3:2 that Judge looks at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from poisoncam_ray.config import Config
from poisoncam_ray.method import prune
from poisoncam_ray.method.classifier import PoisonClassifier
from poisoncam_ray.method.clusters import auto_k
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.research.benchmark.compare import Measured, Setting, Table
from poisoncam_ray.research.benchmark.page import short
from poisoncam_ray.research.benchmark.search_stage import way_of
from poisoncam_ray.research.study.flops import Bill, bill, forward_flops
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.classify import VALIDATION_PASTES
from poisoncam_ray.stages.sample import share_of
from poisoncam_ray.stages.search import rules_of

PAPER_IMAGES = 126_689
"""Of ImageNet-100."""
MARK = 0.006
"""What everything after Pretrain may cost, as a share of Pretrain."""
VIEWS = 2
BACKWARD = 2
"""A backward pass costs so many forward passes."""
KEY_PASSES = {"moco_v3": 1, "byol": 1, "simclr": 0, "simsiam": 0}
"""Forward passes of a view through the momentum network."""


@dataclass(frozen=True)
class Sizes:
    """Of the part `share`.

    Attributes:
        preset: that is counted.
        overrides: settings that win over it.
        images: in the corpus.
    """

    preset: str = "imagenet100"
    overrides: tuple[str, ...] = ()
    images: int = PAPER_IMAGES


@dataclass(frozen=True)
class WholeRun:
    """The operations of a run.

    Attributes:
        stages: by title, in order, those whose stages run a network or multiply matrices.
        candidates: that the search scores.
        candidate: the mean bill of one of them.
        forward: of one whole image through the encoder.
    """

    stages: dict[str, float]
    candidates: int
    candidate: Bill
    forward: int

    @property
    def after(self) -> float:
        """Everything after Pretrain, as a share of Pretrain."""
        return sum(self.stages.values()) / self.stages["Pretrain"] - 1


def whole_run(config: Config, images: int = PAPER_IMAGES, families: int = 1) -> WholeRun:
    """Count the operations of a run.

    Args:
        config: the configuration; its search is not by Grad-CAM.
        images: in the corpus, enough of them in every cluster.
        families: trigger families that are found.

    Returns:
        The operations. The encoder is the configuration's, with random weights.
    """
    made, settings = config.encoder, config.search
    encoder = build_encoder(made.backbone, made.image_size, made.patch_size).eval()
    forward = forward_flops(encoder)
    training = config.pretrain
    batches = int(share_of(config, images) * images) // training.batch_size
    shown = batches * training.batch_size * training.epochs
    passes = VIEWS * (1 + BACKWARD + KEY_PASSES[training.objective])
    k = config.cluster.k or auto_k(images)
    assigned = 2 * k * encoder.dim
    rules, begin = rules_of(config), prune.start(torch.arange(k), k)
    first = min(settings.per_cluster * k, settings.max_candidates)
    candidates = first + prune.most_after(begin, rules)
    one = bill(encoder, way_of(config, encoder, candidates))
    # The flip-test images are embedded twice: to find their clusters, and whether these are firm.
    flip_test = 2 * settings.flip_images * forward
    classifier = forward_flops(PoisonClassifier(made.image_size).encoder.eval())
    chosen, ensembles = config.classify, config.classify.models * families
    trained = 2 * chosen.batch_size * chosen.steps * (1 + BACKWARD) + VALIDATION_PASTES + chosen.sample
    clustered = min(images, config.cluster.sample) * config.cluster.iterations + images
    stages = {
        "Pretrain": float(min(shown, training.max_images or shown) * passes * forward),
        "Embed": float(images * forward),
        "Cluster": float(assigned * clustered),
        "Search": candidates * one.total + flip_test,
        "Classify": float(ensembles * trained * classifier),
        "Judge": float(ensembles * images * classifier),
    }
    return WholeRun(stages, candidates, one, forward)


def count_share(setting: Setting, sizes: Sizes) -> Measured:
    """A table of what each stage costs. Nothing is timed."""
    config = load_config(sizes.preset, overrides=sizes.overrides)
    run = whole_run(config, sizes.images)
    pretrain, cost = run.stages["Pretrain"], run.candidate
    lines = [
        (name, f"{short(flops / 1e15)}", f"{flops / pretrain:.4%}") for name, flops in run.stages.items()
    ]
    parts = " + ".join(
        f"{name} {short(flops / run.forward)}"
        for name, flops in (
            ("masks", cost.masks), ("refinement", cost.refinement), ("whole images", cost.checks),
            ("pastes", cost.pastes),
        )
    )  # fmt: skip
    notes = [
        f"Everything after Pretrain: **{run.after:.3%}** of Pretrain, wanted at most {MARK:.1%}: "
        f"{'met' if run.after <= MARK else '**missed**'}. Preset {sizes.preset}, {config.encoder.backbone}, "
        f"{config.encoder.image_size} px, {sizes.images:,} images, one trigger family.",
        f"{run.candidates:,} candidates. One of them in forward passes of the encoder: {parts} = "
        f"{short(cost.total / run.forward)}.",
    ]
    return Measured(
        tables=[Table("Operations by stage", ("stage", "PFLOP", "of Pretrain"), lines)], notes=notes
    )
