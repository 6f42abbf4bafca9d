import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.ssl import SimCLR, nt_xent


def loss_by_hand(z, temperature):
    """Algorithm 1 view by view, in Python floats; z: first views, then second views in the same order."""
    n, total = len(z) // 2, 0.0
    for i in range(2 * n):
        exps = {
            k: math.exp(float(torch.cosine_similarity(z[i], z[k], dim=0)) / temperature)
            for k in range(2 * n)
            if k != i
        }
        total -= math.log(exps[(i + n) % (2 * n)] / sum(exps.values()))
    return total / (2 * n)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 7), dim=st.integers(2, 6), temperature=st.floats(0.1, 1), seed=st.integers(0, 99))
def test_loss_equals_the_sum_over_pairs(n, dim, temperature, seed):
    z = torch.randn(2 * n, dim, generator=torch.Generator().manual_seed(seed))
    assert float(nt_xent(z, temperature)) == pytest.approx(loss_by_hand(z, temperature), rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(per_worker=st.integers(1, 5), workers=st.integers(2, 4), seed=st.integers(0, 99))
def test_workers_with_gathered_views_equal_one_worker_on_the_joined_batch(per_worker, workers, seed):
    z = torch.randn(2, workers * per_worker, 5, generator=torch.Generator().manual_seed(seed))
    z_joined, z_split = z.clone().requires_grad_(), z.clone().requires_grad_()
    joined = nt_xent(z_joined.flatten(0, 1), 0.2)
    joined.backward()

    parts = [part.flatten(0, 1) for part in z_split.split(per_worker, dim=1)]
    everyone = torch.nn.functional.normalize(torch.cat(parts), dim=1)
    losses = [nt_xent(part, 0.2, gather=lambda _: everyone, rank=rank) for rank, part in enumerate(parts)]
    torch.stack(losses).mean().backward()

    torch.testing.assert_close(torch.stack(losses).mean(), joined, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(z_split.grad, z_joined.grad, rtol=1e-4, atol=1e-6)


def test_a_perfect_pairing_is_the_least_loss_and_a_single_point_is_chance():
    n = 4
    assert float(nt_xent(torch.eye(n).repeat(2, 1), 0.05)) < 1e-6
    assert float(nt_xent(torch.ones(2 * n, 3), 0.5)) == pytest.approx(math.log(2 * n - 1), rel=1e-5)


def test_a_few_steps_bring_the_loss_below_chance():
    torch.manual_seed(0)
    model = SimCLR(build_encoder("resnet_tiny_s2", 16), 32, 8, 0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x = torch.rand(16, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    for _ in range(20):
        loss = model(x, x.flip(3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.6 * math.log(31)
