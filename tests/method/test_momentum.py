import copy

import pytest
import torch

from poisoncam_ray.method.ssl import follow, mlp, momentum_at


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_a_step_against_a_loop(momentum):
    torch.manual_seed(0)
    target, online = mlp(4, 6, 3), mlp(4, 6, 3)
    online(torch.rand(5, 4))
    before, leader = copy.deepcopy(target.state_dict()), copy.deepcopy(online.state_dict())
    follow(target, online, momentum)
    learned = {name for name, _ in target.named_parameters()}
    assert 0 < len(learned) < len(before)
    for name, value in target.state_dict().items():
        pairs = zip(before[name].flatten().tolist(), leader[name].flatten().tolist(), strict=True)
        moved = torch.tensor([momentum * a + (1 - momentum) * b for a, b in pairs]).view_as(value)
        torch.testing.assert_close(value, moved if name in learned else before[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(online.state_dict()[name], leader[name])


def test_momentum_rises_from_base_to_one():
    values = [momentum_at(step, 100, 0.99) for step in range(101)]
    assert values[0] == pytest.approx(0.99)
    assert values[50] == pytest.approx(0.995)
    assert values[100] == pytest.approx(1.0)
    assert values == sorted(values)
