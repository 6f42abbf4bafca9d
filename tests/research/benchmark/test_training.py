"""The timed step is a training step."""

from __future__ import annotations

import torch

from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.ssl import MoCoV3
from poisoncam_ray.research.benchmark.training import Trainer
from poisoncam_ray.settings import load_config


def test_the_timed_step_is_a_training_step(monkeypatch):
    made = load_config(None, None, ["pretrain.hidden_dim=16", "pretrain.out_dim=8"])
    trainer = Trainer(made)
    x_B2CHW = torch.randint(0, 256, (8, 2, 3, 32, 32), dtype=torch.uint8)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    views = trainer.views(x_B2CHW)
    monkeypatch.setattr(trainer, "views", lambda x_B2CHW: views)
    trainer.step(x_B2CHW)
    settings = made.pretrain
    plain = MoCoV3(build_encoder("resnet_tiny_s2", 32), settings.hidden_dim, settings.out_dim)
    plain.load_state_dict(before)
    plain.train().update_target(settings.momentum)
    plain(*views).backward()
    stepped = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], 1e-4)
    stepped.step()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[key], value, rtol=1e-3, atol=2e-4)
