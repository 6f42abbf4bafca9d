"""What the Pretrain stage relies on, whichever objective it is given."""

from typing import get_args

import pytest
import torch

from poisoncam_ray.config import Pretrain
from poisoncam_ray.method.augment import ASYMMETRIC, SYMMETRIC, two_views
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.ssl import OBJECTIVES

every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def tiny(name: str, seed: int = 0):
    torch.manual_seed(seed)
    return OBJECTIVES[name](build_encoder("resnet_tiny_s2", 16), 32, 8, 0.2)


def test_configuration_knows_the_same_names():
    assert set(get_args(Pretrain.model_fields["objective"].annotation)) == set(OBJECTIVES)


def test_each_has_the_views_of_its_paper():
    recipes = {name: objective.recipe for name, objective in OBJECTIVES.items()}
    assert recipes == {"moco_v3": ASYMMETRIC, "simclr": SYMMETRIC, "byol": ASYMMETRIC}
    assert SYMMETRIC[0] == SYMMETRIC[1] and ASYMMETRIC[0] != ASYMMETRIC[1]


@every_objective
def test_one_step_moves_the_encoder_and_nothing_that_is_frozen(name):
    model, x = tiny(name), torch.rand(8, 3, 16, 16)
    before = {key: p.clone() for key, p in model.named_parameters()}
    loss = model(*two_views(x, (0.4, 1.0), torch.Generator().manual_seed(0), recipe=model.recipe))
    assert loss.shape == () and loss.isfinite()
    loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    for key, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad == (not key.startswith(("key_", "target_"))), key
        assert p.requires_grad or torch.equal(p, before[key]), key
    for key, p in model.encoder.named_parameters(prefix="encoder"):
        assert not torch.equal(p, before[key]), key


@every_objective
def test_the_loss_does_not_depend_on_which_view_comes_first(name):
    model, (v1, v2) = tiny(name), torch.rand(2, 6, 3, 16, 16)
    torch.testing.assert_close(model(v1, v2), model(v2, v1), rtol=1e-4, atol=1e-5)


@every_objective
def test_what_follows_starts_as_the_encoder_and_follows_it(name):
    model = tiny(name)
    followers = [key for key, _ in model.named_children() if key.startswith(("key_", "target_"))]
    assert len(followers) == (0 if name == "simclr" else 2)

    def lag(follower: str) -> float:
        leader = model.get_submodule(follower.partition("_")[2])
        pairs = zip(model.get_submodule(follower).parameters(), leader.parameters(), strict=True)
        return max(float((a - b).detach().abs().max()) for a, b in pairs)

    assert all(lag(follower) == 0 for follower in followers)
    with torch.no_grad():
        for p in [*model.encoder.parameters(), *model.projector.parameters()]:
            p.add_(1.0)
    online = {key: p.clone() for key, p in model.named_parameters() if p.requires_grad}
    model.update_target(0.9)
    assert all(lag(follower) == pytest.approx(0.9, abs=1e-5) for follower in followers)
    model.update_target(0.0)
    assert all(lag(follower) == 0 for follower in followers)
    assert all(torch.equal(p, online[key]) for key, p in model.named_parameters() if key in online)
