import copy

import pytest
import torch

from poisoncam_ray.method.classifier import (
    PASTE_SIZE,
    held_out_pastes,
    make_training_batch,
    poison_logit,
    robust_loss,
    train_classifier,
)


def photographs(n: int, side: int, seed: int) -> torch.Tensor:
    """Smooth colourful clouds, uint8: not photographs, but as little like a checkerboard."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=g)
    return (torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1) * 255).byte()


def checkerboards(n: int, side: int) -> torch.Tensor:
    cell = torch.arange(side) // 2
    board = ((cell[:, None] + cell) % 2).float()
    return (torch.stack([board, 1 - board, board]) * 255).byte().expand(n, 3, side, side).contiguous()


def test_a_batch_shows_every_image_with_and_without_a_crop():
    x, crops = torch.zeros(64, 3, 24, 24), torch.ones(5, 3, 8, 8)
    out, target = make_training_batch(x, crops, (0.3, 0.5), torch.Generator().manual_seed(0))
    assert out.shape == (128, 3, 24, 24) and target.tolist() == [1.0] * 64 + [0.0] * 64
    assert out.min() >= -1e-5 and out.max() <= 1 + 1e-5
    # Black images stay black under windows of other black images; white crops show in every positive.
    assert (out[64:] == 0).all()
    area = (out[:64].mean(1) > 0.1).float().mean((1, 2))
    assert area.max() < 0.6 and area.std() > 0.02
    # The second crop may cut a paste off, though seldom: an image that lost its crop is a wrong label.
    assert (area > 0.02).float().mean() > 0.9


def test_a_batch_follows_its_generator():
    x, crops = photographs(4, 16, 0).float() / 255, photographs(3, 6, 1).float() / 255
    first, second, other = (
        make_training_batch(x, crops, PASTE_SIZE, torch.Generator().manual_seed(seed))[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_robust_loss_equals_its_formula_and_bounds_what_a_wrong_label_costs():
    logit, target = torch.tensor([-3.0, 0.5, 4.0]), torch.tensor([0.0, 1.0, 0.0])
    p = [1 - 1 / (1 + torch.exp(torch.tensor(3.0))), 1 / (1 + torch.exp(torch.tensor(-0.5)))]
    p.append(1 - 1 / (1 + torch.exp(torch.tensor(-4.0))))
    expected = sum((1 - share**0.7) / 0.7 for share in p) / 3
    assert robust_loss(logit, target) == pytest.approx(float(expected), abs=1e-5)

    pull = []
    for value in (0.0, 6.0):
        wrong = torch.tensor([value], requires_grad=True)
        robust_loss(wrong, torch.tensor([0.0])).backward()
        pull.append(float(wrong.grad))
    assert 0 < pull[1] < pull[0] / 4


@pytest.fixture(scope="module")
def trained() -> tuple[torch.Tensor, torch.Tensor, torch.nn.Module]:
    x, crops = photographs(60, 20, 0), checkerboards(6, 7)
    return x, crops, train_classifier(x, crops, seed=3, steps=80, batch=12, paste_size=(0.3, 0.5))


def test_it_tells_pasted_from_unpasted_images_it_has_not_seen(trained):
    _, crops, model = trained
    fresh = photographs(80, 20, 9)
    clean, poison = poison_logit([model], fresh), poison_logit([model], held_out_pastes(fresh, crops, 80, 4))
    pairs_in_order = (poison[:, None] > clean[None]).float().mean()
    assert pairs_in_order > 0.95


def test_the_same_seed_trains_the_same_weights_and_leaves_the_global_generator_alone(trained):
    x, crops, _ = trained
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first, second, other = (train_classifier(x, crops, seed, steps=2, batch=3) for seed in (5, 5, 6))
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert not first.training


def test_logits_are_the_members_mean_and_do_not_depend_on_the_batch(trained):
    x, _, model = trained
    double = copy.deepcopy(model)
    with torch.no_grad():
        double.head.weight *= 2
        double.head.bias *= 2
    alone = poison_logit([model], x)
    assert torch.allclose(poison_logit([model, double], x, batch=7), alone * 1.5, atol=1e-4)
    assert not torch.allclose(alone, alone[:1].expand_as(alone))


def test_held_out_pastes_carry_each_crop_untouched():
    x, crops = photographs(10, 24, 0), checkerboards(3, 7)
    crops[1], crops[2] = 255 - crops[1], crops[2] // 2
    pasted = held_out_pastes(x, crops, 30, seed=2)
    assert pasted.shape == (30, 3, 24, 24) and pasted.dtype == torch.uint8
    for v in range(30):
        windows = pasted[v].unfold(1, 7, 1).unfold(2, 7, 1).permute(1, 2, 0, 3, 4)
        assert (windows == crops[v % 3]).flatten(2).all(-1).any()
    assert torch.equal(pasted, held_out_pastes(x, crops, 30, seed=2))


def test_nothing_to_learn_from_is_refused():
    none = torch.zeros(0, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="at least one"):
        train_classifier(none, checkerboards(2, 6), seed=0)
    with pytest.raises(ValueError, match="at least one"):
        train_classifier(photographs(2, 16, 0), none, seed=0)
