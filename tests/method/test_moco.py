import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.ssl import MoCoV3, contrastive_loss


def tiny_moco(seed: int = 0) -> MoCoV3:
    torch.manual_seed(seed)
    return MoCoV3(build_encoder("resnet_tiny", 16), hidden_dim=32, out_dim=8, temperature=0.2)


def loss_by_hand(q, k, temperature):
    """InfoNCE pair by pair, in Python floats."""
    total = 0.0
    for i, qi in enumerate(q):
        exps = [math.exp(float(torch.cosine_similarity(qi, kj, dim=0)) / temperature) for kj in k]
        total -= math.log(exps[i] / sum(exps))
    return 2 * temperature * total / len(q)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 9), dim=st.integers(2, 6), temperature=st.floats(0.1, 1), seed=st.integers(0, 99))
def test_loss_equals_the_sum_over_pairs(n, dim, temperature, seed):
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(n, dim, generator=g), torch.randn(n, dim, generator=g)
    assert float(contrastive_loss(q, k, temperature)) == pytest.approx(
        loss_by_hand(q, k, temperature), rel=1e-4
    )


@settings(max_examples=25, deadline=None)
@given(per_worker=st.integers(1, 6), workers=st.integers(2, 4), seed=st.integers(0, 99))
def test_workers_with_gathered_keys_equal_one_worker_on_the_joined_batch(per_worker, workers, seed):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(workers * per_worker, 5, generator=g)
    k = torch.randn(workers * per_worker, 5, generator=g)
    q_joined, q_split = q.clone().requires_grad_(), q.clone().requires_grad_()
    joined = contrastive_loss(q_joined, k, 0.2)
    joined.backward()

    all_keys = torch.nn.functional.normalize(k, dim=1)
    losses = [
        contrastive_loss(q_r, k_r, 0.2, gather=lambda _: all_keys, rank=rank)
        for rank, (q_r, k_r) in enumerate(zip(q_split.split(per_worker), k.split(per_worker), strict=True))
    ]
    torch.stack(losses).mean().backward()

    assert torch.allclose(torch.stack(losses).mean(), joined, atol=1e-6)
    assert torch.allclose(q_split.grad, q_joined.grad, atol=1e-6)


def test_loss_is_symmetric_in_the_views():
    moco, x = tiny_moco(), torch.rand(2, 6, 3, 16, 16)
    one, other = moco(x[0], x[1]), moco(x[1], x[0])
    assert torch.allclose(one, other, atol=1e-5)


def test_key_network_starts_as_the_query_network_and_takes_no_gradient():
    moco, x = tiny_moco(), torch.rand(2, 6, 3, 16, 16)
    for k, q in zip(moco.key_encoder.parameters(), moco.encoder.parameters(), strict=True):
        assert torch.equal(k, q)
    moco(x[0], x[1]).backward()
    for name, p in moco.named_parameters():
        assert (p.grad is None) == name.startswith("key_"), name


def test_a_few_steps_bring_the_loss_below_chance():
    moco = tiny_moco()
    optimizer = torch.optim.AdamW([p for p in moco.parameters() if p.requires_grad], lr=3e-3)
    x = torch.rand(16, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    for _ in range(15):
        moco.update_target(0.9)
        loss = moco(x, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chance = 2 * 2 * 0.2 * math.log(16)
    assert loss.item() < 0.6 * chance
