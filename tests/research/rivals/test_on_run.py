"""All rivals on a finished run, beside the defence."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

from poisoncam_ray import artifact
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, Manifest
from poisoncam_ray.research.attacks.trigger import generate_trigger
from poisoncam_ray.research.evaluate import detection_metrics
from poisoncam_ray.research.rivals import on_run
from poisoncam_ray.research.rivals.on_corpus import Look
from poisoncam_ray.research.rivals.on_run import DEFENCE, PATCHES, PEER, rivals_of_run, run_name, shown
from poisoncam_ray.stages.embed import feature_table, read_features
from tests.fake_run import FakeRun, make_fake_run

JOB = Path(__file__).parents[3] / "jobs" / "rivals.py"
LOOK = Look(sides=(16,))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> FakeRun:
    """A finished run whose poisoned images lie far from all others."""
    fake = make_fake_run(tmp_path_factory.mktemp("rivals"), trigger=generate_trigger(4))
    features = Folder(fake.run) / artifact.FEATURES
    generator = torch.Generator().manual_seed(0)
    for name in features.parts():
        ids, f_ND = read_features(features, name)
        f_ND = torch.randn(f_ND.shape, generator=generator)
        f_ND[[image_id in fake.poisoned for image_id in ids]] *= 30
        features.write_table(name, feature_table(ids, f_ND))
    return fake


def test_every_rival_stands_beside_the_defence(made, tmp_path):
    rows = rivals_of_run(made.run, made.truth, Folder(str(tmp_path)), LOOK, peer_uri=made.run)
    of = {row["rival"]: row for row in rows}
    assert list(of)[:3] == [DEFENCE, PEER, PATCHES] and len(of) == 10
    own = detection_metrics(made.run, made.truth)
    for key in ("recall", "false_positive_rate", "precision"):
        assert of[DEFENCE][key] == of[PEER][key] == own[key]
    manifests = (Manifest.read(Folder(made.run) / stage) for stage in artifact.TITLES)
    assert of[DEFENCE]["seconds"] == sum(manifest.seconds for manifest in manifests if manifest)
    assert of["distance to 20 neighbours"]["auc"] > 0.99
    assert of["distance to 20 neighbours"]["recall_at_its_rate"] == 1
    assert of["nearness to 20 neighbours"]["auc"] == pytest.approx(1 - of["distance to 20 neighbours"]["auc"])
    for row in rows:
        assert (row["n_images"], row["n_poisoned"]) == (120, 20) and row["seconds"] >= 0
        if row["rival"] != PEER:
            assert 0 <= row["auc"] <= 1 and 0 <= row["recall_at_its_rate"] <= 1
    for rival in list(of)[3:]:
        assert of[rival]["flops"] > 0 and "recall" not in of[rival]


def test_the_job_adds_runs_and_measures_none_twice(made, tmp_path, monkeypatch):
    job = runpy.run_path(str(JOB))["rivals"]
    common = {
        "truth": [made.truth],
        "peer": None,
        "side": [16],
        "sample": 100,
        "seed": 0,
        "features_only": False,
    }
    job(output=str(tmp_path), run=[made.run], **common)
    first = (tmp_path / "rivals.jsonl").read_text()
    assert {row["rival"] for row in map(json.loads, first.splitlines())} >= {DEFENCE, PATCHES}

    def again(*_, **__):
        raise AssertionError("measured twice")

    monkeypatch.setattr(on_run, "rivals_of_run", again)
    job(output=str(tmp_path), run=[made.run], **common)
    assert (tmp_path / "rivals.jsonl").read_text() == first
    page = (tmp_path / "rivals.md").read_text()
    assert "20 of 120 images are poisoned" in page and "local outlier factor" in page
    assert str(tmp_path.parent) not in page
    with pytest.raises(UserError, match="--truth for every run"):
        job(output=str(tmp_path), run=[made.run, made.run], **common)


def test_without_the_patches_the_corpus_is_not_read(made, tmp_path, monkeypatch):
    monkeypatch.setattr(on_run, "look_at", None)
    rows = rivals_of_run(made.run, made.truth, Folder(str(tmp_path)), None)
    assert [row["rival"] for row in rows][:2] == [DEFENCE, "distance to 20 neighbours"] and len(rows) == 8


def test_a_truth_of_another_corpus_is_refused(made, tmp_path):
    other = make_fake_run(tmp_path / "other", poison=False)
    with pytest.raises(UserError, match="truth"):
        rivals_of_run(made.run, f"{other.truth}.not", Folder(str(tmp_path / "out")), LOOK)


def test_runs_are_named_by_their_place_in_a_table():
    assert shown("/a/table/seed-7/patch/share-1/red/run") == "seed-7/patch/share-1/red"
    assert shown("/a/mine") == shown("s3://b/mine/run/") == "mine" and shown("run") == "run"
    assert run_name("/a/mine/run") != run_name("/b/mine/run") and "/" not in run_name("/a/seed-7/x/run")
