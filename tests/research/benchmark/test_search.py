"""The ways of searching a candidate must do the same work; how fast is nobody's promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from poisoncam_ray.method.encoder import Encoder, build_encoder
from poisoncam_ray.method.race import RaceRules, pastes
from poisoncam_ray.research.benchmark.images import pixels
from poisoncam_ray.research.benchmark.search import (
    Work,
    masks_of,
    one_at_a_time,
    paste_in_race,
    paste_on_all,
    windows,
    work_on,
)
from poisoncam_ray.research.study.flops import Way

PLAIN = Way("mixed", masks=8, cell=4, window=11, refine=False, checks=0)


def prepared(candidates: int, flip_images: int) -> tuple[Encoder, Work]:
    torch.manual_seed(0)
    encoder = build_encoder("resnet_tiny_s2", 32).eval()
    return encoder, work_on(encoder, pixels(candidates + flip_images, 32), candidates, k=4, batch=5)


@pytest.mark.parametrize("strategy", ["mixed", "interval", "keep_only", "random"])
@pytest.mark.parametrize("score", ["hard", "margin", "distance"])
def test_batches_and_single_images_find_the_same(strategy, score):
    encoder, work = prepared(3, 6)
    way = replace(PLAIN, strategy=strategy)
    m_BHW = masks_of(way, 32)
    box_N4, changed_N, gain_N = one_at_a_time(encoder, work, way, m_BHW, score)
    own_N, found_N4 = windows(encoder, work, way, m_BHW, score)
    assert torch.equal(own_N, work.own_N) and torch.equal(found_N4, box_N4)
    changed, gain = paste_on_all(encoder, work, own_N, found_N4)
    assert torch.equal(changed, changed_N) and torch.equal(gain, gain_N)


def test_the_own_cluster_comes_from_the_same_pass():
    encoder, work = prepared(3, 2)
    way = replace(PLAIN, refine=True, checks=2)
    own_N, box_N4 = windows(encoder, work, way, masks_of(way, 32), "distance")
    assert torch.equal(own_N, work.own_N)
    before = replace(way, checks=1)
    assert torch.equal(windows(encoder, work, before, masks_of(way, 32), "distance")[1], box_N4)


def test_the_race_makes_as_many_pastes_as_its_bill_says(monkeypatch):
    encoder, work = prepared(8, 20)
    rules, box_N4, seen = RaceRules(first=4, factor=2, keep=0.5), torch.tensor([[0, 0, 11, 11]] * 8), []
    embed = encoder.embed
    monkeypatch.setattr(encoder, "embed", lambda x_BCHW: seen.append(len(x_BCHW)) or embed(x_BCHW))
    ranking = paste_in_race(encoder, work, work.own_N, box_N4, rules)
    assert sum(seen) == pastes(8, 20, rules) == 8 * 4 + 4 * 4 + 2 * 8 + 1 * 4
    changed_N, _ = paste_on_all(encoder, work, work.own_N, box_N4)
    best = int(ranking.order_N[0])
    assert int(ranking.pasted_N[best]) == 20 and int(ranking.count_N[best]) == int(changed_N[best])
