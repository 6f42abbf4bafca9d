"""The timed step is the stage's own, in parts or as it was; how fast is nobody's promise."""

from __future__ import annotations

import pytest
import torch

from poisoncam_ray.config import Config
from poisoncam_ray.method.small_maps import SmallMapConv2d
from poisoncam_ray.research.benchmark.step_parts import (
    _in_parts,
    make_trainer,
    part_seconds,
    random_batch,
    step_seconds,
)
from poisoncam_ray.settings import load_config


def config(*overrides: str) -> Config:
    small = ["encoder.image_size=16", "pretrain.batch_size=8", "pretrain.hidden_dim=16", "pretrain.out_dim=8"]
    return load_config(None, None, [*small, *overrides])


def test_a_step_in_parts_is_a_step():
    whole, parts = (make_trainer(config(), "float32") for _ in range(2))
    x_B2CHW = random_batch(config())
    parts.optimizer.param_groups[0]["lr"] = whole.learning_rate(3)
    spent = _in_parts(parts, 3, x_B2CHW)
    whole.step(3, x_B2CHW)
    for ours, theirs in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert len(spent) == 7 and min(spent.values()) > 0


def test_the_step_as_it_was_has_torchs_own_convolutions():
    def small(products: bool) -> int:
        modules = make_trainer(config(), "float32", products).model.modules()
        return sum(isinstance(module, SmallMapConv2d) for module in modules)

    assert small(True) > 0 and small(False) == 0


def test_seconds_of_both_ways_and_of_all_parts():
    now, before = step_seconds(config(), "bfloat16", steps=1, rounds=2)
    assert len(now) == len(before) == 2 and min(*now, *before) > 0
    assert sum(part_seconds(config(), "bfloat16", steps=1).values()) > 0
    with pytest.raises(ValueError, match="moco_v3"):
        part_seconds(config("pretrain.objective=byol"), "float32", steps=1)
