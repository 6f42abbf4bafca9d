"""The two ways that each line compares must do the same work; how fast is nobody's promise."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.ssl import MoCoV3
from poisoncam_ray.research import demo
from poisoncam_ray.research.benchmark.compare import COLUMNS, Comparison, alternate, markdown
from poisoncam_ray.research.benchmark.measure import Sizes, draw_long_corpus, first_images, measure
from poisoncam_ray.research.benchmark.search import batched, candidates, one_at_a_time
from poisoncam_ray.research.benchmark.training import Trainer
from poisoncam_ray.settings import load_config
from tests.examples import examples
from tests.small import draw_small

SMALL = [
    "search.masks=8",
    "search.flip_images=6",
    "search.batch_size=5",
    "pretrain.batch_size=8",
    "pretrain.workers=1",
    "pretrain.hidden_dim=16",
    "pretrain.out_dim=8",
    "cluster.k=4",
    "corpus.rows_per_slice=16",
    "resources.actors=1",
]
ONCE = Sizes(candidates=3, steps=1, rounds=1, threads=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    return str(draw_small(tmp_path_factory.mktemp("corpus"), n_images=64))


def small(*overrides: str) -> Config:
    return load_config("demo", None, [*SMALL, *overrides])


@pytest.mark.parametrize("strategy", ["mixed", "interval", "keep_only", "random"])
@pytest.mark.parametrize("score", ["hard", "margin", "distance"])
def test_batches_and_single_images_find_the_same(corpus, strategy, score):
    config = small(f"search.strategy={strategy}", f"search.score={score}")
    torch.manual_seed(0)
    encoder = build_encoder("resnet_tiny_s2", 32).eval()
    work = candidates(encoder, first_images(corpus, config, 9), config, 3)
    ours, other = batched(encoder, work), one_at_a_time(encoder, work)
    assert all(torch.equal(a, b) for a, b in zip(ours, other, strict=True))


def test_the_timed_step_is_a_training_step(corpus):
    config = small()
    x_BCHW = first_images(corpus, config, 8)
    trainer = Trainer(x_BCHW, config)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    views = trainer.views()
    trainer.step(views)
    made = config.pretrain
    plain = MoCoV3(build_encoder("resnet_tiny_s2", 32), made.hidden_dim, made.out_dim, made.temperature)
    plain.load_state_dict(before)
    plain.train().update_target(made.momentum)
    plain(*views).backward()
    stepped = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], 1e-4)
    stepped.step()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[key], value, rtol=1e-3, atol=2e-4)


def test_without_ray_three_lines_are_written(corpus, tmp_path):
    out = Folder(str(tmp_path))
    table = measure(corpus, small(), out, ONCE, peak=(1.0, 2.0), use_ray=False)
    assert table == (tmp_path / "benchmark.md").read_text()
    assert table.splitlines()[0] == "| " + " | ".join(COLUMNS) + " |"
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert {"device", "cores", "torch", "threads", "load_before"} <= written["machine"].keys()
    search, memory, training = written["comparisons"]
    assert memory["answers"] == "equal" and memory["ways"][0] == "freed memory kept"
    assert search["answers"] == "3 of 3 windows and 3 of 3 counts equal"
    assert search["facts"]["forwards"] == 3 * (8 + 6)
    assert all(len(c["rates"][0]) == len(c["rates"][1]) == len(c["ratios"]) == 1 for c in (search, training))
    assert training["flop"] > 3 * search["flop"] > 0


def test_with_ray_the_stage_and_the_bare_loop_agree(corpus, tmp_path, ray_cluster):
    from poisoncam_ray.research.benchmark.embed import compare_embed

    first = compare_embed(corpus, small(), Folder(str(tmp_path)), rounds=1)[0]
    assert first.facts["images"] == 64
    assert float(first.answers.split()[2]) < 1e-3


@given(st.integers(1, 4), st.integers(1, 5))
def test_every_way_has_its_turn_in_every_round(n_ways, rounds):
    calls: list[int] = []
    ways = [lambda i=i: calls.append(i) or i for i in range(n_ways)]
    seconds, answers = alternate(ways, rounds)
    assert answers == list(range(n_ways))
    assert [len(s) for s in seconds] == [rounds] * n_ways
    turns = [calls[i : i + n_ways] for i in range(0, len(calls), n_ways)]
    assert all(sorted(turn) == answers for turn in turns)
    assert all(a == b[::-1] for a, b in itertools.pairwise(turns[1:]))


@examples(25)
@given(st.lists(st.tuples(st.floats(0.1, 1e6), st.floats(0.1, 1e6)), min_size=1, max_size=5))
def test_ratios_are_taken_round_by_round(pairs):
    ours, other = [a for a, _ in pairs], [b for _, b in pairs]
    line = Comparison("work", "images/s", ("a", "b"), (ours, other), "equal", {})
    assert line.ratios == [a / b for a, b in pairs]
    table = markdown([line], {"device": "none"}).splitlines()
    assert all(row.count("|") == len(COLUMNS) + 1 for row in table[:3])


def test_a_corpus_too_small_is_the_users_mistake(corpus):
    with pytest.raises(UserError, match="65"):
        first_images(corpus, small(), 65)


def test_copies_lengthen_the_corpus_and_fewer_shorten_it(tmp_path, monkeypatch):
    draw_corpus = demo.draw_corpus

    def draw(uri, seed, shards):
        drawn.append(shards)
        draw_corpus(uri, n_images=8 * shards, n_categories=4, size=16, seed=seed, shards=shards)

    drawn: list[int] = []
    monkeypatch.setattr(demo, "draw_corpus", draw)
    folder = Folder(str(tmp_path / "corpus"))
    # Killed while it drew.
    draw_corpus(folder.uri, n_images=16, n_categories=4, size=16, shards=2)
    for copies in (3, 3, 2, 4, 1):
        draw_long_corpus(folder, seed=0, copies=copies)
        assert sum(folder.rows(name) for name in folder.parts()) == copies * 32
    assert drawn == [4]
