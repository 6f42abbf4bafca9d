"""The k-nearest-neighbour probe and the linear probe, against slow solutions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, normalize

from poisoncam_ray.method.probes import (
    accuracy,
    attack_success,
    choose_labelled,
    choose_penalty,
    false_positives,
    knn_predict,
    linear_predict,
)
from tests.examples import examples


def features(n: int, dim: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, dim, generator=g, dtype=torch.float64), dim=1)


def slow_knn(bank, labels, query, k, temperature):
    similarity = [sum(a * b for a, b in zip(row, query, strict=True)) for row in bank.tolist()]
    nearest = sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]
    votes: dict[int, float] = {}
    for i in nearest:
        label = int(labels[i])
        votes[label] = votes.get(label, 0) + math.exp(similarity[i] / temperature)
    return max(votes, key=lambda label: votes[label])


@given(st.integers(1, 20), st.integers(1, 25), st.sampled_from([0.02, 0.07, 1.0]), st.integers(0, 999))
@examples(40)
def test_knn_equals_counting_votes_in_a_loop(n, k, temperature, seed):
    bank, query = features(n, 4, seed), features(6, 4, seed + 1)
    labels = torch.randint(0, 5, (n,), generator=torch.Generator().manual_seed(seed))
    predicted = knn_predict(bank, labels, query, k, temperature)
    assert predicted.tolist() == [slow_knn(bank, labels, q, k, temperature) for q in query.tolist()]
    assert torch.equal(predicted, knn_predict(bank, labels, query, k, temperature, n_classes=9, batch=1))


def test_votes_do_not_overflow_at_a_tiny_temperature():
    bank = features(4, 3, 0).float()
    labels = torch.tensor([3, 1, 2, 0])
    assert knn_predict(bank, labels, bank, k=4, temperature=1e-4).tolist() == [3, 1, 2, 0]


def test_among_equal_votes_the_lowest_class_wins():
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert knn_predict(bank, torch.tensor([4, 2]), bank[:1], k=2).tolist() == [2]


def test_accuracy_attack_success_and_false_positives_of_a_small_example():
    predicted, y = torch.tensor([0, 1, 1, 2, 1]), torch.tensor([0, 1, 2, 2, 0])
    assert accuracy(predicted, y) == pytest.approx(3 / 5)
    assert attack_success(predicted, y, target=1) == pytest.approx(2 / 4)
    assert [false_positives(predicted, y, target) for target in (0, 1, 2)] == [0, 2, 0]


def test_probes_without_features_or_queries_are_refused():
    empty = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError):
        knn_predict(torch.zeros(0, 3), empty, torch.zeros(1, 3))
    with pytest.raises(ValueError):
        knn_predict(torch.zeros(1, 3), empty + 1, torch.zeros(1, 3))
    with pytest.raises(ValueError):
        accuracy(empty, empty)
    with pytest.raises(ValueError):
        attack_success(torch.tensor([1]), torch.tensor([1]), target=1)


@examples(40)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_choose_labelled_takes_the_lowest_draws_of_every_class_and_at_least_one(labels, share, seed):
    y_N = torch.tensor(labels)
    draw_N = torch.randint(10, (len(y_N),), generator=torch.Generator().manual_seed(seed))
    rows = choose_labelled(draw_N, y_N, share).tolist()
    assert rows == sorted(set(rows))
    for label in set(labels):
        ranked = sorted((i for i in range(len(labels)) if labels[i] == label), key=lambda i: (draw_N[i], i))
        keep = max(1, round(share * len(ranked)))
        assert [i for i in rows if labels[i] == label] == sorted(ranked[:keep])


def test_choose_labelled_does_not_depend_on_the_order_of_the_images():
    g = torch.Generator().manual_seed(0)
    draw_N, y_N = torch.randperm(300, generator=g), torch.randint(0, 5, (300,), generator=g)
    order = torch.randperm(300, generator=g)
    chosen, shuffled = choose_labelled(draw_N, y_N, 0.1), choose_labelled(draw_N[order], y_N[order], 0.1)
    assert set(draw_N[chosen].tolist()) == set(draw_N[order][shuffled].tolist())


def clouds(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes, separated by one small dimension each; the other dimensions are large noise."""
    g = torch.Generator().manual_seed(seed)
    y_N = torch.arange(n) % 3
    f_ND = torch.randn(n, 8, generator=g) * torch.tensor([1e-2, 1e-2, 1e-2, 1, 1, 1, 1, 1])
    f_ND[:, :3] += 0.1 * torch.eye(3)[y_N]
    return f_ND, y_N


