"""A warm start learns labels, goes on where it was cut, and refuses another training's folder."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.research.regime.warm_start import rate_at, warm_start
from poisoncam_ray.stages.own_encoder import own_encoder
from tests.research.regime.conftest import draw

SMALL = {"backbone": "resnet_tiny_s2", "image_size": 16, "images": 144, "batch": 12, "lr": 0.05}


def test_labels_are_learned_and_the_weights_can_be_continued(tmp_path):
    clean, validation = draw(tmp_path / "clean", 48, 0), draw(tmp_path / "val", 20, 1)
    report = warm_start(
        clean, str(tmp_path / "out"), validation_uri=validation, tell=lambda line: None, **SMALL
    )
    assert report["history"][-1]["images"] == 144 and report["history"][-1]["accuracy"] >= 0.9
    config = Config.model_validate({
        "encoder": {"image_size": 16}, "pretrain": {"init": f"{tmp_path}/out/encoder.safetensors"},
    })  # fmt: skip
    weights = own_encoder(config.pretrain.init, config).state_dict()
    written = load_file(tmp_path / "out" / "encoder.safetensors")
    assert all(torch.equal(weights[key], t) for key, t in written.items())


def test_a_cut_training_ends_in_the_same_weights(tmp_path):
    clean = draw(tmp_path / "clean", 48, 0)
    told = []

    def cut(line: str) -> None:
        told.append(line)
        if len(told) == 3:
            raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        warm_start(clean, str(tmp_path / "cut"), tell=cut, **SMALL)
    again = warm_start(clean, str(tmp_path / "cut"), tell=told.append, **SMALL)
    whole = warm_start(clean, str(tmp_path / "whole"), tell=lambda line: None, **SMALL)
    assert again == whole and len(again["history"]) == 3
    names = (tmp_path / name / "encoder.safetensors" for name in ("cut", "whole"))
    cut_state, whole_state = (load_file(name) for name in names)
    assert all(torch.equal(cut_state[key], t) for key, t in whole_state.items())


def test_a_folder_of_another_training_is_refused(tmp_path):
    clean = draw(tmp_path / "clean", 48, 0)
    small = SMALL | {"images": 48}
    warm_start(clean, str(tmp_path / "out"), tell=lambda line: None, **small)
    report = json.loads((tmp_path / "out" / "warm_start.json").read_text())
    assert warm_start(clean, str(tmp_path / "out"), tell=lambda line: None, **small) == report
    with pytest.raises(UserError, match="seed: 0 then, 1 now"):
        warm_start(clean, str(tmp_path / "out"), seed=1, **small)


def test_the_rate_rises_and_falls():
    rates = [rate_at(step, 100) for step in range(100)]
    assert rates[9] == rates[10] == 1 and rates[0] == 0.1 and rates[99] < 0.001
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
