"""What the search concludes: evidence and families from the candidates of its rounds."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest
import torch
from poisoncam_ray.stages.triggers import CANDIDATES_FILE, TRIGGERS, conclude
from poisoncam_ray.verdict import NO_EVIDENCE, POISON, read_evidence

from poisoncam_ray.folder import Folder
from poisoncam_ray.stages import triggers
from poisoncam_ray.stages.crops import to_png
from poisoncam_ray.stages.search import CANDIDATES

N_CLUSTERS, N_FLIP, SIDE = 16, 20, 6
G_K = torch.arange(N_CLUSTERS) // 2
Y_F = torch.arange(N_FLIP) % N_CLUSTERS
LOOKS = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(8)).round()


def candidate(i: int, cluster: int, count: int, look: int | None = None) -> dict[str, Any]:
    """Window i moves `count` flip-test images into its cluster; without a look it is noise."""
    generator = torch.Generator().manual_seed(1000 + i)
    t_CHW = torch.rand(3, SIDE, SIDE, generator=generator) if look is None else LOOKS[look]
    landed = [cluster] * count + Y_F[count:].tolist()
    numbers = dict.fromkeys(("x0", "y0", "x1", "y1", "changed", "gain", "group_gain"), 0)
    return numbers | {
        "image_id": f"a#{i:04d}",
        "cluster": cluster,
        "n_flip": N_FLIP,
        "score": count / N_FLIP,
        "needed": True,
        "crop": to_png(t_CHW),
        "landed": landed,
    }


def benign(n: int = 96) -> list[dict[str, Any]]:
    return [candidate(i, i % N_CLUSTERS, i // 7 % 3) for i in range(n)]


def poisoned() -> list[dict[str, Any]]:
    """Benign windows, eight of one trigger in clusters 2 and 3, and ten weaker ones of another in 9."""
    one = [candidate(200 + i, 2 + (i > 0), 18 - i, look=0) for i in range(8)]
    return benign() + one + [candidate(300 + i, 9, 12, look=1) for i in range(10)]


def search(
    folder, rows: list[dict[str, Any]], rounds: int = 2, rate: float = 0.05, g_K: torch.Tensor = G_K
) -> tuple[Folder, Any, Any]:
    """A search that scored `rows` in so many rounds: its folder, evidence, triggers."""
    out = Folder(str(folder))
    size = -(-len(rows) // rounds)
    for i in range(rounds):
        table = pa.Table.from_pylist(rows[i * size : (i + 1) * size], schema=CANDIDATES)
        (out / f"round={i:03d}").write_table(CANDIDATES_FILE, table)
    evidence = conclude(out, rounds, g_K, Y_F, rate)
    return out, evidence, out.read_table(TRIGGERS).to_pylist()


def test_benign_windows_are_no_evidence(tmp_path):
    out, evidence, listed = search(tmp_path, benign())
    assert evidence["verdict"] == NO_EVIDENCE and evidence["families"] == []
    assert evidence["best_score"] == pytest.approx(0.1) and evidence["threshold"] > 0.11
    assert evidence["n_candidates"] == 96 == len(listed)
    assert len(evidence["group_scores"]) == 8 and len(evidence["null_scores"]) == 7
    assert max(evidence["group_scores"]) == pytest.approx(evidence["best_group"], abs=1e-4)
    assert evidence["best_group"] < evidence["threshold"]
    assert {row["family"] for row in listed} == {0}
    assert read_evidence(out).poison is False


def test_two_attackers_are_two_families(tmp_path):
    out, evidence, listed = search(tmp_path, poisoned())
    assert evidence["verdict"] == POISON and read_evidence(out).poison
    one, other = evidence["families"]
    assert (one["family"], one["n_candidates"], one["cluster"]) == (1, 4, 2)
    assert (other["family"], other["n_candidates"], other["cluster"]) == (2, 10, 9)
    # Of each bundle those at its mean or above.
    assert one["best_score"] == evidence["best_score"] == pytest.approx(0.9)
    assert other["best_score"] == pytest.approx(0.6)
    assert evidence["p_value"] == min(one["p_value"], other["p_value"])
    assert max(one["p_value"], other["p_value"]) < 0.01
    for family in (one, other):
        own = [listed[rank] for rank in family["ranks"]]
        assert [row["rank"] for row in own] == family["ranks"]
        assert len(own) == family["n_candidates"] == sum(r["family"] == family["family"] for r in listed)
        assert {row["family"] for row in own} == {family["family"]}
    # Each trigger is a bundle. The null are the others.
    assert max(evidence["null_scores"]) <= 0.1 and len(evidence["null_scores"]) == 8


def test_a_trigger_is_heard_whose_windows_pull_into_each_other_s_clusters(tmp_path):
    homes = [0, 4, 8, 12]
    weak = [candidate(200 + i, homes[i % 4], 0, look=0) for i in range(12)]
    for i, row in enumerate(weak):
        # Two images into each of the clusters of its like, but one into its own: no more than benign windows.
        row["landed"] = [homes[(i + j) % 4] for j in range(8)] + Y_F[8:].tolist()
    _, evidence, listed = search(tmp_path, benign() + weak)
    (family,) = evidence["families"]
    found = {row["image_id"] for row in listed if row["family"]}
    assert evidence["verdict"] == POISON and found <= {row["image_id"] for row in weak}
    assert family["n_candidates"] == len(found) >= 6


@pytest.mark.parametrize(("homes", "verdict"), [((3, 5, 8, 12, 14), POISON), ((3, 5, 8, 12), NO_EVIDENCE)])
def test_copies_of_one_picture_in_many_places_are_heard_though_they_hardly_pull(tmp_path, homes, verdict):
    """Below the line, but above a third of it; in fewer places they may be photographs of one scene."""
    copies = [candidate(200 + i, homes[i % len(homes)], 2, look=2) for i in range(12)]
    _, evidence, listed = search(tmp_path, benign() + copies)
    assert evidence["verdict"] == verdict and evidence["threshold"] > 0.1
    found = {row["image_id"] for row in listed if row["family"]}
    assert found == ({row["image_id"] for row in copies} if verdict == POISON else set())


def test_windows_whose_images_stay_without_them_are_no_trigger(tmp_path):
    rows = poisoned()
    for row in rows:
        # Of the first trigger's eight windows five are not needed, of the second's ten one.
        row["needed"] = row["image_id"] not in {"a#0300", *(f"a#020{i}" for i in range(5))}
    _, evidence, listed = search(tmp_path, rows)
    (left,) = evidence["families"]
    assert (left["family"], left["cluster"], left["n_candidates"]) == (1, 9, 9)
    assert {row["image_id"] for row in listed if row["family"]} == {f"a#{301 + i:04d}" for i in range(9)}


def test_triggers_are_candidates_by_score_and_id(tmp_path):
    rows = poisoned()
    _, _, listed = search(tmp_path, rows)
    assert [(-row["score"], row["image_id"]) for row in listed] == sorted(
        (-row["score"], row["image_id"]) for row in listed
    )
    assert [row["rank"] for row in listed] == list(range(len(rows)))
    given = {row["image_id"]: row for row in rows}
    for row in listed:
        assert "landed" not in row
        assert row["crop"] == given[row["image_id"]]["crop"]
        assert row["cluster"] == given[row["image_id"]]["cluster"]


def test_rounds_and_the_order_of_work_do_not_matter(tmp_path):
    rows = poisoned()
    _, evidence, listed = search(tmp_path / "one", rows, rounds=1)
    random.Random(0).shuffle(rows)
    _, other, relisted = search(tmp_path / "many", rows, rounds=7)
    assert (other, relisted) == (evidence, listed)


def test_the_best_are_kept_and_the_best_of_every_family(tmp_path, monkeypatch):
    monkeypatch.setattr(triggers, "TRIGGERS_KEPT", 3)
    _, evidence, listed = search(tmp_path, poisoned())
    assert [row["family"] for row in listed] == [1, 1, 1, 2, 2, 2]
    assert [family["ranks"] for family in evidence["families"]] == [[0, 1, 2], [3, 4, 5]]
    assert [family["n_candidates"] for family in evidence["families"]] == [4, 10]


def test_only_the_best_suspects_of_each_bundle_are_grouped(tmp_path, monkeypatch):
    monkeypatch.setattr(triggers, "GROUPED", 6)
    _, evidence, _ = search(tmp_path, poisoned())
    assert [family["n_candidates"] for family in evidence["families"]] == [3, 3]


def test_a_strong_trigger_leaves_room_for_a_weaker_one():
    """Sixty windows of the best bundle, then twenty of another: with room for forty each has a half."""
    bundle_N = torch.tensor([7] * 60 + [3] * 20 + [1] * 20)
    suspect_N = bundle_N > 1
    kept = triggers._best_suspects(suspect_N, bundle_N)
    assert kept.tolist() == list(range(80))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triggers, "GROUPED", 40)
        kept = triggers._best_suspects(suspect_N, bundle_N)
    assert kept.tolist() == [*range(20), *range(60, 80)]


def test_suspects_that_share_nothing_are_no_family(tmp_path):
    """Each pulls into another cluster of their group."""
    lone = [candidate(200 + i, i, 15) for i in range(8)]
    elsewhere = [candidate(i, 8 + i % 8, i // 7 % 3) for i in range(96)]
    g_K = torch.tensor([0] * 8 + [*range(1, 9)])
    _, evidence, listed = search(tmp_path, elsewhere + lone, g_K=g_K)
    assert evidence["threshold"] < evidence["best_group"]
    assert evidence["verdict"] == NO_EVIDENCE and {row["family"] for row in listed} == {0}


def test_a_false_alarm_rate_of_one_takes_every_window_for_one_family(tmp_path):
    _, evidence, listed = search(tmp_path, benign(), rate=1.0)
    assert evidence["verdict"] == POISON
    (family,) = evidence["families"]
    assert family["n_candidates"] == 96 and family["ranks"] == list(range(96))
    assert evidence["p_value"] is family["p_value"] is evidence["threshold"] is None
    assert evidence["null_scores"] == [] and {row["family"] for row in listed} == {1}


def test_a_corpus_of_few_windows_has_no_threshold(tmp_path):
    _, evidence, listed = search(tmp_path, benign(5), rounds=1)
    assert evidence["verdict"] == NO_EVIDENCE and evidence["threshold"] is evidence["p_value"] is None
    assert [row["rank"] for row in listed] == list(range(5))
