"""A run's candidates in one file: what is in it, the same verdict from it, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from poisoncam_ray import artifact, facts
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.commands.evaluate import evaluate
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, Manifest
from poisoncam_ray.program import run_program
from poisoncam_ray.research.evaluate import detection_metrics
from poisoncam_ray.research.evaluate.joined import read_truth
from poisoncam_ray.research.evaluate.stored import (
    HEADER,
    SCHEMA,
    candidates_of,
    no_poison,
    read_stored,
    store_run,
)
from poisoncam_ray.research.study.strata import CLEAN, NATURAL, OWN, strata
from poisoncam_ray.stages.ranking import read_ranking
from poisoncam_ray.stages.verdict import read_candidates
from tests.fake_run import CONFIG, HEIGHT, SIDE, WIDTH, FakeRun, make_fake_run


@pytest.fixture
def run(fake: FakeRun, tmp_path: Path) -> Folder:
    """A copy of the run to change."""
    return Folder(str(shutil.copytree(fake.run, tmp_path / "run")))


def rank(run: Folder) -> None:
    """A race of all candidates that turns their order round."""
    search = run / artifact.SEARCH
    rounds = facts.of_manifest(facts.Searched, Manifest.read(search)).rounds
    columns = ["image_id", *artifact.READINGS, "n_flip", "score"]
    parts = [
        (search / artifact.round_name(i)).read_table(artifact.CANDIDATES, columns) for i in range(rounds)
    ]
    raced = pa.concat_tables(parts).sort_by("image_id")
    turned = np.argsort(np.argsort(raced["score"].to_numpy()))
    raced = raced.set_column(5, "score", pc.divide(raced["score"], 2)).append_column("rank", pa.array(turned))
    raced = raced.select(artifact.RANKING_SCHEMA.names).cast(artifact.RANKING_SCHEMA)
    search.write_table(artifact.RANKING, raced)


@pytest.mark.parametrize("raced", [False, True])
def test_the_verdict_reads_the_same_as_from_the_run(run: Folder, fake: FakeRun, tmp_path: Path, raced: bool):
    if raced:
        rank(run)
    store_run(run.uri, fake.truth, str(tmp_path / "one.parquet"))
    unpacked = Folder(str(tmp_path / "search"))
    read_stored(Folder(str(tmp_path)), "one.parquet").unpack(unpacked)
    search = run / artifact.SEARCH
    for side in (12, 5):
        row_N, tried = read_candidates(search, 2, side)
        again_N, again = read_candidates(unpacked, 2, side)
        assert np.array_equal(row_N, again_N)
        for name, tensor in vars(tried).items():
            other = getattr(again, name)
            assert (tensor is other is None) or (
                tensor.dtype == other.dtype and torch.equal(tensor, other)
            ), name
    assert (tried.ranking_N is not None) == raced
    there, here = read_ranking(unpacked), read_ranking(search)
    assert there == here if raced else there is here is None


def test_each_candidate_has_the_truth_beside_it(fake: FakeRun, tmp_path: Path):
    size = store_run(fake.run, fake.truth, str(tmp_path / "one.parquet"))
    assert size == (tmp_path / "one.parquet").stat().st_size
    stored = read_stored(Folder(str(tmp_path)), "one.parquet")
    rows = stored.table.to_pylist()
    assert stored.table.schema.equals(SCHEMA) and len(rows) == len(fake.candidates) == 18
    # The rounds hold every second candidate each.
    assert [row["image_id"] for row in rows] == [
        row["image_id"] for i in range(2) for row in fake.candidates[i::2]
    ]
    in_cluster = {
        k: [i for i, cluster in fake.cluster.items() if cluster == k] for k in set(fake.cluster.values())
    }
    for row, given in zip(rows, fake.candidates[0::2] + fake.candidates[1::2], strict=True):
        assert all(row[side] == given[side] for side in SIDES)
        assert row["poisoned"] is (row["image_id"] in fake.poisoned) and row["decoy"] is False
        mine = in_cluster[row["cluster"]]
        assert row["poison_share"] == pytest.approx(sum(i in fake.poisoned for i in mine) / len(mine))
        assert (row["hit"] is None) is (row["true_x0"] is None) is (not row["poisoned"])
    assert sum(bool(row["hit"]) for row in rows) == 7
    assert stored.about["name"] == "one" and stored.about["n_poisoned"] == 20
    assert stored.about["verdict"]["verdict"] == artifact.POISON
    assert stored.about["settings"]["search"] == CONFIG.search.model_dump(mode="json") | {"scales": [1.0]}


def test_strata_are_those_of_metrics_json(fake: FakeRun):
    stored = candidates_of(Folder(fake.run), read_truth(fake.truth), "one")
    poisoned_C = stored.table["poisoned"].to_numpy()
    score_C = stored.table["score"].to_numpy()
    found = {one.stratum: one for one in strata("one", stored, poisoned_C, score_C > 0.8)}
    metrics = detection_metrics(fake.run, fake.truth)
    assert list(found) == [OWN, NATURAL, CLEAN]
    own, natural, clean = found.values()
    assert own.accuracy == metrics["trigger_detection_accuracy_poison_clusters"]
    assert natural.accuracy == metrics["trigger_detection_accuracy_natural_clusters"]
    assert own.accuracy != natural.accuracy
    assert own.n == metrics["n_scored_poison_clusters"] and own.n + natural.n == metrics["n_scored_poisoned"]
    assert own.n_boxed + natural.n_boxed == own.n + natural.n and (clean.n, clean.n_boxed) == (8, 0)
    assert (own.flips, natural.flips, clean.flips) == (1, 1, 0)
    assert clean.accuracy is clean.hit_flips is None
    assert (own.suspected, clean.suspected, clean.in_family) == (1, 0, 0)
    members = (own.n * own.in_family, natural.n * natural.in_family)
    assert sum(members) == pytest.approx((score_C > 0.8).sum())
    unknown = candidates_of(Folder(fake.run), None, "one")
    assert strata("one", unknown, poisoned_C, poisoned_C) == []
    assert unknown.table["poisoned"].null_count == unknown.table["poison_share"].null_count == 18


def test_of_several_true_boxes_the_one_that_fits_best_is_stored(fake: FakeRun, tmp_path: Path):
    plain = candidates_of(Folder(fake.run), read_truth(fake.truth), "one").table.to_pylist()
    missed = next(row for row in plain if row["hit"] is False)
    window = [missed[side] for side in SIDES]
    under = [round(at * scale) for at, scale in zip(window, (WIDTH / SIDE, HEIGHT / SIDE) * 2, strict=True)]
    truth = pq.read_table(fake.truth).to_pylist()
    for row in truth:
        own = [row[side] for side in SIDES]
        row["boxes"] = [own, *([under] if row["image_id"] == missed["image_id"] else [])]
        row["boxes"] = row["boxes"] if row["poisoned"] and row["image_id"] != plain[0]["image_id"] else []
        if row["image_id"] == plain[0]["image_id"]:
            row |= dict.fromkeys(SIDES, -1)
    pq.write_table(pa.Table.from_pylist(truth), tmp_path / "truth.parquet")
    more = candidates_of(
        Folder(fake.run), read_truth(str(tmp_path / "truth.parquet")), "one"
    ).table.to_pylist()
    changed = [row["image_id"] for row, before in zip(more, plain, strict=True) if row != before]
    assert sorted(changed) == sorted([missed["image_id"], plain[0]["image_id"]])
    found = next(row for row in more if row["image_id"] == missed["image_id"])
    assert found["hit"] and [found[f"true_{side}"] for side in SIDES] == window
    # A trigger without a box counts in no trigger detection.
    assert more[0]["poisoned"] and more[0]["hit"] is None and more[0]["true_x0"] is None


def test_a_corpus_without_poison_has_no_poisoned_candidate(tmp_path: Path):
    fake = make_fake_run(tmp_path, poison=False)
    stored = candidates_of(Folder(fake.run), no_poison(120), "clean")
    assert stored.truth_is_known and stored.about["n_poisoned"] == 0
    assert not pc.any(stored.table["poisoned"]).as_py() and stored.table["hit"].null_count == 8
    assert pc.max(stored.table["poison_share"]).as_py() == 0


def test_no_place_of_the_machine_is_kept(run: Folder, fake: FakeRun):
    made = run.read_json(artifact.RUN)
    made["config"]["encoder"]["checkpoint"] = "s3://my-bucket/secret/mine.safetensors"
    made["config"]["pretrain"]["init"] = "/home/me/warm/"
    run.write_json(artifact.RUN, made)
    stored = candidates_of(run, read_truth(fake.truth), "one")
    told = json.dumps(stored.about)
    assert "secret" not in told and "/home" not in told and fake.run not in told and fake.corpus not in told
    assert stored.about["settings"]["encoder"]["checkpoint"] == "mine.safetensors"
    assert stored.about["settings"]["pretrain"]["init"] == "warm"


def test_the_command_stores_what_it_measures(run: Folder, fake: FakeRun, tmp_path: Path, monkeypatch, capsys):
    def run_with(*arguments: str) -> int | str | None:
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr("sys.argv", ["evaluate.py", "--run", run.uri, "--truth", fake.truth, *arguments])
            run_program(evaluate)
        return ended.value.code

    assert run_with("--candidates", str(tmp_path / "one.csv")) == 2
    assert "let it end with .parquet" in capsys.readouterr().err
    assert not run.exists(f"{artifact.PAGE}/{artifact.METRICS}")
    assert run_with("--candidates", str(tmp_path / "one.parquet")) == 0
    assert "one.parquet, 0.0" in capsys.readouterr().out
    figures = read_stored(Folder(str(tmp_path)), "one.parquet").about["figures"]
    measured = (run / artifact.PAGE).read_json(artifact.METRICS)
    assert figures["recall"] == measured["recall"] and "by_shape" not in figures
    assert figures["trigger_detection_accuracy"] == measured["trigger_detection_accuracy"]


def changed(file: Path, about: dict[str, Any] | None = None, **columns: Any) -> None:
    """Set entries of the file's header, and columns by a function of their values."""
    table = pq.read_table(file)
    header = json.loads(table.schema.metadata[HEADER]) | (about or {})
    for name, change in columns.items():
        i = table.column_names.index(name)
        values = pa.array(change(table[name].to_pylist()), table.schema.field(i).type)
        table = table.set_column(i, name, values)
    pq.write_table(table.replace_schema_metadata({HEADER: json.dumps(header)}), file)


