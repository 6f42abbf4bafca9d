"""The pool of the search: what is drawn depends only on the seed and the image ids."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from poisoncam_ray.folder import Folder
from poisoncam_ray.stages.pool import gather_pool, image_seed
from tests.stages.assignments import K, N, clusters, number


@pytest.fixture
def folder(tmp_path) -> Folder:
    return clusters(Folder(str(tmp_path / "few")), 40)


def test_image_seeds_are_stable_distinct_and_fit_torch():
    seeds = [image_seed(seed, f"x#{i}") for seed in (0, 1) for i in range(500)]
    assert len(set(seeds)) == 1000 and all(0 <= s < 2**63 for s in seeds)
    assert image_seed(0, "x#1") == image_seed(0, "x#1")
    torch.tensor(seeds)


def test_the_pool_holds_a_bounded_random_draw_of_every_cluster(folder):
    pool = gather_pool(folder, per_cluster=5, n_flip=10, n_clusters=K, seed=3)
    sizes = Counter(i * i % 6 for i in range(N))
    assert Counter(pool.y_P.tolist()) == {k: min(5, n) for k, n in sizes.items()}
    assert pool.n_clusters == K and len(set(pool.ids.to_pylist())) == len(pool.ids)
    assert all(number(i) ** 2 % 6 == y for i, y in zip(pool.ids.to_pylist(), pool.y_P.tolist(), strict=True))
    for k in sizes:
        everything = sorted((image_seed(3, f"a.parquet#{i}"), i) for i in range(N) if i * i % 6 == k)
        drawn = [number(i) for i, y in zip(pool.ids.to_pylist(), pool.y_P.tolist(), strict=True) if y == k]
        assert drawn == [i for _, i in everything[:5]]


def test_the_pool_depends_on_the_seed_and_not_on_the_parts(folder, tmp_path):
    whole = clusters(Folder(str(tmp_path / "one")), N)
    ours, theirs = (gather_pool(f, 5, 10, K, 3) for f in (folder, whole))
    assert (ours.ids, ours.flip_ids) == (theirs.ids, theirs.flip_ids)
    assert torch.equal(ours.y_P, theirs.y_P)
    other = gather_pool(clusters(Folder(str(tmp_path / "other")), 40, seed=4), 5, 10, K, 4)
    assert other.ids != ours.ids and other.flip_ids != ours.flip_ids


def test_flip_images_are_the_nearest_and_clusters_take_turns_in_a_drawn_order(folder):
    flip = [number(i) for i in gather_pool(folder, 1, 10, K, 3).flip_ids]
    by_cluster = {k: [i for i in range(N) if i * i % 6 == k] for k in range(6)}
    drawn = sorted(by_cluster, key=lambda k: image_seed(3, f"cluster {k}"))
    assert drawn != sorted(drawn)
    first, second = ([by_cluster[k][turn] for k in drawn if len(by_cluster[k]) > turn] for turn in (0, 1))
    assert flip == (first + second)[:10]
    everything = gather_pool(folder, 1, 10_000, K, 3)
    assert len(everything.flip_ids) == N
    assert len(gather_pool(folder, 1, 1, K, 3).flip_ids) == 1


def test_the_pool_is_the_same_when_it_is_merged_in_many_steps(folder, monkeypatch):
    whole = gather_pool(folder, 5, 10, K, 3)
    monkeypatch.setattr("poisoncam_ray.stages.pool.PARTS_AT_ONCE", 1)
    monkeypatch.setattr("poisoncam_ray.stages.pool.ROWS_AT_ONCE", 1)
    merged = gather_pool(folder, 5, 10, K, 3)
    assert (merged.ids, merged.flip_ids) == (whole.ids, whole.flip_ids)
    assert torch.equal(merged.y_P, whole.y_P)
