import copy
import math
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.moco import (
    MoCoV3,
    contrastive_loss,
    gather_keys,
    learning_rate_at,
    momentum_at,
)


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


def worker(rank, port, q, k, results):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    q_r = q.chunk(2)[rank].clone().requires_grad_()
    loss = contrastive_loss(q_r, k.chunk(2)[rank], 0.2, gather=gather_keys, rank=dist.get_rank())
    loss.backward()
    results.put((rank, loss.item(), q_r.grad.tolist()))
    dist.destroy_process_group()


def test_two_real_processes_equal_one_worker_on_the_joined_batch():
    g = torch.Generator().manual_seed(3)
    q, k = torch.randn(6, 5, generator=g), torch.randn(6, 5, generator=g)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    processes = mp.spawn(worker, args=(port, q, k, results), nprocs=2, join=False)
    (_, loss_0, grad_0), (_, loss_1, grad_1) = sorted(results.get() for _ in range(2))
    processes.join()

    q_joined = q.clone().requires_grad_()
    joined = contrastive_loss(q_joined, k, 0.2)
    joined.backward()
    assert (loss_0 + loss_1) / 2 == pytest.approx(joined.item(), rel=1e-5)
    assert torch.allclose(torch.tensor(grad_0 + grad_1) / 2, q_joined.grad, atol=1e-6)


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


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_momentum_update_against_a_loop(momentum):
    moco = tiny_moco()
    with torch.no_grad():
        for p in [*moco.encoder.parameters(), *moco.projector.parameters()]:
            p.add_(torch.randn_like(p))
    before = copy.deepcopy(moco.state_dict())
    moco.update_key(momentum)
    after = moco.state_dict()
    for name, _ in moco.named_parameters():
        expected = before[name]
        if name.startswith("key_"):
            query = before[name.removeprefix("key_")]
            expected = torch.tensor(
                [
                    momentum * a + (1 - momentum) * b
                    for a, b in zip(expected.flatten(), query.flatten(), strict=True)
                ]
            ).view_as(query)
        assert torch.allclose(after[name], expected, atol=1e-6), name


def test_a_few_steps_bring_the_loss_below_chance():
    moco = tiny_moco()
    optimizer = torch.optim.AdamW([p for p in moco.parameters() if p.requires_grad], lr=3e-3)
    x = torch.rand(16, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    for _ in range(15):
        moco.update_key(0.9)
        loss = moco(x, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chance = 2 * 2 * 0.2 * math.log(16)
    assert loss.item() < 0.6 * chance


def test_momentum_rises_from_base_to_one():
    values = [momentum_at(step, 100, 0.99) for step in range(101)]
    assert values[0] == pytest.approx(0.99)
    assert values[50] == pytest.approx(0.995)
    assert values[100] == pytest.approx(1.0)
    assert values == sorted(values)


def test_learning_rate_warms_up_then_falls_along_a_cosine():
    rate = [learning_rate_at(step, 110, 10, 2e-3) for step in range(111)]
    assert rate[0] == 0
    assert rate[5] == pytest.approx(1e-3)
    assert rate[10] == max(rate) == pytest.approx(2e-3)
    assert rate[60] == pytest.approx(1e-3)
    assert rate[110] == pytest.approx(0, abs=1e-12)
    assert rate[10:] == sorted(rate[10:], reverse=True)


def test_learning_rate_without_warmup_starts_at_base():
    assert learning_rate_at(0, 100, 0, 1.0) == 1.0