def test_small_dimensions_count_because_all_are_standardised():
    f_ND, y_N = clouds(300, 0)
    q_MD, y_M = clouds(300, 1)
    assert (linear_predict(f_ND, y_N, q_MD, 3) == y_M).float().mean() > 0.9


def test_the_linear_probe_reaches_the_minimum_of_its_loss():
    """The loss is convex, so a slow solver finds the same weights."""
    f_ND, y_N = clouds(60, 2)
    z_ND = normalize(f_ND.double(), dim=1)
    z_ND = (z_ND - z_ND.mean(0)) / z_ND.std(0, unbiased=False)
    w_DC = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
    b_C = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    slow = torch.optim.SGD([w_DC, b_C], lr=0.3)
    for _ in range(3000):
        slow.zero_grad()
        loss = cross_entropy(z_ND @ w_DC + b_C, y_N) + 0.5 * w_DC.square().sum() / 60
        loss.backward()
        slow.step()
    q_MD, _ = clouds(500, 3)
    z_MD = normalize(q_MD.double(), dim=1)
    f_norm = normalize(f_ND.double(), dim=1)
    z_MD = (z_MD - f_norm.mean(0)) / f_norm.std(0, unbiased=False)
    expected = (z_MD @ w_DC + b_C).argmax(1)
    assert (linear_predict(f_ND, y_N, q_MD, 3) == expected).float().mean() > 0.995


def test_the_linear_probe_ignores_lengths_and_order_and_is_deterministic():
    f_ND, y_N = clouds(60, 4)
    q_MD, _ = clouds(90, 5)
    once = linear_predict(f_ND, y_N, q_MD, 3)
    assert torch.equal(once, linear_predict(f_ND, y_N, q_MD, 3))
    assert torch.equal(once, linear_predict(7 * f_ND, y_N, 0.2 * q_MD, 3))
    assert (once == linear_predict(f_ND.flip(0), y_N.flip(0), q_MD, 3)).float().mean() > 0.98


def test_the_penalty_is_chosen_by_held_out_images():
    g = torch.Generator().manual_seed(6)
    sure_ND, y_N = clouds(60, 7)
    held_y_N = torch.arange(600) % 3
    noise_ND = torch.randn(60, 40, generator=g) + 0.6 * torch.eye(40)[y_N]
    noise_MD = torch.randn(600, 40, generator=g) + 0.6 * torch.eye(40)[held_y_N]
    tuned, fixed = (
        float((linear_predict(noise_ND, y_N, noise_MD, 3, penalty) == held_y_N).float().mean())
        for penalty in (choose_penalty(noise_ND, y_N, 3), 1e-3)
    )
    assert tuned > fixed
    assert choose_penalty(sure_ND, y_N, 3, (1.0, 1e6)) == 1.0


def test_the_linear_probe_takes_one_image_per_class_and_empty_classes():
    f_ND = torch.eye(3)
    got = linear_predict(f_ND, torch.tensor([0, 3, 1]), f_ND, 5)
    assert got.tolist() == [0, 3, 1]


def test_a_linear_probe_without_features_and_a_wrong_share_are_refused():
    empty = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError):
        linear_predict(torch.zeros(0, 3), empty, torch.zeros(1, 3), 2)
    with pytest.raises(ValueError):
        choose_penalty(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64), 2)
    with pytest.raises(ValueError):
        choose_labelled(torch.zeros(2), torch.zeros(3, dtype=torch.int64), 0.5)
    with pytest.raises(ValueError):
        choose_labelled(torch.zeros(2), torch.zeros(2, dtype=torch.int64), 0.0)
