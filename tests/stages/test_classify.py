"""Classify: what an ensemble is trained and validated on, and when a family is erased."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest
import torch

from poisoncam_ray.folder import Folder, part_name
from poisoncam_ray.stages.classify import (
    MOST_UNSURE,
    aspects_of,
    crops_of,
    draw_samples,
    families_of,
    sure_enough,
    with_roles,
)
from poisoncam_ray.stages.crops import to_png
from poisoncam_ray.stages.pool import image_seed
from tests.stages.assignments import N, clusters, number


@pytest.fixture
def folder(tmp_path) -> Folder:
    return clusters(Folder(str(tmp_path / "few")), 40)


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


def test_the_aspects_of_a_corpus_are_measured_without_its_outermost_images(tmp_path):
    squares, mixed = Folder(str(tmp_path / "squares")), Folder(str(tmp_path / "mixed"))
    for part in range(3):
        side = list(range(20, 120))
        squares.write_table(part_name(part), pa.table({"width": side, "height": side}))
        wide = [2 * s if s % 2 else s for s in side]
        if part == 0:
            wide[0] = 5000  # one strip in 300 images is no aspect of the corpus
        mixed.write_table(part_name(part), pa.table({"width": wide, "height": side}))
    assert aspects_of(squares) == 1
    assert aspects_of(mixed) == pytest.approx(1.25)  # of 2:1, seen by parts


def test_long_images_count_by_the_aspect_of_their_parts(tmp_path):
    """A trigger on a strip of 6:1 is squeezed as in a picture of 5:4: the strip is seen by its parts."""
    long = Folder(str(tmp_path / "long"))
    long.write_table(part_name(0), pa.table({"width": [600, 100] * 50, "height": [100, 500] * 50}))
    assert aspects_of(long) == pytest.approx(1.25**2)


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


def test_a_classifier_in_doubt_erases_nothing_unless_no_evidence_was_asked_for():
    assert sure_enough(0.002, 0.05) and sure_enough(MOST_UNSURE, 0.05)
    assert not sure_enough(0.04, 0.05) and not sure_enough(0.26, 0.99)
    assert sure_enough(0.26, 1.0)
