import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poisoncam_ray.method.classifier import choose_threshold


def normal(n: int, mean: float, seed: int, deviation: float = 1.0) -> torch.Tensor:
    return mean + deviation * torch.randn(n, generator=torch.Generator().manual_seed(seed))


@given(st.floats(-5, 5), st.floats(9, 30), st.sampled_from([30, 300, 900]), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_it_parts_two_modes_that_do_not_touch(clean_at, apart, n_poison, seed):
    clean, poison = normal(2000, clean_at, seed), normal(n_poison, clean_at + apart, seed + 1)
    held_out = normal(300, clean_at + apart, seed + 2)
    facts = choose_threshold(held_out, torch.cat([clean, poison]))
    threshold = facts["threshold_logit"]
    assert (clean > threshold).float().mean() <= 0.003 and (poison > threshold).float().mean() >= 0.95
    assert facts["recall"] == pytest.approx(float((held_out > threshold).double().mean()))


def test_the_low_end_of_an_empty_gap_is_taken():
    corpus = torch.cat([torch.linspace(-1, 1, 101), torch.linspace(9, 11, 101)])
    facts = choose_threshold(torch.linspace(9, 11, 100), corpus)
    assert 1 < facts["threshold_logit"] < 5 and facts["flagged_share"] == 0.5


def test_a_clean_corpus_loses_no_more_than_lies_among_the_pastes():
    facts = choose_threshold(normal(500, 10, 0), normal(3000, -3, 1))
    assert facts["flagged_share"] <= 0.002


@pytest.mark.parametrize("n_wrong", [1, 2])
def test_wrong_crops_among_the_held_out_do_not_move_the_threshold_into_the_clean_mode(n_wrong):
    held_out = normal(500, 10, 0).view(100, 5)
    held_out[:, :n_wrong] = normal(100 * n_wrong, -3, 1).view(100, n_wrong)
    corpus = torch.cat([normal(2000, -3, 2), normal(200, 10, 3)])
    facts = choose_threshold(held_out.flatten(), corpus, n_crops=5)
    assert 1 < facts["threshold_logit"] < 8 and facts["recall"] > 0.98


def test_auc_equals_counting_pairs():
    held_out, corpus = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, -1.0, 2.0, 0.5])
    pairs = [(h > c) + 0.5 * (h == c) for h in held_out.tolist() for c in corpus.tolist()]
    assert choose_threshold(held_out, corpus)["auc"] == pytest.approx(sum(pairs) / len(pairs))


def test_a_classifier_that_learned_nothing_flags_nothing():
    facts = choose_threshold(normal(100, -4, 0), normal(1000, -3, 1))
    assert facts["flagged_share"] == 0 and facts["auc"] < 0.5 and facts["recall"] < 0.1


def test_it_needs_both_kinds_of_logits():
    for held_out, corpus in [(0, 3), (3, 0)]:
        with pytest.raises(ValueError, match="needs the logits"):
            choose_threshold(torch.zeros(held_out), torch.zeros(corpus))
