"""Search and Classify outside the cluster: what is drawn depends on the seed and the ids alone."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest
import torch

from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, part_name
from poisoncam_ray.method.cam import gradcam_windows
from poisoncam_ray.method.clusters import superclusters
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.classify import crops_of, draw_samples, families_of, with_roles
from poisoncam_ray.stages.crops import from_png, to_png
from poisoncam_ray.stages.pool import gather_pool, image_seed
from poisoncam_ray.stages.search import Search, find_windows, search_masks, superclusters_of

N, K = 300, 7


def clusters(folder: Folder, rows_per_part: int, n: int = N, seed: int = 3) -> Folder:
    """Assignments of n images to K clusters, cluster 6 empty; image i lies i / n from its centroid."""
    ids = [f"a.parquet#{i}" for i in range(n)]
    for part, first in enumerate(range(0, n, rows_per_part)):
        rows = range(first, min(n, first + rows_per_part))
        columns = {
            "image_id": [ids[i] for i in rows],
            "cluster": pa.array([i * i % 6 for i in rows], pa.int32()),
            "distance": pa.array([i / n for i in rows], pa.float32()),
            "draw": pa.array([image_seed(seed, ids[i]) for i in rows], pa.int64()),
        }
        folder.write_table(part_name(part), pa.table(columns))
    return folder


@pytest.fixture
def folder(tmp_path) -> Folder:
    return clusters(Folder(str(tmp_path / "few")), 40)


def number(image_id: str) -> int:
    return int(image_id.partition("#")[2])


def test_image_seeds_are_stable_distinct_and_fit_torch():
    seeds = [image_seed(seed, f"x#{i}") for seed in (0, 1) for i in range(500)]
    assert len(set(seeds)) == 1000 and all(0 <= s < 2**63 for s in seeds)
    assert image_seed(0, "x#1") == image_seed(0, "x#1")
    torch.tensor(seeds)


def test_the_pool_holds_a_bounded_random_draw_of_every_cluster(folder):
    pool = gather_pool(folder, per_cluster=5, n_flip=10, n_clusters=K)
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
    ours, theirs = (gather_pool(f, 5, 10, K) for f in (folder, whole))
    assert (ours.ids, ours.flip_ids) == (theirs.ids, theirs.flip_ids)
    assert torch.equal(ours.y_P, theirs.y_P)
    other = gather_pool(clusters(Folder(str(tmp_path / "other")), 40, seed=4), 5, 10, K)
    assert other.ids != ours.ids and other.flip_ids == ours.flip_ids


def test_flip_images_are_the_nearest_and_clusters_take_turns(folder):
    flip = [number(i) for i in gather_pool(folder, 1, 10, K).flip_ids]
    by_cluster = {k: [i for i in range(N) if i * i % 6 == k] for k in range(6)}
    first, second = ([rows[turn] for rows in by_cluster.values() if len(rows) > turn] for turn in (0, 1))
    assert flip == (first + second)[:10]
    everything = gather_pool(folder, 1, 10_000, K)
    assert len(everything.flip_ids) == N
    assert everything.flip_y_F.tolist() == [number(i) ** 2 % 6 for i in everything.flip_ids]
    assert len(gather_pool(folder, 1, 1, K).flip_ids) == 1


def test_crops_keep_their_pixels():
    t_CHW = torch.randint(0, 256, (3, 5, 5)) / 255
    assert torch.equal(from_png(to_png(t_CHW)), t_CHW)


def test_a_window_larger_than_any_image_is_not_unpacked():
    with pytest.raises(ValueError, match="a window of 1025 × 1 pixels"):
        from_png(to_png(torch.zeros(3, 1, 1025)))


def triggers(n: int, family: int = 1) -> pa.Table:
    """As Verdict writes them, best first: window i is of shade i."""
    crops = [to_png(torch.full((3, 2, 2), i / 255)) for i in range(n)]
    ids = [f"a#{i:03d}" for i in range(n)]
    return pa.table({"image_id": ids, "crop": crops, "family": pa.array([family] * n, pa.int32())})


@pytest.mark.parametrize(
    ("n", "top_k", "held_out", "train", "validate"),
    [
        (30, 20, 0.25, 15, 5),
        (30, 2, 0.01, 1, 1),
        (5, 20, 0.9, 1, 4),
        (1, 20, 0.5, 1, 0),
        (10, 10, 0.25, 8, 2),
    ],
)
def test_roles_split_the_top_and_leave_the_rest(n, top_k, held_out, train, validate):
    found = with_roles(triggers(n), top_k, held_out, seed=0)
    roles = found["role"].to_pylist()
    assert Counter(roles) == Counter(
        {r: m for r, m in (("train", train), ("validate", validate), ("unused", n - train - validate)) if m}
    )
    assert all(role == "unused" for role in roles[top_k:])
    assert found.equals(with_roles(triggers(n), top_k, held_out, seed=0))


def test_another_seed_holds_out_others():
    table = triggers(30)
    held = [
        {
            i
            for i, role in enumerate(with_roles(table, 20, 0.25, seed)["role"].to_pylist())
            if role == "validate"
        }
        for seed in range(5)
    ]
    assert len({frozenset(h) for h in held}) > 1


def test_crops_of_a_role_and_a_single_trigger_serves_both():
    found = with_roles(triggers(8), 4, 0.25, seed=0)
    train = [int(row["image_id"][2:]) for row in found.to_pylist() if row["role"] == "train"]
    crops = crops_of(found, 1, "train")
    assert crops.dtype == torch.uint8 and crops[:, 0, 0, 0].tolist() == train
    alone = with_roles(triggers(1), 4, 0.25, seed=0)
    assert torch.equal(crops_of(alone, 1, "train"), crops_of(alone, 1, "validate"))


def test_each_family_has_its_own_top_and_windows_of_no_family_none():
    parts = [triggers(4, 0), triggers(9, 2), triggers(7, 1), triggers(1, 4)]
    found = with_roles(pa.concat_tables(parts), 4, 0.25, seed=0)
    used = Counter((row["family"], row["role"]) for row in found.to_pylist() if row["role"] != "unused")
    split = {(1, "train"): 3, (1, "validate"): 1, (2, "train"): 3, (2, "validate"): 1, (4, "train"): 1}
    assert used == split and families_of(found) == [1, 2, 4]
    # The split of a family does not depend on the others.
    alone = with_roles(triggers(7, 1), 4, 0.25, seed=0)
    for role in ("train", "validate"):
        assert torch.equal(crops_of(found, 1, role), crops_of(alone, 1, role))
    assert families_of(with_roles(triggers(5, 0), 4, 0.25, seed=0)) == []


def roles(clusters_of_top: list[int], ids: list[str]) -> pa.Table:
    return pa.table(
        {"image_id": ids, "cluster": clusters_of_top, "role": ["train"] * (len(ids) - 1) + ["unused"]}
    )


def test_negatives_leave_out_the_clusters_of_the_top_triggers(folder):
    top = roles([0, 1, 4], ["a.parquet#0", "a.parquet#1", "a.parquet#2"])
    negatives, whole = draw_samples(folder, top, most=50)
    assert len(negatives) == len(whole) == 50
    # Cluster 4's trigger is not among the top: its images stay.
    assert {number(i) ** 2 % 6 for i in negatives} == {3, 4}
    assert {number(i) ** 2 % 6 for i in whole} == {0, 1, 3, 4}
    everything = sorted((image_seed(3, f"a.parquet#{i}"), f"a.parquet#{i}") for i in range(N))
    assert whole == sorted(i for _, i in everything[:50])


def test_samples_depend_on_the_seed_and_not_on_the_parts(folder, tmp_path):
    top = roles([0, 1], ["a.parquet#0", "a.parquet#1"])
    one = clusters(Folder(str(tmp_path / "one")), N)
    other = clusters(Folder(str(tmp_path / "other")), 40, seed=4)
    assert draw_samples(folder, top, 50) == draw_samples(one, top, 50)
    assert draw_samples(folder, top, 50) != draw_samples(other, top, 50)
    assert draw_samples(folder, top, 10_000)[1] == sorted(f"a.parquet#{i}" for i in range(N))


def test_with_most_of_the_corpus_suspect_only_the_top_images_are_left_out(folder):
    top = roles([0, 1, 3, 4, 9], [f"a.parquet#{i}" for i in (0, 1, 3, 2, 5)])
    negatives, whole = draw_samples(folder, top, most=N)
    assert set(whole) - set(negatives) == {f"a.parquet#{i}" for i in (0, 1, 2, 3)}


def test_a_budget_too_small_for_one_round_is_refused_before_the_work():
    config = load_config(overrides=["search.max_candidates=99", "cluster.k=50"])
    Search().check(config, None)
    with pytest.raises(UserError, match=r"search.max_candidates=99 does not allow one round.* set it to 100"):
        Search().check(config, 60_000)
    Search().check(load_config(overrides=["search.max_candidates=100", "cluster.k=50"]), 60_000)


def test_the_pool_is_the_same_when_it_is_merged_in_many_steps(folder, monkeypatch):
    whole = gather_pool(folder, 5, 10, K)
    monkeypatch.setattr("poisoncam_ray.stages.pool.PARTS_AT_ONCE", 1)
    monkeypatch.setattr("poisoncam_ray.stages.pool.ROWS_AT_ONCE", 1)
    merged = gather_pool(folder, 5, 10, K)
    assert (merged.ids, merged.flip_ids) == (whole.ids, whole.flip_ids)
    assert torch.equal(merged.y_P, whole.y_P)


def test_superclusters_are_computed_once(tmp_path):
    out, c_KD = Folder(str(tmp_path)), torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    supercluster_K = superclusters_of(out, c_KD, 0)
    assert supercluster_K.dtype == torch.int64 and torch.equal(supercluster_K, superclusters(c_KD, 0))
    assert not torch.equal(superclusters(c_KD, 5), supercluster_K)
    assert torch.equal(superclusters_of(out, c_KD, 5), supercluster_K)


def test_windows_are_found_by_the_configured_strategy_and_refined():
    torch.manual_seed(0)
    encoder = build_encoder("resnet_tiny_s2", 32).eval()
    x_NCHW = torch.rand(3, 3, 32, 32)
    c_KD = torch.nn.functional.normalize(torch.randn(4, encoder.dim), dim=1)
    own_N, found = torch.tensor([0, 2, 1]), {}
    for strategy in ("gradcam", "mixed"):
        for refine in (False, True):
            config = load_config(
                overrides=[f"search.strategy={strategy}", f"search.refine={refine}", "search.masks=8"]
            )
            masks = search_masks(config)
            assert (masks is None) == (strategy == "gradcam")
            found[strategy, refine] = find_windows(config, encoder, x_NCHW, own_N, c_KD, masks)
    peer_N4 = gradcam_windows(encoder, x_NCHW, own_N, c_KD, config.window_px)
    assert torch.equal(found["gradcam", False], peer_N4)
    assert not torch.equal(found["mixed", False], peer_N4)
    for strategy in ("gradcam", "mixed"):
        coarse_N4, fine_N4 = found[strategy, False], found[strategy, True]
        assert not torch.equal(fine_N4, coarse_N4)
        assert int((fine_N4 - coarse_N4).abs().max()) <= config.window_px // 2
