"""The whole search on one small corpus in this process, without Ray: rounds, race and ranking."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.clusters import assign, kmeans
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.progress import Progress
from poisoncam_ray.settings import load_config
from poisoncam_ray.stage import Run
from poisoncam_ray.stages import ranking, search
from poisoncam_ray.stages.embed import embed_images, write_encoder
from poisoncam_ray.stages.pixels import fetch_images
from poisoncam_ray.stages.pool import image_seed
from poisoncam_ray.stages.verdict import read_candidates, read_rows, with_ranking
from tests.small import draw_small

K = 6
LIGHT = [
    "search.masks=4", "search.refine=false", f"cluster.k={K}", "search.min_live=2", "search.per_cluster=2",
    "search.flip_images=20", "search.chunk=5", "search.race.first=5", "search.race.factor=2",
    "search.race.keep=0.5",
]  # fmt: skip


class Here:
    """The actors of the search, in this process. `calls`: (method, images or windows) in order."""

    def __init__(self, run: Run, pool: Any, supercluster_K: torch.Tensor) -> None:
        flip_FCHW = fetch_images(run.corpus, run.config, pool.flip_ids)
        folders = (run.folder / artifact.ENCODER, run.folder / artifact.CLUSTERS)
        self.scorer = search.Scorer(run.config, run.corpus, *folders, flip_FCHW, supercluster_K)


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, int]]:
    made: list[tuple[str, int]] = []

    def run_on(here: Here, chunks: list[Any], method: str = "work", at_once: int = 1):
        # In another order than they were given.
        for chunk in reversed(chunks):
            made.append((method, len(chunk[0]) if chunk else 0))
            yield getattr(here.scorer, method)(chunk)

    monkeypatch.setattr(search, "start_scorers", Here)
    monkeypatch.setattr(search, "run_on", run_on)
    monkeypatch.setattr(ranking, "run_on", run_on)
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Folder, str]:
    """A run folder with an encoder and clusters, and its corpus."""
    place = tmp_path_factory.mktemp("ranking")
    corpus = str(draw_small(place / "corpus", 64))
    folder, config, opened = Folder(str(place / "run")), configured(), open_corpus(corpus)
    ids = [row.image_id for slice_ in opened.slices() for row in opened.read(slice_)]
    torch.manual_seed(0)
    encoder = build_encoder("resnet_tiny_s2", 32).eval()
    write_encoder(config, encoder, folder / artifact.ENCODER)
    f_ND = embed_images(encoder, torch.from_numpy(fetch_images(opened, config, ids)), 64)
    c_KD = kmeans(f_ND, K, 10, 0)
    y_N, distance_N = assign(f_ND, c_KD)
    clusters = folder / artifact.CLUSTERS
    clusters.write_tensors(artifact.CENTROIDS, {"centroids_KD": c_KD})
    columns = {
        "image_id": ids,
        "cluster": y_N.numpy().astype(np.int32),
        "distance": distance_N.numpy(),
        "draw": [image_seed(0, image_id) for image_id in ids],
    }
    clusters.write_table("part-000000.parquet", pa.table(columns, schema=artifact.CLUSTER_SCHEMA))
    return folder, corpus


def configured(*overrides: str) -> Config:
    return load_config(overrides=[*LIGHT, *overrides])


def searched(made: tuple[Folder, str], out: Folder, *overrides: str) -> Any:
    """The facts of a search into `out`."""
    folder, corpus = made
    run = Run(configured(*overrides), open_corpus(corpus), folder, out, Progress())
    return search.Search().run(run).facts


def written(out: Folder, rounds: int) -> list[list[dict[str, Any]]]:
    return [ranking.read_round(out, i, artifact.CANDIDATE_SCHEMA.names).to_pylist() for i in range(rounds)]


def test_the_best_are_ranked_on_more_images_and_evidence_rests_on_the_first(made, calls, tmp_path):
    out = Folder(str(tmp_path))
    said = searched(made, out)
    first = written(out, said.rounds)
    every = list(chain.from_iterable(first))
    assert said.flip_images == 20 and said.unchanged_flips == 0 and said.other_own == 0
    assert {row["n_flip"] for row in every} == {5} == {len(row["landed"]) for row in every}
    assert len(out.read_table(artifact.FLIP_TEST)) == 5
    ranked = out.read_table(artifact.RANKING).sort_by("rank").to_pylist()
    assert sorted(row["image_id"] for row in ranked) == sorted(row["image_id"] for row in every)
    n = len(every)
    last, second = n // 2 // 2, n // 2
    assert [row["n_flip"] for row in ranked] == [20] * last + [10] * (second - last) + [5] * (n - second)
    # The counts are those of pasting the same windows on as many images from the start.
    whole = Folder(str(tmp_path / "whole"))
    assert searched(made, whole, "search.race.keep=0").rounds == said.rounds
    assert not whole.exists(artifact.RANKING)
    by_id = {row["image_id"]: row for row in chain.from_iterable(written(whole, said.rounds))}
    for row in ranked[:last]:
        assert [row[name] for name in artifact.READINGS] == [
            by_id[row["image_id"]][name] for name in artifact.READINGS
        ]
    # No other number of images, no other evidence.
    alone = Folder(str(tmp_path / "alone"))
    searched(made, alone, "search.flip_images=5")
    assert written(alone, said.rounds) == first and not alone.exists(artifact.RANKING)
    _, tried = read_candidates(out, said.rounds)
    _, short = read_candidates(alone, said.rounds)
    for name in ("cluster_N", "flips_N", "landed_NF", "y_F"):
        assert torch.equal(getattr(tried, name), getattr(short, name))
    assert tried.order_N.tolist() != short.order_N.tolist() == list(range(n))


def test_triggers_carry_the_counts_of_the_race(made, calls, tmp_path):
    out = Folder(str(tmp_path))
    said = searched(made, out)
    row_N, tried = read_candidates(out, said.rounds)
    listed = with_ranking(read_rows(out, said.rounds, row_N[tried.order_N.numpy()]), out).to_pylist()
    ranked = out.read_table(artifact.RANKING).sort_by("rank").to_pylist()
    for row, raced in zip(listed, ranked, strict=True):
        assert {name: row[name] for name in raced if name != "rank"} == {
            name: raced[name] for name in raced if name != "rank"
        }
    scores = tried.score_N[tried.order_N]
    assert scores.tolist() == [row["score"] for row in ranked]


def test_a_search_killed_in_the_race_runs_the_race_again_and_no_round(made, calls, tmp_path, monkeypatch):
    whole, out = Folder(str(tmp_path / "whole")), Folder(str(tmp_path / "out"))
    said = searched(made, whole)
    del calls[:]
    real, pasted = search.Scorer.paste, []

    def dies(scorer: Any, pastes: Any) -> Any:
        pasted.append(pastes)
        if len(pasted) == 3:
            raise KeyboardInterrupt
        return real(scorer, pastes)

    monkeypatch.setattr(search.Scorer, "paste", dies)
    with pytest.raises(KeyboardInterrupt):
        searched(made, out)
    assert not out.exists(artifact.RANKING) and ("work", 5) in calls
    del calls[:]
    assert searched(made, out) == said
    assert {method for method, _ in calls} == {"paste"}
    assert out.read_table(artifact.RANKING).equals(whole.read_table(artifact.RANKING))
    assert written(out, said.rounds) == written(whole, said.rounds)
    del calls[:]
    assert searched(made, out) == said and not calls


def test_flip_images_within_the_first_change_nothing(made, calls, tmp_path):
    ours, theirs = Folder(str(tmp_path / "ours")), Folder(str(tmp_path / "theirs"))
    said = searched(made, ours, "search.flip_images=5", "search.race.first=5")
    assert (
        searched(made, theirs, "search.flip_images=5", "search.race.first=64", "search.race.keep=1") == said
    )
    assert written(ours, said.rounds) == written(theirs, said.rounds)
    assert not ours.exists(artifact.RANKING) and not theirs.exists(artifact.RANKING)
    assert "paste" not in {method for method, _ in calls}
