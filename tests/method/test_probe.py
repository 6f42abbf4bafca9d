import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from poisoncam_ray.method.probes import accuracy, attack_success, false_positives, knn_predict


def features(n: int, dim: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(n, dim, generator=g, dtype=torch.float64), dim=1)


def slow_knn(bank, labels, query, k, temperature):
    similarity = [sum(a * b for a, b in zip(row, query, strict=True)) for row in bank.tolist()]
    nearest = sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]
    votes: dict[int, float] = {}
    for i in nearest:
        label = int(labels[i])
        votes[label] = votes.get(label, 0) + math.exp(similarity[i] / temperature)
    return max(votes, key=lambda label: votes[label])


@given(st.integers(1, 20), st.integers(1, 25), st.sampled_from([0.02, 0.07, 1.0]), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_knn_equals_counting_votes_by_hand(n, k, temperature, seed):
    bank, query = features(n, 4, seed), features(6, 4, seed + 1)
    labels = torch.randint(0, 5, (n,), generator=torch.Generator().manual_seed(seed))
    predicted = knn_predict(bank, labels, query, k, temperature)
    assert predicted.tolist() == [slow_knn(bank, labels, q, k, temperature) for q in query.tolist()]
    assert torch.equal(predicted, knn_predict(bank, labels, query, k, temperature, n_classes=9, batch=1))


def test_votes_do_not_overflow_at_a_tiny_temperature():
    bank = features(4, 3, 0).float()
    labels = torch.tensor([3, 1, 2, 0])
    assert knn_predict(bank, labels, bank, k=4, temperature=1e-4).tolist() == [3, 1, 2, 0]


def test_equal_votes_go_to_the_lowest_class():
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert knn_predict(bank, torch.tensor([4, 2]), bank[:1], k=2).tolist() == [2]


def test_accuracy_and_attack_success_by_hand():
    predicted, y = torch.tensor([0, 1, 1, 2, 1]), torch.tensor([0, 1, 2, 2, 0])
    assert accuracy(predicted, y) == pytest.approx(3 / 5)
    assert attack_success(predicted, y, target=1) == pytest.approx(2 / 4)
    assert [false_positives(predicted, y, target) for target in (0, 1, 2)] == [0, 2, 0]


def test_nothing_to_measure_is_refused():
    empty = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError):
        knn_predict(torch.zeros(0, 3), empty, torch.zeros(1, 3))
    with pytest.raises(ValueError):
        knn_predict(torch.zeros(1, 3), empty + 1, torch.zeros(1, 3))
    with pytest.raises(ValueError):
        accuracy(empty, empty)
    with pytest.raises(ValueError):
        attack_success(torch.tensor([1]), torch.tensor([1]), target=1)
