"""Clean: the removed rows say which family they were removed for, and where its trigger is."""

from __future__ import annotations

from dataclasses import replace

import pyarrow.parquet as pq

from poisoncam_ray import artifact
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.folder import Folder
from poisoncam_ray.stages.clean import write_unit
from tests.fake_evidence import accuse
from tests.fake_run import BOXED, make_fake_run


def test_removed_rows_carry_the_family_and_box_of_their_verdict(tmp_path):
    fake = make_fake_run(tmp_path)
    run = Folder(fake.run)
    removed = accuse(run, 2)
    corpus = open_corpus(fake.corpus)
    first, second = corpus.slices()
    # As the fake run is sliced.
    units = [[replace(first, stop=40), replace(first, index=1, start=40)], [replace(second, index=2)]]
    folders = {
        artifact.INDEX: run / artifact.INDEX,
        artifact.SCORES: run / artifact.SCORES,
        "removed": run / "removed",
    }
    for number, unit in enumerate(units):
        write_unit(number, unit, corpus, folders, run / artifact.CLEAN_ROWS)
    tables = [pq.read_table(path) for path in (tmp_path / "run" / "removed").rglob("*.parquet")]
    rows = [row for table in tables for row in table.to_pylist()]
    verdicts = [
        row for name in folders[artifact.SCORES].parts()
        for row in folders[artifact.SCORES].read_table(name).to_pylist()
    ]  # fmt: skip
    family_of = {row["image_id"]: row["family"] for row in verdicts if row["verdict"] == "remove"}
    assert {row["_image_id"]: row["_family"] for row in rows} == family_of
    box_of = {row["image_id"]: [row[side] for side in SIDES] for row in verdicts}
    assert all(row["_box"] == box_of[row["_image_id"]] == list(BOXED) for row in rows)
    assert sorted(family_of.values()) == [1] * removed[1] + [2] * removed[2]
