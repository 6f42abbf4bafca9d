"""Clean: the removed rows keep the input's layout, and the reasons name each row's family and box."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from poisoncam_ray import artifact
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.corpus.slices import slices_of
from poisoncam_ray.errors import LedgerError
from poisoncam_ray.folder import Folder, part_name
from poisoncam_ray.stages.clean import write_unit
from tests.fake_evidence import accuse
from tests.fake_run import BOXED, FakeRun, make_fake_run
from tests.small import rows_of, scores


@pytest.fixture
def fake(tmp_path) -> FakeRun:
    return make_fake_run(tmp_path)


def write_all(fake: FakeRun) -> None:
    run, corpus = Folder(fake.run), open_corpus(fake.corpus)
    slices = slices_of((run / artifact.INDEX).read_table(artifact.SLICES))
    for number, unit in enumerate(corpus.units(slices)):
        write_unit(number, unit, corpus, run)


def test_the_reasons_carry_the_family_and_box_of_each_removed_row(fake, tmp_path):
    removed = accuse(Folder(fake.run), 2)
    write_all(fake)
    reasons = rows_of(tmp_path / "run" / artifact.CLEAN)
    removed_score = {
        row["image_id"]: row for row in scores(tmp_path / "run") if row["fate"] == artifact.REMOVE
    }
    assert {row["image_id"]: row["family"] for row in reasons} == {
        image_id: row["family"] for image_id, row in removed_score.items()
    }
    for row in reasons:
        box = [row[side] for side in SIDES]
        assert box == [removed_score[row["image_id"]][side] for side in SIDES] == list(BOXED)
        assert row["reason"] == "poison_classifier"
    assert sorted(row["family"] for row in reasons) == [1] * removed[1] + [2] * removed[2]


def test_kept_and_removed_rows_are_the_rows_of_the_input(fake, tmp_path):
    write_all(fake)
    for shard in (tmp_path / "corpus").rglob("*.parquet"):
        name = shard.relative_to(tmp_path / "corpus")
        before = pq.read_table(shard)
        kept, removed = (
            pq.read_table(path) if (path := tmp_path / "run" / folder / name).exists() else before.slice(0, 0)
            for folder in (artifact.CLEAN_ROWS, artifact.REMOVED_ROWS)
        )
        assert kept.schema == removed.schema == before.schema
        gone = {image_id for image_id in fake.removed if image_id.startswith(f"{name}#")}
        assert len(removed) == len(gone)
        rows = before.to_pylist()
        assert all(row in rows for row in [*kept.to_pylist(), *removed.to_pylist()])


def test_scores_of_other_rows_are_refused(fake):
    folder = Folder(fake.run) / artifact.SCORES
    folder.write_table(part_name(0), folder.read_table(part_name(0)).slice(1))
    with pytest.raises(LedgerError, match="the scores of slice 0 are not those of its indexed rows"):
        write_all(fake)
