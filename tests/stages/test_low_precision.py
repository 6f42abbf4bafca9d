"""The precision of a run: decided once, recorded, obeyed, and part of what its stages are compared by."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from poisoncam_ray.defence import stages
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.embed import load_encoder, write_encoder
from tests.small import ROOT


def test_without_tiles_a_cpu_stays_in_float32():
    """The environment can take AMX away, which the flags of the CPU do not tell."""
    program = "from poisoncam_ray.stages.precision import choose; print(choose('auto', gpu=False))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.strip() == "float32"


def test_stages_that_run_frozen_networks_are_compared_by_the_precision():
    one, other = (load_config(overrides=[f"resources.precision={name}"]) for name in ("float32", "bfloat16"))
    titles = {stage.title for stage in stages() if stage.depends_on(one) != stage.depends_on(other)}
    assert titles == {"Embed", "Search", "Classify", "Judge"}


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_a_committed_encoder_is_loaded_at_the_decided_precision(tmp_path, precision):
    torch.manual_seed(0)
    encoder, folder = build_encoder("resnet_tiny_s2", 32).eval(), Folder(str(tmp_path))
    write_encoder(load_config(overrides=["encoder.backbone=resnet_tiny_s2"]), encoder, folder)
    x_NCHW = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        same = torch.equal(load_encoder(folder, precision).embed(x_NCHW), encoder.embed(x_NCHW))
    assert same == (precision != "bfloat16")
