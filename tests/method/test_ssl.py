"""The objectives of pretraining: losses against loops, followers, schedules, and two workers against one."""

import copy
import math
import socket
from typing import get_args

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.config import Pretrain
from poisoncam_ray.method.augment import ASYMMETRIC, SYMMETRIC, SYMMETRIC_MILD, apply_views, draw_views
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.ssl import (
    BYOL,
    OBJECTIVES,
    MoCoV3,
    Objective,
    SimCLR,
    SimSiam,
    contrastive_loss,
    follow,
    gather_rows,
    learning_rate_at,
    mlp,
    momentum_at,
    negative_cosine,
    nt_xent,
    regression_loss,
)
from tests.examples import examples

every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def tiny(name: str, seed: int = 0):
    torch.manual_seed(seed)
    return OBJECTIVES[name](build_encoder("resnet_tiny_s2", 16), 32, 8, 0.2)


def test_the_configuration_has_the_same_names_of_objectives():
    assert set(get_args(Pretrain.model_fields["objective"].annotation)) == set(OBJECTIVES)


def test_each_objective_has_the_views_of_its_paper():
    recipes = {name: objective.recipe for name, objective in OBJECTIVES.items()}
    assert recipes == {
        "moco_v3": ASYMMETRIC, "simclr": SYMMETRIC, "byol": ASYMMETRIC, "simsiam": SYMMETRIC_MILD
    }  # fmt: skip
    assert all(first == second for first, second in (SYMMETRIC, SYMMETRIC_MILD))
    assert ASYMMETRIC[0] != ASYMMETRIC[1]


@every_objective
def test_one_step_changes_the_encoder_and_nothing_that_is_frozen(name):
    model, x = tiny(name), torch.rand(8, 3, 16, 16)
    before = {key: p.clone() for key, p in model.named_parameters()}
    drawn = draw_views(8, torch.Generator().manual_seed(0), model.recipe)
    loss = model(*apply_views(torch.stack([x, x], 1), drawn))
    assert loss.shape == () and loss.isfinite()
    loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    for key, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad == (not key.startswith(("key_", "target_"))), key
        assert p.requires_grad or torch.equal(p, before[key]), key
    for key, p in model.encoder.named_parameters(prefix="encoder"):
        assert not torch.equal(p, before[key]), key


@every_objective
def test_the_loss_does_not_depend_on_the_order_of_the_views(name):
    model, (v1, v2) = tiny(name), torch.rand(2, 6, 3, 16, 16)
    torch.testing.assert_close(model(v1, v2), model(v2, v1), rtol=1e-4, atol=1e-5)


@every_objective
def test_moving_averages_start_as_the_online_network_and_follow_it(name):
    model = tiny(name)
    followers = [key for key, _ in model.named_children() if key.startswith(("key_", "target_"))]
    assert len(followers) == (0 if name in ("simclr", "simsiam") else 2)

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


def tiny_moco(seed: int = 0) -> MoCoV3:
    torch.manual_seed(seed)
    return MoCoV3(build_encoder("resnet_tiny", 16), hidden_dim=32, out_dim=8, temperature=0.2)


def slow_contrastive_loss(q, k, temperature):
    """InfoNCE pair by pair, in Python floats."""
    total = 0.0
    for i, qi in enumerate(q):
        exps = [math.exp(float(torch.cosine_similarity(qi, kj, dim=0)) / temperature) for kj in k]
        total -= math.log(exps[i] / sum(exps))
    return 2 * temperature * total / len(q)


@examples(25)
@given(n=st.integers(2, 9), dim=st.integers(2, 6), temperature=st.floats(0.1, 1), seed=st.integers(0, 99))
def test_contrastive_loss_equals_a_loop_over_pairs(n, dim, temperature, seed):
    g = torch.Generator().manual_seed(seed)
    # In float64: a loss near 0 is the difference of logits of up to 1 / temperature = 10, which are exact to
    # about 10 * 2^-53 = 1e-15. In float32 they are exact to 6e-7, and the loss may be smaller than that.
    q, k = torch.randn(2, n, dim, generator=g, dtype=torch.float64)
    assert float(contrastive_loss(q, k, temperature)) == pytest.approx(
        slow_contrastive_loss(q, k, temperature), rel=1e-9, abs=1e-13
    )