@pytest.mark.parametrize(
    ("about", "columns", "told"),
    [
        ({"format": 2}, {}, "has format 2, not 1: store the candidates of that run again"),
        ({"superclusters": [0]}, {}, "is damaged"),
        ({"superclusters": [0, 1, 2, -3]}, {}, "is damaged"),
        ({"flip_test": {"image_id": ["a"], "cluster": [0]}}, {}, "is damaged"),
        ({"flip_test": None}, {}, "is damaged"),
        ({"rounds": 3}, {}, "is damaged"),
        ({"settings": {}}, {}, "is damaged"),
        ({}, {"cluster": lambda values: [-1, *values[1:]]}, "is damaged"),
        ({}, {"score": lambda values: [None, *values[1:]]}, "is damaged"),
        ({}, {"landed": lambda values: [[], *values[1:]]}, "is damaged"),
        ({}, {"race_rank": lambda values: [1, *values[1:]]}, "is damaged"),
        ({}, {"landed": lambda values: [[None, *values[0][1:]], *values[1:]]}, "is damaged"),
        ({}, {"score": lambda values: [math.nan, *values[1:]]}, "is damaged"),
        ({}, {"poisoned": lambda values: [None, *values[1:]]}, "is damaged"),
        ({}, {"poison_share": lambda values: [None, *values[1:]]}, "is damaged"),
        ({"rounds": 10**13}, {}, "is damaged"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    fake: FakeRun, tmp_path: Path, about: dict, columns: dict, told: str
):
    store_run(fake.run, fake.truth, str(tmp_path / "one.parquet"))
    changed(tmp_path / "one.parquet")
    read_stored(Folder(str(tmp_path)), "one.parquet")
    changed(tmp_path / "one.parquet", about, **columns)
    with pytest.raises(UserError, match=told):
        read_stored(Folder(str(tmp_path)), "one.parquet")


def test_other_files_are_one_sentence(fake: FakeRun, tmp_path: Path):
    folder = Folder(str(tmp_path))
    folder.write_bytes("text.parquet", b"no Parquet")
    folder.write_bytes("truth.parquet", Path(fake.truth).read_bytes())
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({HEADER: b"[]"}), tmp_path / "list.parquet")
    for name in ("text.parquet", "truth.parquet", "list.parquet"):
        with pytest.raises(UserError, match="holds no stored candidates"):
            read_stored(folder, name)
    with pytest.raises(UserError, match=r"There is no .*none\.parquet"):
        read_stored(folder, "none.parquet")
    empty = candidates_of(Folder(fake.run), None, "one")
    replace(empty, table=empty.table[:0]).write(folder, "empty.parquet")
    with pytest.raises(UserError, match="is damaged"):
        read_stored(folder, "empty.parquet")


def test_a_run_without_a_search_is_refused(run: Folder, fake: FakeRun, tmp_path: Path):
    (run / artifact.SEARCH).delete("_manifest.json")
    with pytest.raises(UserError, match=f"no finished {artifact.SEARCH}"):
        store_run(run.uri, fake.truth, str(tmp_path / "one.parquet"))
