"""Verdict: the verdict on the corpus and the families, from the candidates of the search's rounds."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from typing import Any

import pyarrow as pa
import pytest
import torch

from poisoncam_ray import artifact, facts
from poisoncam_ray.artifact import NO_EVIDENCE, POISON
from poisoncam_ray.config import Config
from poisoncam_ray.config import Verdict as Settings
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.folder import Folder, Manifest
from poisoncam_ray.progress import Progress
from poisoncam_ray.stage import Run
from poisoncam_ray.stages.crops import to_png
from poisoncam_ray.stages.verdict import RULES, Verdict

N_CLUSTERS, N_FLIP, SIDE = 16, 20, 6
SUPERCLUSTER_K = torch.arange(N_CLUSTERS) // 2
Y_F = torch.arange(N_FLIP) % N_CLUSTERS
PICTURES = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(8)).round()


def candidate(i: int, cluster: int, count: int, picture: int | None = None) -> dict[str, Any]:
    """Window i moves `count` flip-test images into its cluster; without a picture it is noise."""
    generator = torch.Generator().manual_seed(1000 + i)
    t_CHW = torch.rand(3, SIDE, SIDE, generator=generator) if picture is None else PICTURES[picture]
    landed = [cluster] * count + Y_F[count:].tolist()
    numbers = dict.fromkeys(("x0", "y0", "x1", "y1", "changed", "gain", "supercluster_gain"), 0)
    return numbers | {
        "image_id": f"a#{i:04d}",
        "cluster": cluster,
        "n_flip": N_FLIP,
        "score": count / N_FLIP,
        "occlusion_flips": True,
        "crop": to_png(t_CHW),
        "landed": landed,
    }


def benign(n: int = 96) -> list[dict[str, Any]]:
    return [candidate(i, i % N_CLUSTERS, i // 7 % 3) for i in range(n)]


def poisoned() -> list[dict[str, Any]]:
    """Benign windows, eight of one trigger in clusters 2 and 3, and ten weaker ones of another in 9."""
    one = [candidate(200 + i, 2 + (i > 0), 18 - i, picture=0) for i in range(8)]
    return benign() + one + [candidate(300 + i, 9, 12, picture=1) for i in range(10)]


def decided(
    folder,
    rows: list[dict[str, Any]],
    rounds: int = 2,
    rate: float = 0.05,
    supercluster_K: torch.Tensor = SUPERCLUSTER_K,
    **rules: Any,
) -> tuple[Folder, Any, Any]:
    """The stage after a search that scored `rows` in so many rounds: its folder, verdict.json, triggers."""
    run = Folder(str(folder))
    search, out = run / artifact.SEARCH, run / artifact.VERDICT
    size = -(-len(rows) // rounds)
    for i in range(rounds):
        table = pa.Table.from_pylist(rows[i * size : (i + 1) * size], schema=artifact.CANDIDATE_SCHEMA)
        (search / artifact.round_name(i)).write_table(artifact.CANDIDATES, table)
    search.write_json(artifact.SUPERCLUSTERS, supercluster_K.tolist())
    flip_test = {"image_id": [f"f#{i}" for i in range(N_FLIP)], "cluster": Y_F.tolist()}
    search.write_table(artifact.FLIP_TEST, pa.table(flip_test, schema=artifact.FLIP_TEST_SCHEMA))
    searched = facts.Searched(len(rows), rounds, "max_rounds", 1.0)
    Manifest({}, {}, "", facts=searched.as_json()).write(search)
    (run / "corpus").write_table("a.parquet", pa.table({"image": [b""]}))
    config = Config(verdict=Settings(false_alarm_rate=rate))
    stage = Verdict(replace(RULES, **rules))
    outcome = stage.run(Run(config, open_corpus(f"{run.uri}/corpus"), run, out, Progress()))
    verdict = out.read_json(artifact.VERDICT_FILE)
    assert outcome.facts == facts.Decided(verdict["verdict"], len(verdict["families"]))
    return out, verdict, out.read_table(artifact.TRIGGERS).to_pylist()


def test_benign_windows_are_no_evidence(tmp_path):
    out, verdict, listed = decided(tmp_path, benign())
    assert verdict["verdict"] == NO_EVIDENCE and verdict["families"] == []
    assert verdict["best_score"] == pytest.approx(0.1) and verdict["threshold"] > 0.11
    assert verdict["n_candidates"] == 96 == len(listed)
    assert len(verdict["group_scores"]) == 8 and len(verdict["null_scores"]) == 7
    assert max(verdict["group_scores"]) == pytest.approx(verdict["best_group"], abs=1e-4)
    assert verdict["best_group"] < verdict["threshold"]
    assert {row["family"] for row in listed} == {0}
    assert artifact.Verdict.read(out).poison is False


def test_two_attackers_are_two_families(tmp_path):
    out, verdict, listed = decided(tmp_path, poisoned())
    assert verdict["verdict"] == POISON and artifact.Verdict.read(out).poison
    one, other = verdict["families"]
    assert (one["family"], one["n_candidates"], one["cluster"]) == (1, 4, 2)
    assert (other["family"], other["n_candidates"], other["cluster"]) == (2, 10, 9)
    # Of each group those at its mean or above.
    assert one["best_score"] == verdict["best_score"] == pytest.approx(0.9)
    assert other["best_score"] == pytest.approx(0.6)
    assert verdict["p_value"] == min(one["p_value"], other["p_value"])
    assert max(one["p_value"], other["p_value"]) < 0.01
    for family in (one, other):
        own = [listed[rank] for rank in family["ranks"]]
        assert [row["rank"] for row in own] == family["ranks"]
        assert len(own) == family["n_candidates"] == sum(r["family"] == family["family"] for r in listed)
        assert {row["family"] for row in own} == {family["family"]}
    # Each trigger is a group of its own. The others are the null.
    assert max(verdict["null_scores"]) <= 0.1 and len(verdict["null_scores"]) == 8


def test_a_trigger_is_found_whose_windows_move_images_into_one_another_s_clusters(tmp_path):
    members = [0, 4, 8, 12]
    weak = [candidate(200 + i, members[i % 4], 0, picture=0) for i in range(12)]
    for i, row in enumerate(weak):
        # Two images into each member cluster, but one into its own: no more than benign windows.
        row["landed"] = [members[(i + j) % 4] for j in range(8)] + Y_F[8:].tolist()
    _, verdict, listed = decided(tmp_path, benign() + weak)
    (family,) = verdict["families"]
    found = {row["image_id"] for row in listed if row["family"]}
    assert verdict["verdict"] == POISON and found <= {row["image_id"] for row in weak}
    assert family["n_candidates"] == len(found) >= 6


@pytest.mark.parametrize(("members", "expected"), [((3, 5, 8, 12, 14), POISON), ((3, 5, 8, 12), NO_EVIDENCE)])
def test_near_duplicates_in_many_clusters_are_suspects_for_a_small_gain(tmp_path, members, expected):
    """Below the threshold, above a third of it; in fewer clusters they may be photographs of one scene."""
    duplicates = [candidate(200 + i, members[i % len(members)], 2, picture=2) for i in range(12)]
    _, verdict, listed = decided(tmp_path, benign() + duplicates)
    assert verdict["verdict"] == expected and verdict["threshold"] > 0.1
    found = {row["image_id"] for row in listed if row["family"]}
    assert found == ({row["image_id"] for row in duplicates} if expected == POISON else set())


def test_windows_whose_images_stay_when_occluded_are_no_trigger(tmp_path):
    rows = poisoned()
    for row in rows:
        # Of the first trigger's eight windows five do not flip, of the second's ten one.
        row["occlusion_flips"] = row["image_id"] not in {"a#0300", *(f"a#020{i}" for i in range(5))}
    _, verdict, listed = decided(tmp_path, rows)
    (left,) = verdict["families"]
    assert (left["family"], left["cluster"], left["n_candidates"]) == (1, 9, 9)
    assert {row["image_id"] for row in listed if row["family"]} == {f"a#{301 + i:04d}" for i in range(9)}


def test_triggers_are_candidates_by_score_and_id(tmp_path):
    rows = poisoned()
    _, _, listed = decided(tmp_path, rows)
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
    _, verdict, listed = decided(tmp_path / "one", rows, rounds=1)
    random.Random(0).shuffle(rows)
    _, other, relisted = decided(tmp_path / "many", rows, rounds=7)
    assert (other, relisted) == (verdict, listed)


def test_the_best_are_kept_and_the_best_of_every_family(tmp_path):
    _, verdict, listed = decided(tmp_path, poisoned(), max_kept=3)
    assert [row["family"] for row in listed] == [1, 1, 1, 2, 2, 2]
    assert [family["ranks"] for family in verdict["families"]] == [[0, 1, 2], [3, 4, 5]]
    assert [family["n_candidates"] for family in verdict["families"]] == [4, 10]


def test_only_the_best_suspects_of_each_group_are_joined_into_families(tmp_path):
    _, verdict, _ = decided(tmp_path, poisoned(), max_family_windows=6)
    assert [family["n_candidates"] for family in verdict["families"]] == [3, 3]


def test_suspects_that_share_nothing_are_no_family(tmp_path):
    """Each moves images into another cluster of their supercluster."""
    lone = [candidate(200 + i, i, 15) for i in range(8)]
    elsewhere = [candidate(i, 8 + i % 8, i // 7 % 3) for i in range(96)]
    supercluster_K = torch.tensor([0] * 8 + [*range(1, 9)])
    _, verdict, listed = decided(tmp_path, elsewhere + lone, supercluster_K=supercluster_K)
    assert verdict["threshold"] < verdict["best_group"]
    assert verdict["verdict"] == NO_EVIDENCE and {row["family"] for row in listed} == {0}


def test_a_false_alarm_rate_of_one_takes_every_window_for_one_family(tmp_path):
    _, verdict, listed = decided(tmp_path, benign(), rate=1.0)
    assert verdict["verdict"] == POISON
    (family,) = verdict["families"]
    assert family["n_candidates"] == 96 and family["ranks"] == list(range(96))
    assert verdict["p_value"] is family["p_value"] is verdict["threshold"] is None
    assert verdict["null_scores"] == [] and {row["family"] for row in listed} == {1}


def test_a_corpus_of_few_windows_has_no_threshold(tmp_path):
    _, verdict, listed = decided(tmp_path, benign(5), rounds=1)
    assert verdict["verdict"] == NO_EVIDENCE and verdict["threshold"] is verdict["p_value"] is None
    assert [row["rank"] for row in listed] == list(range(5))


@pytest.mark.parametrize("name", [field.name for field in fields(RULES)])
def test_every_rule_is_in_the_fingerprint(name):
    changed = replace(RULES, **{name: getattr(RULES, name) + 1})
    assert Verdict(changed).depends_on(Config()) != Verdict().depends_on(Config())
    assert Verdict(replace(RULES)).depends_on(Config()) == Verdict().depends_on(Config())


def test_another_side_of_the_thumbnails_gives_other_families(tmp_path):
    """The stage shrinks the windows to the side that its rules say: a single pixel has no pattern."""
    _, verdict, _ = decided(tmp_path, poisoned(), thumbnail_side=1, max_shift=0)
    assert [family["n_candidates"] for family in verdict["families"]] != [4, 10]
