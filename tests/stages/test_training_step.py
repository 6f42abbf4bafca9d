"""A training step: the same views on any number of ranks, its precision, its start, and its norms on GPUs."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from poisoncam_ray.config import Config, Precision
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.ssl import OBJECTIVES
from poisoncam_ray.stages import training_step
from poisoncam_ray.stages.training_step import Schedule, Trainer, distributed

SIDE, BATCH = 16, 8
CPU = torch.device("cpu")


def config(backbone: str = "resnet_tiny_s2", objective: str = "moco_v3") -> Config:
    settings = {"objective": objective, "batch_size": BATCH, "hidden_dim": 32, "out_dim": 16}
    return Config.model_validate(
        {"seed": 3, "encoder": {"backbone": backbone, "image_size": SIDE}, "pretrain": settings}
    )


def trainer(precision: Precision = "float32", rank: int = 0, world: int = 1) -> Trainer:
    return Trainer(config(), Schedule(10, 0), CPU, precision, rank=rank, world=world)


def images(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (BATCH, 2, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_train_on_the_views_that_one_worker_would_see(world):
    x_B2CHW, n = images(), BATCH // world
    shares = [
        trainer(rank=rank, world=world).views(5, x_B2CHW[rank * n : (rank + 1) * n]) for rank in range(world)
    ]
    for ours, alone in zip(zip(*shares, strict=True), trainer().views(5, x_B2CHW), strict=True):
        # Products of small batches are rounded in another order.
        torch.testing.assert_close(torch.cat(ours), alone, rtol=0, atol=1e-6)
    assert not torch.equal(trainer().views(5, x_B2CHW)[0], trainer().views(6, x_B2CHW)[0])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_is_that_of_the_networks_alone(precision):
    made, seen = trainer(precision), []
    made.model.encoder.backbone.layer1.register_forward_hook(lambda _m, _i, y: seen.append(y.dtype))
    loss = made.step(1, images())
    assert seen == [torch.float32 if precision == "float32" else torch.bfloat16] * 2
    assert loss.dtype == torch.float32
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in made.model.parameters() if p.requires_grad} == {torch.float32}
    assert {m["exp_avg"].dtype for m in made.optimizer.state.values()} == {torch.float32}


def test_training_in_bfloat16_follows_training_in_float32():
    low, full = trainer("bfloat16"), trainer("float32")
    ways = [[made.step(step, images(step)).item() for step in range(4)] for made in (low, full)]
    assert ways[0] != ways[1]
    assert ways[0] == pytest.approx(ways[1], rel=0.1)


def test_the_encoder_and_its_moving_average_start_with_the_given_weights():
    torch.manual_seed(9)
    start = build_encoder("resnet_tiny_s2", SIDE).state_dict()
    model = Trainer(config(), Schedule(10, 0), CPU, "float32", start).model
    for network in (model.encoder, model.key_encoder):
        assert all(torch.equal(value, start[key]) for key, value in network.state_dict().items())
    plain = trainer().model
    assert not torch.equal(plain.encoder.backbone.conv1.weight, start["backbone.conv1.weight"])


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backbone", ["resnet_tiny_s2", "resnet18"])
def test_on_gpus_every_norm_is_over_the_joined_batch(monkeypatch, backbone, objective):
    torch.manual_seed(0)
    model = OBJECTIVES[objective](build_encoder(backbone, 32), 32, 16, 0.2)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(training_step, "DistributedDataParallel", lambda model, device_ids=None: model)
    assert distributed(model, CPU) is model
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    keys = list(model.state_dict())
    assert distributed(model, torch.device("cuda")) is model
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert any(norm in norms for norm in model.encoder.modules())
    assert norms and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert list(model.state_dict()) == keys
