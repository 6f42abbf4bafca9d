"""Attack success on the way: figures by clean labels, resumed trainings, refusals."""

from __future__ import annotations

import dataclasses
import json
import runpy

import pytest
import torch

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.regime.curve import Judge, _read, last_tenth, train
from poisoncam_ray.settings import load_config
from tests.research.regime.conftest import draw
from tests.small import ROOT

CONFIG = load_config(None, None, [
    "encoder.image_size=16", "pretrain.batch_size=12", "pretrain.hidden_dim=16", "pretrain.out_dim=8",
    "pretrain.precision=float32",
])  # fmt: skip


def quiet(line: str) -> None:
    pass


def test_a_cut_training_gives_the_same_curve(corpora, tmp_path):
    told = []

    def cut(line: str) -> None:
        told.append(line)
        if len(told) == 3:
            raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        train(corpora, str(tmp_path / "cut"), CONFIG, 96, points=4, tell=cut)
    again = train(corpora, str(tmp_path / "cut"), CONFIG, 96, points=4, tell=told.append)
    whole = train(corpora, str(tmp_path / "whole"), CONFIG, 96, points=4, tell=quiet)
    assert again == whole
    assert [p["images"] for p in whole["points"]] == [24, 48, 72, 96]
    assert len(told) == 5  # The third point was told, not kept: it was made again.
    assert whole["last"] == {k: v for k, v in whole["points"][-1].items() if k != "images"}
    assert train(corpora, str(tmp_path / "whole"), CONFIG, 96, points=4, tell=quiet) == whole


def test_another_training_or_another_validation_set_is_refused(corpora, tmp_path):
    train(corpora, str(tmp_path / "out"), CONFIG, 24, points=1, tell=quiet)
    with pytest.raises(UserError, match="images: 24 then, 48 now"):
        train(corpora, str(tmp_path / "out"), CONFIG, 48, points=1, tell=quiet)
    with pytest.raises(UserError, match="has no label 7"):
        train(dataclasses.replace(corpora, target="7"), str(tmp_path / "a"), CONFIG, 24, points=1)
    swapped = dataclasses.replace(corpora, patched_uri=corpora.clean_uri)
    with pytest.raises(UserError, match="patch that one"):
        train(swapped, str(tmp_path / "b"), CONFIG, 24, points=1)
    with pytest.raises(UserError, match="ask for fewer points"):
        train(corpora, str(tmp_path / "c"), CONFIG, 24, points=3)


def test_a_clean_corpus_has_no_poison_near(corpora, tmp_path):
    never = dataclasses.replace(corpora, attacked_uri=corpora.clean_uri)
    points = train(never, str(tmp_path / "out"), CONFIG, 24, points=1, tell=quiet)["points"]
    assert points[0]["near_poison"] == 0
    # Half of the 24 images of the target are poisoned, and known by their ids.
    assert int(_read(corpora, CONFIG, 3)[1].poisoned_P.sum()) == 12


class ByColour:
    """An encoder that sees nothing but the mean colour, and a trigger: white."""

    def embed(self, x_BCHW):
        f_BD = x_BCHW.mean((2, 3))
        return torch.nn.functional.normalize(f_BD, dim=1)


def test_figures_of_a_backdoor_that_is_there():
    red, blue = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    red[0], blue[2] = 200, 200
    red, blue = red.to(torch.uint8), blue.to(torch.uint8)
    y_N = torch.tensor([1, 0] * 10)
    judge = Judge(
        bank_NCHW=torch.stack([red, blue] * 10), y_N=y_N, few_n=torch.arange(4),
        clean_MCHW=torch.stack([red, blue] * 3),
        # The trigger makes an image red: those of label 0 go over to the target.
        patched_MCHW=torch.stack([red] * 6), y_M=torch.tensor([1, 0] * 3), target=1,
        trained_PCHW=torch.stack([blue, red]), poisoned_P=torch.tensor([False, True]),
    )  # fmt: skip
    figures = judge.figures(ByColour())
    assert figures["asr_linear"] == figures["asr_knn"] == figures["near_poison"] == 1
    assert figures["unpatched_linear"] == figures["unpatched_knn"] == figures["near_poison_unpatched"] == 0
    assert figures["acc_linear"] == figures["acc_knn"] == 1


def test_the_end_is_the_mean_of_the_last_tenth():
    points = [{"images": 10.0 * i, "asr_linear": float(i)} for i in range(1, 21)]
    assert last_tenth(points, 200) == {"asr_linear": 19.5}
    assert last_tenth(points[:1], 200) == {"asr_linear": 1.0}


def test_the_jobs_make_a_warm_start_and_continue_it_on_the_attacked_corpus(corpora, tmp_path):
    jobs = [runpy.run_path(str(ROOT / "jobs" / f"{name}.py"))[name] for name in ("warm_start", "regime")]
    warm, out = str(tmp_path / "warm"), str(tmp_path / "out")
    large = draw(tmp_path / "large", 256, 2)
    jobs[0](large, warm, backbone="resnet_tiny_s2", image_size=16, images=512, patch_size=None)
    jobs[1](
        corpora.attacked_uri, corpora.clean_uri, corpora.validation_uri, corpora.patched_uri, corpora.target,
        out, images=24, points=2,
        overrides=[
            "encoder.image_size=16", "pretrain.batch_size=12", "pretrain.hidden_dim=16", "pretrain.out_dim=8",
            f"pretrain.init={warm}/encoder.safetensors",
        ],
    )  # fmt: skip
    curve = json.loads((tmp_path / "out" / "curve.json").read_text())
    assert [p["images"] for p in curve["points"]] == [12, 24] and 0 <= curve["last"]["asr_linear"] <= 1
    assert (tmp_path / "out" / "model.safetensors").exists()
