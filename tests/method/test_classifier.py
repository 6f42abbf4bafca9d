"""Training batches, loss, training, logits and threshold of the poison classifier."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.method.classifier import (
    PASTE_SIZE,
    choose_threshold,
    held_out_pastes,
    make_training_batch,
    poison_logit,
    robust_loss,
    train_classifier,
)
from tests.examples import examples


def photographs(n: int, side: int, seed: int) -> torch.Tensor:
    """Smooth colourful noise, uint8, which does not look like a checkerboard."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=g)
    return (torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1) * 255).byte()


def checkerboards(n: int, side: int) -> torch.Tensor:
    cell = torch.arange(side) // 2
    board = ((cell[:, None] + cell) % 2).float()
    return (torch.stack([board, 1 - board, board]) * 255).byte().expand(n, 3, side, side).contiguous()


def test_a_training_batch_has_every_image_with_and_without_a_crop():
    x, crops = torch.zeros(64, 3, 24, 24), torch.ones(5, 3, 8, 8)
    out, target = make_training_batch(x, crops, (0.3, 0.5), torch.Generator().manual_seed(0))
    assert out.shape == (128, 3, 24, 24) and target.tolist() == [1.0] * 64 + [0.0] * 64
    assert out.min() >= -1e-5 and out.max() <= 1 + 1e-5
    # Windows of other black images are black; a positive shows a white crop.
    assert (out[64:] == 0).all()
    area = (out[:64].mean(1) > 0.1).float().mean((1, 2))
    assert area.max() < 0.6 and area.std() > 0.02
    # The last crop may cut a paste off, but seldom: such an image has a wrong label.
    assert (area > 0.02).float().mean() > 0.9


@pytest.mark.parametrize("aspects", [1.0, 4.0])
def test_pastes_are_stretched_where_the_corpus_has_several_aspects(aspects):
    """Black images, white crops: the sides of each paste, before it is cropped again, tell its aspect."""
    x, crops = torch.zeros(200, 3, 48, 48), torch.ones(5, 3, 8, 8)
    out, _ = make_training_batch(x, crops, (0.25, 0.3), torch.Generator().manual_seed(0), aspects)
    white_BHW = out[:200].mean(1) > 0.2
    across, down = white_BHW.any(1).sum(1).float(), white_BHW.any(2).sum(1).float()
    ratio = (across / down.clamp(min=1))[(across > 0) & (down > 0)]
    # The random resized crop at the end stretches by up to 4/3 in any case.
    if aspects == 1:
        assert ratio.quantile(0.05) > 0.6 and ratio.quantile(0.95) < 1.7
    else:
        assert ratio.quantile(0.1) < 0.6 and ratio.quantile(0.9) > 1.7


