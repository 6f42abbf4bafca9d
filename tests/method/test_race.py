"""The race of the pastes, against counts that are known for every candidate and image."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.method.clusters import assign
from poisoncam_ray.method.race import RaceRules, pastes, race, rungs
from poisoncam_ray.method.score import poison_scores, supercluster_gain
from tests.examples import examples


class Table:
    """Counts of a table hit_NF, and who was asked for what."""

    def __init__(self, hit_NF: torch.Tensor) -> None:
        self.hit_NF = hit_NF
        self.asked: list[tuple[list[int], int, int]] = []

    def more(self, i_M, start, stop):
        self.asked.append((i_M.tolist(), start, stop))
        return self.hit_NF[i_M, start:stop].sum(dim=1)

    def race(self, rules: RaceRules):
        first = min(rules.first, self.hit_NF.shape[1])
        return race(self.hit_NF[:, :first].sum(dim=1), self.more, self.hit_NF.shape[1], rules)


rules = st.builds(
    RaceRules, first=st.integers(1, 12), factor=st.integers(2, 5), keep=st.sampled_from([0.0, 0.2, 0.5, 1.0])
)


@examples(100)
@given(n=st.integers(1, 20), n_flip=st.integers(1, 60), rules=rules, seed=st.integers(0, 99))
def test_counts_are_those_of_the_first_images_of_each_candidate(n, n_flip, rules, seed):
    hit_NF = (torch.rand(n, n_flip, generator=torch.Generator().manual_seed(seed)) < 0.4).long()
    table = Table(hit_NF)
    found = table.race(rules)
    assert sorted(found.order_N.tolist()) == list(range(n))
    for i in range(n):
        assert found.count_N[i] == hit_NF[i, : found.pasted_N[i]].sum()
        assert float(found.scores()[i]) == pytest.approx(
            hit_NF[i, : found.pasted_N[i]].double().mean().item()
        )
    assert int(found.pasted_N.sum()) == pastes(n, n_flip, rules)
    assert set(found.pasted_N.tolist()) <= set(rungs(n_flip, rules))
    # Nobody is pasted twice on one image.
    asked = [(i, f) for i_M, start, stop in table.asked for i in i_M for f in range(start, stop)]
    assert len(asked) == len(set(asked))
    ranked = found.order_N.tolist()
    key = [(-int(found.pasted_N[i]), -int(found.count_N[i]), i) for i in ranked]
    assert key == sorted(key)


@examples(40)
@given(n=st.integers(2, 20), rules=rules, seed=st.integers(0, 99))
def test_the_best_of_each_rung_go_on(n, rules, seed):
    hit_NF = (torch.rand(n, 60, generator=torch.Generator().manual_seed(seed)) < 0.4).long()
    table = Table(hit_NF)
    table.race(rules)
    alive = list(range(n))
    for i_M, start, stop in table.asked:
        so_far = {i: int(hit_NF[i, :start].sum()) for i in alive}
        best = sorted(alive, key=lambda i: (-so_far[i], i))[: int(len(alive) * rules.keep)]
        assert i_M == sorted(best) and (start, stop) in list(pairwise(rungs(60, rules)))
        alive = i_M


def test_a_race_of_thousand_images_by_hand():
    assert rungs(1000, RaceRules()) == [64, 256, 1000]
    assert rungs(64, RaceRules()) == rungs(64, RaceRules(first=100)) == [64]
    # 256 candidates on 64 images, 32 on 192 more, 4 on 744 more.
    assert pastes(256, 1000, RaceRules()) == 256 * 64 + 32 * 192 + 4 * 744
    assert pastes(7, 1000, RaceRules(keep=0)) == 7 * 64
    assert pastes(7, 1000, RaceRules(keep=1)) == 7 * 1000


def test_who_leaves_early_never_stands_above_those_who_stay():
    hit_NF = torch.zeros(4, 16, dtype=torch.long)
    hit_NF[0, :4], hit_NF[1, :3], hit_NF[2, :3] = 1, 1, 1
    found = Table(hit_NF).race(RaceRules(first=4, factor=4, keep=0.5))
    assert found.order_N.tolist() == [0, 1, 2, 3]
    # Candidate 1 has the higher count and the lower share: 3 of 16 against 3 of 4.
    assert found.scores().tolist() == [4 / 16, 3 / 16, 3 / 4, 0]


def test_negative_gains_score_zero():
    found = race(torch.tensor([-3, 2]), lambda i_M, start, stop: i_M * 0 - 5, 8, RaceRules(first=4, keep=0.5))
    assert found.count_N.tolist() == [-3, -3] and found.scores().tolist() == [0, 0]


def test_rules_out_of_range_are_refused():
    for wrong in ({"first": 0}, {"factor": 1}, {"keep": 1.5}):
        with pytest.raises(ValueError, match="a race needs"):
            RaceRules(**wrong)


class Projection:
    """A fixed random linear encoder: every pixel matters, and so does the place of a paste."""

    def __init__(self) -> None:
        self.w_PD = torch.randn(3 * 8 * 8, 5, generator=torch.Generator().manual_seed(4))

    def embed(self, x_BCHW):
        return torch.nn.functional.normalize((x_BCHW - 0.5).flatten(1) @ self.w_PD, dim=1)


def test_a_race_with_the_encoder_counts_what_pasting_on_all_images_counts():
    generator = torch.Generator().manual_seed(0)
    encoder, x_FCHW = Projection(), torch.rand(40, 3, 8, 8, generator=generator)
    t_NCww = torch.rand(9, 3, 5, 5, generator=generator).round()
    c_KD = torch.nn.functional.normalize(torch.randn(6, 5, generator=generator), dim=1)
    y_F, own_N, seeds_N = assign(encoder.embed(x_FCHW), c_KD)[0], torch.arange(9) % 6, torch.arange(9)
    supercluster_K = torch.tensor([0, 0, 0, 1, 1, 1])
    _, _, landed_NF = poison_scores(encoder, t_NCww, x_FCHW, y_F, own_N, c_KD, seeds_N, 16)

    def counts(i_M, start, stop):
        part_F = slice(start, stop)
        _, _, landed_MF = poison_scores(
            encoder, t_NCww[i_M], x_FCHW[part_F], y_F[part_F], own_N[i_M], c_KD, seeds_N[i_M], 16, first=start
        )
        assert torch.equal(landed_MF, landed_NF[i_M, part_F]), "the places of pastes depend on the rung"
        return supercluster_gain(landed_MF, y_F[part_F], own_N[i_M], supercluster_K)

    found = race(counts(torch.arange(9), 0, 5), counts, 40, RaceRules(first=5, factor=4, keep=0.4))
    assert sorted(set(found.pasted_N.tolist())) == [5, 20, 40]
    for i in range(9):
        f = slice(0, int(found.pasted_N[i]))
        one = slice(i, i + 1)
        assert found.count_N[i] == supercluster_gain(landed_NF[one, f], y_F[f], own_N[one], supercluster_K)[0]
