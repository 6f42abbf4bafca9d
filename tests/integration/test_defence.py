"""The whole defence on a small corpus with broken rows: the ledger, the bytes, a second run, refusals."""

from __future__ import annotations

import re
import shutil

import pyarrow.parquet as pq
import pytest

from poisoncam_ray import artifact
from poisoncam_ray.folder import MANIFEST, Folder, Manifest
from poisoncam_ray.stages.crops import from_png
from tests.here import defend_here
from tests.integration.conftest import BROKEN, WITHOUT
from tests.small import SETTINGS, defend, rows_of, scores, stamps

pytestmark = pytest.mark.cluster


def test_every_row_is_kept_removed_or_dead_and_the_bytes_are_the_source_bytes(finished):
    before = {row["id"]: row for row in rows_of(finished.corpus)}
    kept = {row["id"]: row for row in rows_of(finished.run / artifact.CLEAN_ROWS)}
    removed = {row["id"]: row for row in rows_of(finished.run / artifact.REMOVED_ROWS)}
    dead = rows_of(finished.run / artifact.DEAD_ROWS)
    assert len(kept) + len(removed) + len(dead) == len(before) == 240
    assert not set(kept) & set(removed)
    assert all(kept[key] == before[key] for key in kept)
    # Without a column of ours: removed/ has the input's own layout.
    assert all(removed[key] == before[key] for key in removed)
    assert sorted(row["row"] for row in dead) == sorted(BROKEN)
    assert {row["error"] for row in dead} == {"empty", "undecodable", "truncated", "not_embedded"}
    null = next(key for row, key in enumerate(before) if row == WITHOUT)
    assert kept[null]["image"] is not None and kept[null]["image"]["bytes"] is None
    told = f"{len(kept)} kept (1 row without an image) + {len(removed)} removed + 4 dead"
    assert told in finished.said
    assert [p.name for p in sorted((finished.run / artifact.CLEAN_ROWS).glob("*"))] == [
        p.name for p in sorted(finished.corpus.glob("*"))
    ]


def test_scores_and_reasons_say_what_was_removed(finished):
    score_of = {row["image_id"]: row for row in scores(finished.run)}
    flagged = {
        key: (row["p_poison"], row["family"])
        for key, row in score_of.items()
        if row["fate"] == artifact.REMOVE
    }
    reasons = {
        row["image_id"]: (row["p_poison"], row["family"]) for row in rows_of(finished.run / artifact.CLEAN)
    }
    assert flagged == reasons
    assert len(flagged) == len(rows_of(finished.run / artifact.REMOVED_ROWS))
    assert all((row["family"] > 0) == (row["fate"] == artifact.REMOVE) for row in score_of.values())
    found = artifact.Verdict.read(Folder(str(finished.run / artifact.VERDICT)))
    assert found.poison and [family.family for family in found.families] == [1]
    assert found.n_candidates == found.families[0].n_candidates > 0
    headline = "Poison found" if flagged else "Evidence of poison"
    assert f"{headline}: 1 trigger family" in finished.said
    assert f", {len(flagged)} image" in finished.said or not flagged


def test_every_line_on_the_console_is_ours(finished):
    titles = "|".join(artifact.TITLES.values())
    ours = re.compile(
        rf"(?:{titles}) +\S|240 rows = |Poison found|Evidence of poison|  family \d|clean corpus  |report  "
    )
    assert [line for line in finished.said.splitlines() if not ours.match(line)] == []


def test_pictures_of_the_trigger_lie_beside_the_classifiers(finished):
    table = Folder(str(finished.run / artifact.CLASSIFIER)).read_table(artifact.WHOLE_TRIGGERS)
    pictures = table.to_pylist()
    sides = [side for row in pictures for side in from_png(row["picture"]).shape[1:]]
    assert {row["family"] for row in pictures} == {1} and 2 <= min(sides) <= max(sides) <= 32
    reasons = rows_of(finished.run / artifact.CLEAN)
    assert all(row[side] is not None for row in reasons for side in artifact.SIDES)


def test_ledgers_chain_from_the_input_to_the_clean_corpus(finished):
    ledgers = {
        name: Manifest.read(Folder(str(finished.run / name))).ledger
        for name in (artifact.INDEX, artifact.FEATURES, artifact.CLUSTERS, artifact.SCORES, artifact.CLEAN)
    }
    assert ledgers[artifact.INDEX].rows_in == ledgers[artifact.CLEAN].rows_in == 240
    assert (
        ledgers[artifact.INDEX].rows_out
        == ledgers[artifact.FEATURES].rows_out
        == ledgers[artifact.CLUSTERS].rows_out
        == ledgers[artifact.SCORES].rows_out
        == 235
    )
    assert ledgers[artifact.INDEX].no_image == 1
    assert all(ledger.balanced for ledger in ledgers.values())


def test_the_report_is_there(finished):
    assert (finished.run / artifact.PAGE / artifact.HTML).stat().st_size > 10_000
    assert finished.said.strip().endswith(f"{artifact.PAGE}/{artifact.HTML}")


def test_a_second_run_does_nothing_and_says_so(finished):
    before = stamps(finished.run)
    code, said = defend_here(*finished.command())
    assert code == 0
    assert "Nothing to do" in said
    after = stamps(finished.run)
    assert {k: v for k, v in after.items() if k != artifact.RUN} == {
        k: v for k, v in before.items() if k != artifact.RUN
    }


def test_changed_settings_seed_and_input_are_refused_and_named(finished, tmp_path):
    for change, words in (
        ("search.window=0.3", "search.window: 0.35 then, 0.3 now"),
        ("seed=9", "seed: 0 then, 9 now"),
    ):
        code, said = defend_here(*finished.command(), change)
        assert code == 2, said
        assert words in said
        assert "Traceback" not in said
    other = tmp_path / "corpus"
    shutil.copytree(finished.corpus, other)
    pq.write_table(pq.read_table(other / "part-00001.parquet").slice(1), other / "part-00001.parquet")
    code, said = defend_here("--input", str(other), "--output", str(finished.run), *SETTINGS)
    assert code == 2
    assert "part-00001.parquet: changed" in said


def test_an_artifact_made_from_another_input_is_refused(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished.run, copy)
    clusters = Folder(str(copy / artifact.CLUSTERS))
    manifest = Manifest.read(clusters)
    Manifest(**{**manifest.__dict__, "seconds": manifest.seconds + 1}).write(clusters)
    (copy / artifact.CLASSIFIER / MANIFEST).unlink()
    process = defend(*finished.command(copy))
    assert process.returncode == 2
    assert f"{artifact.SEARCH} was made from another {artifact.CLUSTERS}" in process.said