def test_a_training_batch_depends_on_its_generator_only():
    x, crops = photographs(4, 16, 0).float() / 255, photographs(3, 6, 1).float() / 255
    first, second, other = (
        make_training_batch(x, crops, PASTE_SIZE, torch.Generator().manual_seed(seed))[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_robust_loss_equals_its_formula_and_bounds_the_gradient_of_a_wrong_label():
    logit, target = torch.tensor([-3.0, 0.5, 4.0]), torch.tensor([0.0, 1.0, 0.0])
    p = [1 - 1 / (1 + torch.exp(torch.tensor(3.0))), 1 / (1 + torch.exp(torch.tensor(-0.5)))]
    p.append(1 - 1 / (1 + torch.exp(torch.tensor(-4.0))))
    expected = sum((1 - share**0.7) / 0.7 for share in p) / 3
    assert robust_loss(logit, target) == pytest.approx(float(expected), abs=1e-5)

    gradient = []
    for value in (0.0, 6.0):
        wrong = torch.tensor([value], requires_grad=True)
        robust_loss(wrong, torch.tensor([0.0])).backward()
        gradient.append(float(wrong.grad))
    assert 0 < gradient[1] < gradient[0] / 4


@pytest.fixture(scope="module")
def trained() -> tuple[torch.Tensor, torch.Tensor, torch.nn.Module]:
    x, crops = photographs(60, 20, 0), checkerboards(6, 7)
    return x, crops, train_classifier(x, crops, seed=3, steps=80, batch=12, paste_size=(0.3, 0.5))


def test_a_trained_classifier_ranks_unseen_pasted_images_above_unseen_clean_images(trained):
    _, crops, model = trained
    fresh = photographs(80, 20, 9)
    clean, poison = poison_logit([model], fresh), poison_logit([model], held_out_pastes(fresh, crops, 80, 4))
    pairs_in_order = (poison[:, None] > clean[None]).float().mean()
    assert pairs_in_order > 0.95


def test_weights_depend_on_the_seed_only_and_the_global_generator_is_unchanged(trained):
    x, crops, _ = trained
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first, second, other = (train_classifier(x, crops, seed, steps=2, batch=3) for seed in (5, 5, 6))
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert not first.training


def test_poison_logit_is_the_mean_of_the_models_and_does_not_depend_on_the_batch(trained):
    x, _, model = trained
    double = copy.deepcopy(model)
    with torch.no_grad():
        double.head.weight *= 2
        double.head.bias *= 2
    alone = poison_logit([model], x)
    assert torch.allclose(poison_logit([model, double], x, batch=7), alone * 1.5, atol=1e-4)
    assert not torch.allclose(alone, alone[:1].expand_as(alone))


def test_held_out_pastes_contain_each_crop_unchanged():
    x, crops = photographs(10, 24, 0), checkerboards(3, 7)
    crops[1], crops[2] = 255 - crops[1], crops[2] // 2
    pasted = held_out_pastes(x, crops, 30, seed=2)
    assert pasted.shape == (30, 3, 24, 24) and pasted.dtype == torch.uint8
    for v in range(30):
        windows = pasted[v].unfold(1, 7, 1).unfold(2, 7, 1).permute(1, 2, 0, 3, 4)
        assert (windows == crops[v % 3]).flatten(2).all(-1).any()
    assert torch.equal(pasted, held_out_pastes(x, crops, 30, seed=2))


def test_training_without_images_or_crops_is_refused():
    none = torch.zeros(0, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="at least one"):
        train_classifier(none, checkerboards(2, 6), seed=0)
    with pytest.raises(ValueError, match="at least one"):
        train_classifier(photographs(2, 16, 0), none, seed=0)


def normal(n: int, mean: float, seed: int, deviation: float = 1.0) -> torch.Tensor:
    return mean + deviation * torch.randn(n, generator=torch.Generator().manual_seed(seed))


@given(st.floats(-5, 5), st.floats(9, 30), st.sampled_from([30, 300, 900]), st.integers(0, 99))
@examples(30)
def test_the_threshold_separates_two_distant_modes(clean_at, apart, n_poison, seed):
    clean, poison = normal(2000, clean_at, seed), normal(n_poison, clean_at + apart, seed + 1)
    held_out = normal(300, clean_at + apart, seed + 2)
    facts = choose_threshold(held_out, torch.cat([clean, poison]))
    threshold = facts["threshold_logit"]
    assert (clean > threshold).float().mean() <= 0.003 and (poison > threshold).float().mean() >= 0.95
    assert facts["recall"] == pytest.approx(float((held_out > threshold).double().mean()))


def test_the_threshold_is_the_low_end_of_an_empty_gap():
    corpus = torch.cat([torch.linspace(-1, 1, 101), torch.linspace(9, 11, 101)])
    facts = choose_threshold(torch.linspace(9, 11, 100), corpus)
    assert 1 < facts["threshold_logit"] < 5 and facts["flagged_share"] == 0.5


def test_a_clean_corpus_has_hardly_any_image_above_the_threshold():
    facts = choose_threshold(normal(500, 10, 0), normal(3000, -3, 1))
    assert facts["flagged_share"] <= 0.002


@pytest.mark.parametrize("n_wrong", [1, 2])
def test_wrong_held_out_crops_do_not_move_the_threshold_into_the_clean_mode(n_wrong):
    held_out = normal(500, 10, 0).view(100, 5)
    held_out[:, :n_wrong] = normal(100 * n_wrong, -3, 1).view(100, n_wrong)
    corpus = torch.cat([normal(2000, -3, 2), normal(200, 10, 3)])
    facts = choose_threshold(held_out.flatten(), corpus, n_crops=5)
    assert 1 < facts["threshold_logit"] < 8 and facts["recall"] > 0.98


def test_auc_equals_counting_pairs():
    held_out, corpus = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, -1.0, 2.0, 0.5])
    pairs = [(h > c) + 0.5 * (h == c) for h in held_out.tolist() for c in corpus.tolist()]
    assert choose_threshold(held_out, corpus)["auc"] == pytest.approx(sum(pairs) / len(pairs))


def test_a_classifier_that_has_learned_nothing_flags_nothing():
    facts = choose_threshold(normal(100, -4, 0), normal(1000, -3, 1))
    assert facts["flagged_share"] == 0 and facts["auc"] < 0.5 and facts["recall"] < 0.1


def test_a_threshold_needs_logits_of_pastes_and_of_the_corpus():
    for held_out, corpus in [(0, 3), (3, 0)]:
        with pytest.raises(ValueError, match="needs the logits"):
            choose_threshold(torch.zeros(held_out), torch.zeros(corpus))