@examples(25)
@given(per_worker=st.integers(1, 6), workers=st.integers(2, 4), seed=st.integers(0, 99))
def test_contrastive_loss_of_workers_equals_that_of_one_on_the_joined_batch(per_worker, workers, seed):
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, workers * per_worker, 5, generator=g, dtype=torch.float64)
    q_joined, q_split = q.clone().requires_grad_(), q.clone().requires_grad_()
    joined = contrastive_loss(q_joined, k, 0.2)
    joined.backward()

    all_keys = torch.nn.functional.normalize(k, dim=1)
    losses = [
        contrastive_loss(q_r, k_r, 0.2, gather=lambda _: all_keys, rank=rank)
        for rank, (q_r, k_r) in enumerate(zip(q_split.split(per_worker), k.split(per_worker), strict=True))
    ]
    torch.stack(losses).mean().backward()

    torch.testing.assert_close(torch.stack(losses).mean(), joined, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(q_split.grad, q_joined.grad, rtol=1e-9, atol=1e-12)


def test_mocos_loss_is_symmetric_in_the_views():
    moco, x = tiny_moco(), torch.rand(2, 6, 3, 16, 16)
    one, other = moco(x[0], x[1]), moco(x[1], x[0])
    assert torch.allclose(one, other, atol=1e-5)


def test_mocos_key_network_starts_as_the_query_network_and_gets_no_gradient():
    moco, x = tiny_moco(), torch.rand(2, 6, 3, 16, 16)
    for k, q in zip(moco.key_encoder.parameters(), moco.encoder.parameters(), strict=True):
        assert torch.equal(k, q)
    moco(x[0], x[1]).backward()
    for name, p in moco.named_parameters():
        assert (p.grad is None) == name.startswith("key_"), name


def test_a_few_steps_of_moco_reduce_the_loss_below_chance():
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


def slow_nt_xent(z, temperature):
    """Algorithm 1 view by view, in Python floats. z: first views, then second views in the same order."""
    n, total = len(z) // 2, 0.0
    for i in range(2 * n):
        exps = {
            k: math.exp(float(torch.cosine_similarity(z[i], z[k], dim=0)) / temperature)
            for k in range(2 * n)
            if k != i
        }
        total -= math.log(exps[(i + n) % (2 * n)] / sum(exps.values()))
    return total / (2 * n)


@examples(25)
@given(n=st.integers(2, 7), dim=st.integers(2, 6), temperature=st.floats(0.1, 1), seed=st.integers(0, 99))
def test_nt_xent_equals_a_loop_over_pairs(n, dim, temperature, seed):
    # In float64: in float32 the loss is exact to about 1e-6, and it may be smaller.
    z = torch.randn(2 * n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert float(nt_xent(z, temperature)) == pytest.approx(slow_nt_xent(z, temperature), rel=1e-9, abs=1e-13)


@examples(25)
@given(per_worker=st.integers(1, 5), workers=st.integers(2, 4), seed=st.integers(0, 99))
def test_nt_xent_of_workers_equals_that_of_one_on_the_joined_batch(per_worker, workers, seed):
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


def test_nt_xent_of_perfect_pairs_is_zero_and_of_equal_projections_is_chance():
    n = 4
    assert float(nt_xent(torch.eye(n).repeat(2, 1), 0.05)) < 1e-6
    assert float(nt_xent(torch.ones(2 * n, 3), 0.5)) == pytest.approx(math.log(2 * n - 1), rel=1e-5)


def test_a_few_steps_of_simclr_reduce_the_loss_below_chance():
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


def tiny_byol() -> BYOL:
    torch.manual_seed(0)
    return BYOL(build_encoder("resnet_tiny_s2", 16), hidden_dim=32, out_dim=8)


def slow_regression_loss(p, t):
    """Squared distance of unit vectors, image by image, in Python floats."""
    total = 0.0
    for a, b in zip(p.tolist(), t.tolist(), strict=True):
        length_a, length_b = math.hypot(*a), math.hypot(*b)
        total += sum((x / length_a - y / length_b) ** 2 for x, y in zip(a, b, strict=True))
    return total / len(p)


@examples(25)
@given(n=st.integers(1, 9), dim=st.integers(2, 6), seed=st.integers(0, 99))
def test_regression_loss_equals_a_loop_over_images(n, dim, seed):
    p, t = torch.randn(2, n, dim, generator=torch.Generator().manual_seed(seed))
    loss = float(regression_loss(p, t))
    assert loss == pytest.approx(slow_regression_loss(p, t), rel=1e-4)
    assert loss == pytest.approx(float(2 - 2 * torch.cosine_similarity(p, t).mean()), abs=1e-5)
    assert float(regression_loss(3 * p, t / 7)) == pytest.approx(loss, rel=1e-4)


def test_byol_predicts_the_target_of_the_other_view():
    model, (v1, v2) = tiny_byol(), torch.rand(2, 6, 3, 16, 16)
    # The target differs from the online network, so that mixing them up would be noticed.
    with torch.no_grad():
        for p in model.target_encoder.parameters():
            p.add_(0.05 * torch.randn_like(p))
    p1, p2 = (model.predictor(model.projector(model.encoder(v))) for v in (v1, v2))
    t1, t2 = (model.target_projector(model.target_encoder(v)) for v in (v1, v2))
    by_hand = slow_regression_loss(p1, t2) + slow_regression_loss(p2, t1)
    assert model(v1, v2).item() == pytest.approx(by_hand, rel=1e-4)
    assert abs(by_hand - slow_regression_loss(p1, t1) - slow_regression_loss(p2, t2)) > 1e-3


def test_a_few_steps_of_byol_reduce_the_loss_and_features_do_not_collapse():
    model = tiny_byol()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    x = torch.rand(16, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    losses = []
    for _ in range(20):
        model.update_target(0.9)
        loss = model(x, x.flip(3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    z = torch.nn.functional.normalize(model.projector(model.encoder(x)), dim=1)
    mean_cosine = (z @ z.T)[~torch.eye(len(z), dtype=torch.bool)].mean().item()
    assert mean_cosine < 0.8


def tiny_simsiam() -> SimSiam:
    torch.manual_seed(0)
    return SimSiam(build_encoder("resnet_tiny_s2", 16), hidden_dim=32, out_dim=8)


def slow_negative_cosine(p, z):
    """The cosine image by image, in Python floats."""
    pairs = list(zip(p.tolist(), z.tolist(), strict=True))
    dots = [sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b) for a, b in pairs]
    return -sum(dots) / len(pairs)


@examples(25)
@given(n=st.integers(1, 9), dim=st.integers(2, 6), seed=st.integers(0, 99))
def test_negative_cosine_equals_a_loop_over_images(n, dim, seed):
    p, z = torch.randn(2, n, dim, generator=torch.Generator().manual_seed(seed))
    assert float(negative_cosine(p, z)) == pytest.approx(slow_negative_cosine(p, z), rel=1e-4, abs=1e-6)
    assert float(negative_cosine(p, 3 * p)) == pytest.approx(-1, abs=1e-6)


def test_simsiam_predicts_the_projection_of_the_other_view():
    model, (v1, v2) = tiny_simsiam(), torch.rand(2, 6, 3, 16, 16)
    z1, z2 = (model.projector(model.encoder(v)) for v in (v1, v2))
    p1, p2 = model.predictor(z1), model.predictor(z2)
    by_hand = (slow_negative_cosine(p1, z2) + slow_negative_cosine(p2, z1)) / 2
    assert model(v1, v2).item() == pytest.approx(by_hand, rel=1e-4)
    assert abs(by_hand - (slow_negative_cosine(p1, z1) + slow_negative_cosine(p2, z2)) / 2) > 1e-3


def test_what_simsiam_predicts_gets_no_gradient():
    p, z = torch.randn(2, 5, 4, requires_grad=True).unbind()
    p.retain_grad()
    z.retain_grad()
    negative_cosine(p, z).backward()
    assert p.grad.abs().max() > 0 and z.grad is None
    # So the encoder learns by the predictor alone: with a predictor of zeros there is nothing to learn.
    model = tiny_simsiam()
    with torch.no_grad():
        model.predictor[-1].weight.zero_()
    model(*torch.rand(2, 6, 3, 16, 16)).backward()
    assert all((weight.grad == 0).all() for weight in model.encoder.parameters())


def test_simsiams_heads_are_those_of_its_paper():
    model = SimSiam(build_encoder("resnet_tiny_s2", 16))
    widths = {
        name: [layer.out_features for layer in head if isinstance(layer, torch.nn.Linear)]
        for name, head in (("projector", model.projector), ("predictor", model.predictor))
    }
    assert widths == {"projector": [2048, 2048, 2048], "predictor": [512, 2048]}
    assert isinstance(model.projector[-1], torch.nn.BatchNorm1d)
    assert isinstance(model.predictor[-1], torch.nn.Linear) and model.predictor[-1].bias is not None


def test_a_few_steps_of_simsiam_reduce_the_loss_and_projections_do_not_collapse():
    model = tiny_simsiam()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x = torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x = x.repeat_interleave(4, 2).repeat_interleave(4, 3)
    losses = []
    for _ in range(40):
        loss = model(x, x.flip(3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < -0.4 and abs(losses[0]) < 0.2
    # The paper's measure of collapse (figure 2): 0 for a constant, 1 / sqrt(E) for even directions.
    z = torch.nn.functional.normalize(model.projector(model.encoder(x)), dim=1)
    assert z.std(0).mean().item() > 0.7 / math.sqrt(8)


def test_head_outputs_are_normalised_over_the_batch_on_request():
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    for widths in [(5, 3), (5, 16, 3), (5, 16, 16, 3)]:
        y = mlp(*widths)(x)
        assert y.shape == (64, 3)
        torch.testing.assert_close(y.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
        torch.testing.assert_close(y.var(0, correction=0), torch.ones(3), rtol=0, atol=1e-2)
        plain = mlp(*widths, norm_last=False)(x)
        assert plain.shape == (64, 3)
        assert (plain.mean(0).abs() > 1e-3).any()


def test_only_a_last_layer_without_normalisation_has_a_bias():
    def biased(head):
        return [layer.bias is not None for layer in head if isinstance(layer, torch.nn.Linear)]

    assert biased(mlp(5, 8, 8, 3)) == [False, False, False]
    assert biased(mlp(5, 8, 8, 3, norm_last=False)) == [False, False, True]
    assert all(p.requires_grad for p in mlp(5, 8, 3).parameters())


def test_hidden_layers_of_a_head_are_rectified():
    head = mlp(5, 8, 3, norm_last=False)
    assert (head[:-1](torch.randn(32, 5)) >= 0).all()
    assert (head(torch.randn(32, 5)) < 0).any()


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_follow_equals_a_loop_over_weights(momentum):
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


def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    rate = [learning_rate_at(step, 110, 10, 2e-3) for step in range(111)]
    assert rate[0] == 0
    assert rate[5] == pytest.approx(1e-3)
    assert rate[10] == max(rate) == pytest.approx(2e-3)
    assert rate[60] == pytest.approx(1e-3)
    assert rate[110] == pytest.approx(0, abs=1e-12)
    assert rate[10:] == sorted(rate[10:], reverse=True)


def test_the_learning_rate_without_warmup_starts_at_its_base():
    assert learning_rate_at(0, 100, 0, 1.0) == 1.0


WORLD = 2


def model_of(name: str) -> Objective:
    # In evaluation mode batch normalisation ignores the batch; only the loss compares images.
    torch.manual_seed(0)
    return OBJECTIVES[name](build_encoder("resnet_tiny_s2", 16), 16, 8, 0.2).eval()


def views() -> torch.Tensor:
    return torch.rand(2, 6, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.requires_grad]


def worker(rank, port, results):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    learned = {}
    for name in OBJECTIVES:
        model = model_of(name)
        v1, v2 = views().chunk(WORLD, dim=1)[rank]
        loss = model(v1, v2, gather_rows, rank)
        loss.backward()
        # As DistributedDataParallel does, without the seconds that it takes to import.
        for grad in gradients(model):
            dist.all_reduce(grad)
            grad /= WORLD
        learned[name] = (loss.item(), [grad.numpy() for grad in gradients(model)])
    results.put((rank, learned))
    dist.destroy_process_group()


def test_two_processes_learn_what_one_worker_learns_from_the_joined_batch():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    processes = mp.spawn(worker, args=(port, results), nprocs=WORLD, join=False)
    workers = dict(results.get() for _ in range(WORLD))
    processes.join()

    for name in OBJECTIVES:
        model = model_of(name)
        joined = model(*views())
        joined.backward()
        mean = sum(workers[rank][name][0] for rank in range(WORLD)) / WORLD
        assert mean == pytest.approx(joined.item(), rel=1e-5), name
        for rank in range(WORLD):
            for theirs, ours in zip(workers[rank][name][1], gradients(model), strict=True):
                # By rounding, which differs between CPUs; the largest gradients are above 1e-2.
                torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-3, atol=5e-5)
        assert max(float(grad.abs().max()) for grad in gradients(model)) > 1e-2, name


LOSSES = [
    lambda a, b: contrastive_loss(a, b, 0.2),
    lambda a, b: nt_xent(torch.cat([a, b]), 0.2),
    regression_loss,
    negative_cosine,
]


@pytest.mark.parametrize("loss", LOSSES, ids=["contrastive", "nt_xent", "regression", "negative_cosine"])
def test_losses_are_float32_where_networks_compute_in_bfloat16(loss):
    """Logits in bfloat16 would be off by some hundredths: their eight bits at up to 1 / 0.2."""
    a, b = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    plain = loss(a.float(), b.float())
    with torch.autocast("cpu", torch.bfloat16):
        low = loss(a.requires_grad_(), b)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(float(plain), rel=1e-6)
    low.backward()
    assert a.grad.dtype == torch.bfloat16 and a.grad.float().norm() > 0
