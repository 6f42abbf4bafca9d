"""The whole defence on a small corpus with broken rows: the ledger, the bytes, a second run, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from poisoncam_ray.verdict import read_evidence

from poisoncam_ray import artifact
from poisoncam_ray.folder import MANIFEST, Folder, Manifest
from poisoncam_ray.stages.crops import from_png
from tests.small import SETTINGS, defend, draw_small, rows_of, stamps, verdicts

BROKEN = {3: b"", 17: b"no image", 30: None, 41: "truncated"}


def break_some(shard: Path) -> None:
    table = pq.read_table(shard)
    images = table["image"].to_pylist()
    for row, data in BROKEN.items():
        images[row]["bytes"] = images[row]["bytes"][:200] if data == "truncated" else data
    column = pa.array(images, table.schema.field("image").type)
    index = table.schema.get_field_index("image")
    pq.write_table(table.set_column(index, table.schema.field(index), column), shard)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("defence")
    corpus = draw_small(folder / "corpus")
    break_some(corpus / "part-00000.parquet")
    process = defend("--input", str(corpus), "--output", str(folder / "run"), *SETTINGS)
    assert process.returncode == 0, process.said
    return corpus, folder / "run", process.said


def test_every_row_is_kept_removed_or_dead_and_kept_bytes_are_the_source_bytes(finished):
    corpus, run, said = finished
    before = {row["id"]: row for row in rows_of(corpus)}
    kept = {row["id"]: row for row in rows_of(run / artifact.CLEAN_ROWS)}
    removed = {row["id"]: row for row in rows_of(run / "removed")}
    dead = [row for path in (run / artifact.DEAD_ROWS).glob("*") for row in pq.read_table(path).to_pylist()]
    assert len(kept) + len(removed) + len(dead) == len(before) == 240
    assert not set(kept) & set(removed)
    assert all(kept[key] == before[key] for key in kept)
    assert all(
        {k: v for k, v in row.items() if not k.startswith("_")} == before[key] for key, row in removed.items()
    )
    assert sorted(row["row"] for row in dead) == sorted(BROKEN)
    assert {row["error"] for row in dead} == {"empty", "undecodable", "truncated"}
    assert f"{len(kept)} kept + {len(removed)} removed + 4 dead" in said
    assert [p.name for p in sorted((run / artifact.CLEAN_ROWS).glob("*.parquet"))] == [
        p.name for p in sorted(corpus.glob("*"))
    ]


def test_verdicts_say_what_was_removed(finished):
    _, run, words = finished
    said = {row["image_id"]: row for row in verdicts(run)}
    flagged = {
        key: (row["p_poison"], row["family"]) for key, row in said.items() if row["verdict"] == "remove"
    }
    removed = {row["_image_id"]: (row["_p_poison"], row["_family"]) for row in rows_of(run / "removed")}
    assert flagged == removed
    assert all((row["family"] > 0) == (row["verdict"] == "remove") for row in said.values())
    found = read_evidence(Folder(str(run / artifact.SEARCH)))
    assert found.poison and [family.family for family in found.families] == [1]
    assert found.n_candidates == found.families[0].n_candidates > 0
    headline = "Poison found" if removed else "Suspicious windows"
    assert f"{headline}: 1 trigger family" in words and (f", {len(removed)} image" in words or not removed)


def test_pictures_of_the_trigger_lie_beside_the_classifiers(finished):
    _, run, _ = finished
    shown = Folder(str(run / artifact.CLASSIFIER)).read_table("whole_triggers.parquet").to_pylist()
    sides = [side for row in shown for side in from_png(row["picture"]).shape[1:]]
    assert {row["family"] for row in shown} == {1} and 2 <= min(sides) <= max(sides) <= 32
    boxes = [row["_box"] for row in rows_of(run / "removed")]
    assert all(box is not None for box in boxes)


def test_ledgers_chain_from_the_input_to_the_clean_corpus(finished):
    _, run, _ = finished
    ledgers = {
        name: Manifest.read(Folder(str(run / name))).ledger
        for name in (artifact.INDEX, artifact.FEATURES, artifact.SCORES, artifact.CLEAN_ROWS)
    }
    assert ledgers[artifact.INDEX].rows_in == ledgers[artifact.CLEAN_ROWS].rows_in == 240
    assert (
        ledgers[artifact.INDEX].rows_out
        == ledgers[artifact.FEATURES].rows_out
        == ledgers[artifact.SCORES].rows_out
        == 236
    )
    assert all(ledger.balanced for ledger in ledgers.values())


def test_the_report_is_there(finished):
    _, run, said = finished
    assert (run / "report" / "index.html").stat().st_size > 10_000
    assert said.strip().endswith("report/index.html")


def test_a_second_run_does_nothing_and_says_so(finished):
    corpus, run, _ = finished
    before = stamps(run)
    process = defend("--input", str(corpus), "--output", str(run), *SETTINGS)
    assert process.returncode == 0
    assert "Nothing to do" in process.said
    after = stamps(run)
    assert {k: v for k, v in after.items() if k != "run.json"} == {
        k: v for k, v in before.items() if k != "run.json"
    }


def test_changed_settings_seed_and_input_are_refused_and_named(finished, tmp_path):
    corpus, run, _ = finished
    for change, words in (
        ("search.window=0.3", "search.window: 0.35 then, 0.3 now"),
        ("seed=9", "seed: 0 then, 9 now"),
    ):
        process = defend("--input", str(corpus), "--output", str(run), *SETTINGS, change)
        assert process.returncode == 2, process.said
        assert words in process.said
        assert "Traceback" not in process.said
    other = tmp_path / "corpus"
    shutil.copytree(corpus, other)
    pq.write_table(pq.read_table(other / "part-00001.parquet").slice(1), other / "part-00001.parquet")
    process = defend("--input", str(other), "--output", str(run), *SETTINGS)
    assert process.returncode == 2
    assert "part-00001.parquet: changed" in process.said


def test_an_artifact_made_anew_makes_what_came_from_it_refused(finished, tmp_path):
    corpus, run, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    manifest = Manifest.read(Folder(str(copy / artifact.CLUSTERS)))
    Manifest(**{**manifest.__dict__, "seconds": manifest.seconds + 1}).write(
        Folder(str(copy / artifact.CLUSTERS))
    )
    (copy / artifact.CLASSIFIER / MANIFEST).unlink()
    process = defend("--input", str(corpus), "--output", str(copy), *SETTINGS)
    assert process.returncode == 2
    assert "04_search was made from another 03_clusters" in process.said
