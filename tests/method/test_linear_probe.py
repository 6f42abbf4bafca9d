import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poisoncam_ray.method.probes import choose_labelled, linear_predict


@settings(max_examples=40)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_of_every_class_its_share_of_lowest_draws_at_least_one(labels, share, seed):
    y_N = torch.tensor(labels)
    draw_N = torch.randint(10, (len(y_N),), generator=torch.Generator().manual_seed(seed))
    rows = choose_labelled(draw_N, y_N, share).tolist()
    assert rows == sorted(set(rows))
    for label in set(labels):
        ranked = sorted((i for i in range(len(labels)) if labels[i] == label), key=lambda i: (draw_N[i], i))
        keep = max(1, round(share * len(ranked)))
        assert [i for i in rows if labels[i] == label] == sorted(ranked[:keep])


def test_the_choice_is_the_images_own_whatever_their_order():
    g = torch.Generator().manual_seed(0)
    draw_N, y_N = torch.randperm(300, generator=g), torch.randint(0, 5, (300,), generator=g)
    order = torch.randperm(300, generator=g)
    chosen, shuffled = choose_labelled(draw_N, y_N, 0.1), choose_labelled(draw_N[order], y_N[order], 0.1)
    assert set(draw_N[chosen].tolist()) == set(draw_N[order][shuffled].tolist())


def clouds(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes told apart by one dimension each, of very different size; the rest is loud noise."""
    g = torch.Generator().manual_seed(seed)
    y_N = torch.arange(n) % 3
    f_ND = torch.randn(n, 8, generator=g) * torch.tensor([1e-2, 1e-2, 1e-2, 1, 1, 1, 1, 1])
    f_ND[:, :3] += 0.1 * torch.eye(3)[y_N]
    return f_ND, y_N


def test_what_small_dimensions_tell_is_learned_since_all_are_standardised():
    f_ND, y_N = clouds(300, 0)
    q_MD, y_M = clouds(300, 1)
    assert (linear_predict(f_ND, y_N, q_MD, 3) == y_M).float().mean() > 0.9


def test_the_minimum_is_found():
    """At the minimum the gradient of the convex loss vanishes: weights from there are those of any solver."""
    from torch.nn.functional import normalize

    f_ND, y_N = clouds(60, 2)
    z_ND = normalize(f_ND.double(), dim=1)
    z_ND = (z_ND - z_ND.mean(0)) / z_ND.std(0, unbiased=False)
    w_DC = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
    b_C = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    slow = torch.optim.SGD([w_DC, b_C], lr=0.3)
    for _ in range(3000):
        slow.zero_grad()
        loss = torch.nn.functional.cross_entropy(z_ND @ w_DC + b_C, y_N) + 0.5 * w_DC.square().sum() / 60
        loss.backward()
        slow.step()
    q_MD, _ = clouds(500, 3)
    z_MD = normalize(q_MD.double(), dim=1)
    f_norm = normalize(f_ND.double(), dim=1)
    z_MD = (z_MD - f_norm.mean(0)) / f_norm.std(0, unbiased=False)
    expected = (z_MD @ w_DC + b_C).argmax(1)
    assert (linear_predict(f_ND, y_N, q_MD, 3) == expected).float().mean() > 0.995


def test_length_and_order_of_features_tell_nothing_and_the_answer_repeats():
    f_ND, y_N = clouds(60, 4)
    q_MD, _ = clouds(90, 5)
    once = linear_predict(f_ND, y_N, q_MD, 3)
    assert torch.equal(once, linear_predict(f_ND, y_N, q_MD, 3))
    assert torch.equal(once, linear_predict(7 * f_ND, y_N, 0.2 * q_MD, 3))
    assert (once == linear_predict(f_ND.flip(0), y_N.flip(0), q_MD, 3)).float().mean() > 0.98


def test_one_image_a_class_and_a_class_without_images():
    f_ND = torch.eye(3)
    got = linear_predict(f_ND, torch.tensor([0, 3, 1]), f_ND, 5)
    assert got.tolist() == [0, 3, 1]


def test_nothing_to_learn_from_is_refused():
    empty = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError):
        linear_predict(torch.zeros(0, 3), empty, torch.zeros(1, 3), 2)
    with pytest.raises(ValueError):
        choose_labelled(torch.zeros(2), torch.zeros(3, dtype=torch.int64), 0.5)
    with pytest.raises(ValueError):
        choose_labelled(torch.zeros(2), torch.zeros(2, dtype=torch.int64), 0.0)
