"""The operations of a whole run, against counts by hand, and the mark that the paper's preset holds."""

from __future__ import annotations

import pytest

from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.research.benchmark.whole_run import MARK, whole_run
from poisoncam_ray.research.study.flops import forward_flops
from poisoncam_ray.settings import load_config

SETTINGS = [
    "encoder.backbone=resnet_tiny",
    "encoder.image_size=16",
    "pretrain.epochs=3",
    "pretrain.batch_size=64",
    "cluster.k=16",
    "cluster.iterations=2",
    "search.strategy=full_coverage",
    "search.masks=8",
    "search.refine=false",
    "search.flip_images=10",
    "search.race.keep=0",
    "search.per_cluster=2",
    "search.min_live=8",
    "search.prune=0.5",
    "classify.models=2",
    "classify.steps=6",
    "classify.batch_size=4",
    "classify.sample=50",
]


def run(*overrides: str, images: int = 200, families: int = 1):
    return whole_run(load_config(overrides=[*SETTINGS, *overrides]), images, families)


def test_every_stage_is_counted_by_hand():
    encoder = build_encoder("resnet_tiny", 16).eval()
    forward = forward_flops(encoder)
    found = run()
    # Three full batches an epoch. Two views: forward and backward, and forward in the momentum network.
    assert found.stages["Pretrain"] == 3 * 3 * 64 * 8 * forward
    assert found.stages["Embed"] == 200 * forward
    assert found.stages["Cluster"] == 2 * 16 * encoder.dim * (2 * 200 + 200)
    # One round over 16 clusters leaves 8. Eight masks, the own cluster, the occlusion, and ten pastes.
    assert found.candidates == 32
    assert found.stages["Search"] == (32 * (8 + 2 + 10) + 2 * 10) * forward
    assert found.stages["Classify"] == 2 * (6 * 2 * 4 * 3 + 1000 + 50) * forward
    assert found.stages["Judge"] == 2 * 200 * forward
    after = sum(flops for name, flops in found.stages.items() if name != "Pretrain")
    assert found.after == pytest.approx(after / found.stages["Pretrain"])


def test_settings_that_change_the_cost_change_the_count():
    base = run()
    assert run("pretrain.max_images=128").stages["Pretrain"] * 4.5 == base.stages["Pretrain"]
    assert run("pretrain.sample=0.4").stages["Pretrain"] * 3 == base.stages["Pretrain"]
    assert run("pretrain.objective=simclr").stages["Pretrain"] * 4 == base.stages["Pretrain"] * 3
    assert run("search.max_candidates=20").candidates == 20
    assert run("search.race.keep=0.1", "search.race.first=4").stages["Search"] < base.stages["Search"]
    assert run(families=3).stages["Judge"] == 3 * base.stages["Judge"]


def test_everything_after_the_training_of_the_papers_preset_holds_the_mark():
    """The preset as it is shipped: whoever makes its search dearer than this must say so here."""
    found = whole_run(load_config("imagenet100"))
    assert 8 * found.stages["Embed"] * 198 < found.stages["Pretrain"] <= 8 * found.stages["Embed"] * 200
    assert found.after <= MARK, {
        name: flops / found.stages["Pretrain"] for name, flops in found.stages.items()
    }
