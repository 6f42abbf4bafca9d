"""Recall and false positives by the shape of the images, on a run written by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.evaluate.joined import read_truth
from poisoncam_ray.research.evaluate.shapes import by_shape
from tests.fake_run import make_fake_run

# Width and height of every third image in turn; 16:9 itself is wide, 2:1 itself is not long.
SIZES = [(64, 64), (160, 90), (64, 129)]


@pytest.fixture
def shaped(tmp_path: Path) -> tuple[Folder, str, dict[str, tuple[int, int]]]:
    """A run whose images have SIZES in turn, its truth, and the size of each image."""
    fake = make_fake_run(tmp_path / "made")
    run = Folder(str(shutil.copytree(fake.run, tmp_path / "run")))
    index, size = run / artifact.INDEX, {}
    for name in index.parts():
        rows = index.read_table(name).to_pylist()
        for row in rows:
            row["width"], row["height"] = size[row["image_id"]] = SIZES[len(size) % 3]
        # In another order than the scores: the join must not lean on it.
        index.write_table(name, pa.Table.from_pylist(rows[::-1], schema=artifact.INDEX_SCHEMA))
    return run, fake.truth, size


def test_fates_are_counted_by_shape(shaped) -> None:
    run, truth_uri, size = shaped
    truth = read_truth(truth_uri)
    poisoned = set(truth.poisoned["image_id"].to_pylist())
    fate, p = {}, {}
    for name in (run / artifact.SCORES).parts():
        for row in (run / artifact.SCORES).read_table(name).to_pylist():
            fate[row["image_id"]], p[row["image_id"]] = row["fate"], row["p_poison"]
    highest = sorted(p[i] for i in p if i not in poisoned)[-1:]  # of 99 clean images the highest hundredth
    found = by_shape(run, truth)
    assert list(found) == ["up to 16:9", "up to 2:1", "longer than 2:1"]
    for got, wanted in zip(found.values(), SIZES, strict=True):
        mine = [i for i in fate if size[i] == wanted]
        clean, poison = [i for i in mine if i not in poisoned], [i for i in mine if i in poisoned]
        removed = [i for i in mine if fate[i] == artifact.REMOVE]
        assert got == {
            "n_clean": len(clean),
            "n_clean_removed": len(set(removed) - poisoned),
            "false_positive_rate": pytest.approx(len(set(removed) - poisoned) / len(clean)),
            "clean_in_top_hundredth": pytest.approx(sum(p[i] in highest for i in clean) / len(clean)),
            "n_poisoned": len(poison),
            "recall": pytest.approx(len(poisoned.intersection(removed)) / len(poison)),
        }
    assert sum(got["n_clean_removed"] for got in found.values()) == 1
    assert sum(got["clean_in_top_hundredth"] > 0 for got in found.values()) == 1


def test_a_run_without_a_classifier_has_no_highest_scores(shaped) -> None:
    run, truth_uri, _ = shaped
    scores = run / artifact.SCORES
    for name in scores.parts():
        rows = [
            {**row, "p_poison": 0.0, "fate": artifact.KEEP} for row in scores.read_table(name).to_pylist()
        ]
        scores.write_table(name, pa.Table.from_pylist(rows, schema=artifact.SCORE_SCHEMA))
    found = by_shape(run, read_truth(truth_uri))
    assert {got["clean_in_top_hundredth"] for got in found.values()} == {None}
    assert {got["false_positive_rate"] for got in found.values()} == {0.0}
