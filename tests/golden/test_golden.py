"""The verdicts of the old code (format 1), reached again from its stored candidates. See README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.config import Verdict as Settings
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.folder import Folder
from poisoncam_ray.progress import Progress
from poisoncam_ray.research.evaluate.stored import Stored, completed
from poisoncam_ray.stage import Run
from poisoncam_ray.stages.verdict import Verdict
from tests.golden import compare

RUNS = sorted(path.parent for path in Path(__file__).parent.glob("*/expected.json"))
FLOATS = ("p_value", "threshold", "best_group")
"""Numbers of verdict.json that are not rounded."""


FIRST = Config().search.race.first


def searched(stored: Path, expected: dict[str, Any], run: Folder, images: slice = slice(None)) -> None:
    """The artifact of the search, as the stored run left it, on these flip-test images."""
    table = pq.read_table(stored / "candidates.parquet")
    landed = pa.array([row[images] for row in table["landed"].to_pylist()])
    table = table.set_column(table.column_names.index("landed"), "landed", landed)
    about = {
        "rounds": pc.max(table["round"]).as_py() + 1,
        "superclusters": expected["superclusters"],
        "flip_test": {name: column[images] for name, column in expected["flip_test"].items()},
    }
    Stored(completed(table), about).unpack(run / artifact.SEARCH)


def test_several_runs_are_stored():
    assert len(RUNS) >= 3


def decided(run: Folder, expected: dict[str, Any]) -> Folder:
    """The artifact of the verdict on the run's search."""
    (run / "corpus").write_table("a.parquet", pa.table({"image": [b""]}))
    corpus, out = open_corpus(f"{run.uri}/corpus"), run / artifact.VERDICT
    config = Config(verdict=Settings(false_alarm_rate=expected["verdict"]["false_alarm_rate"]))
    Verdict().run(Run(config, corpus, run, out, Progress()))
    return out


@pytest.mark.parametrize("images", [slice(FIRST), slice(-FIRST, None)], ids=["first", "last"])
@pytest.mark.parametrize("stored", RUNS, ids=lambda path: path.name)
def test_the_verdict_is_the_same_on_as_many_images_as_a_race_begins_with(stored, images, tmp_path):
    """All windows were pasted on 100 images. Now evidence rests on 64."""
    run, expected = Folder(str(tmp_path)), Folder(str(stored)).read_json("expected.json")
    searched(stored, expected, run, images)
    out, before = decided(run, expected), expected["verdict"]
    found = out.read_json(artifact.VERDICT_FILE)
    assert found["verdict"] == before["verdict"] and len(found["families"]) == len(before["families"])
    # Not by a hair.
    ratio, then = (one["best_group"] / one["threshold"] for one in (found, before))
    assert (ratio > 5) == (then > 5) and (ratio < 0.5) == (then < 0.5)


@pytest.mark.parametrize("stored", RUNS, ids=lambda path: path.name)
def test_the_verdict_is_the_old_code_s(stored, tmp_path):
    run = Folder(str(tmp_path))
    expected = Folder(str(stored)).read_json("expected.json")
    searched(stored, expected, run)
    out = decided(run, expected)
    listed = out.read_table(artifact.TRIGGERS, ["image_id", *artifact.SIDES, "family"])
    assert listed.to_pydict() == expected["triggers"]
    found, before = out.read_json(artifact.VERDICT_FILE), expected["verdict"]
    if torch.backends.cpu.get_cpu_capability() == expected["cpu"]:
        assert found == before
    # Other processors sum in another order: the last digits of the means may differ.
    for one, other in [(found, before), *zip(found["families"], before["families"], strict=True)]:
        for name in FLOATS:
            if other.get(name) is not None:
                assert one.pop(name) == pytest.approx(other.pop(name), rel=1e-9)
    assert found == before


ROW = {"image_id": "a#0", "x0": 1, "y0": 2, "x1": 5, "y1": 6, "family": 1}


def write_run(run: Path, at: compare.Layout, fate: str, group: str, flips: str, **changed: Any) -> Path:
    """A run of one candidate and one removed image in one of the formats, with the words of that format."""

    def table(path: str, row: dict[str, Any]) -> None:
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([row]), run / path)

    box = ROW | changed
    table(f"{at.search}/round=000/candidates.parquet", ROW | {flips: True})
    table(f"{at.verdict.rsplit('/', 1)[0]}/triggers.parquet", ROW | {flips: True})
    table(f"{at.classifier}/{at.roles}", ROW | {flips: True, "role": "train"})
    table(f"{at.scores}/part-000000.parquet", box | {"p_poison": 0.9, fate: "remove"})
    for path, tree in {
        at.verdict: {"verdict": "poison", group: 0.5},
        f"{at.search}/{at.superclusters}": [0],
        "report/metrics.json": {"recall": 1.0},
    }.items():
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_text(json.dumps(tree))
    return run


def test_runs_of_both_formats_are_compared_by_their_new_words(tmp_path, capsys):
    old = compare.read_run(write_run(tmp_path / "old", compare.OLD, "verdict", "best_bundle", "needed"))
    new_words = ("fate", "best_group", "occlusion_flips")
    new = compare.read_run(write_run(tmp_path / "new", compare.NEW, *new_words))
    assert old["verdict"] == {"verdict": "poison", "best_group": 0.5} and len(old["candidates"]) == 1
    assert compare.compare(old, new) == []
    moved = compare.read_run(write_run(tmp_path / "moved", compare.NEW, *new_words, x0=0))
    assert compare.compare(old, moved) == ["scores of all images", "removed images, boxes, p"]
    assert "[0].x0: 1 before, 0 now" in capsys.readouterr().out
    (tmp_path / "moved/report/removed.csv").write_text("image_id\na#1\n")
    with pytest.raises(SystemExit, match="does not list"):
        compare.read_run(tmp_path / "moved")


def test_differences_are_found_wherever_they_are():
    tree = {"a": [1, {"b": 0.5}], "c": None}
    assert compare.differences(tree, {"a": [1, {"b": 0.5}], "c": None}) == []
    assert compare.differences(tree, {"a": [1, {"b": 0.25}], "c": None}) == ["a[1].b: 0.5 before, 0.25 now"]
    assert compare.differences(tree, {"a": [1], "c": None}) == ["a: 2 before, 1 now"]
    assert compare.differences(tree, {"a": tree["a"]}) == ["c: None before, '(missing)' now"]
    assert compare.differences(1, True) == ["value: 1 before, True now"]
    assert compare.differences(float("nan"), float("nan")) == []
