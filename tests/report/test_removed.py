"""removed.csv: every removed image once, in the order of the corpus, with its id as it is."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow as pa

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder
from poisoncam_ray.report.removed import removed_csv
from tests.fake_run import BOXED, image_ids, make_fake_run

IDS = [
    "a,b.png",
    'say "no".png',
    "two\nlines\r\n.png",
    "=cmd|' /C calc'!A0",
    "+1",
    "@x",
    "-2",
    "",
    "ä\u202e;\t.png",
]


def read(run: Folder) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(removed_csv(run).decode(), newline="")))


def header(run: Folder) -> list[str]:
    return next(csv.reader(io.StringIO(removed_csv(run).decode(), newline="")))


def test_removed_images_stand_in_the_order_of_the_corpus_with_their_scores(tmp_path: Path) -> None:
    fake = make_fake_run(tmp_path)
    run, rows = Folder(fake.run), read(Folder(fake.run))
    assert header(run) == artifact.REMOVED_SCHEMA.names
    assert [row["image_id"] for row in rows] == [i for i in image_ids() if i in fake.removed]
    scores = run / artifact.SCORES
    scored = [row for name in scores.parts() for row in scores.read_table(name).to_pylist()]
    p = {row["image_id"]: row["p_poison"] for row in scored}
    for row in rows:
        assert f"{row['source']}#{row['row']}" == row["image_id"]
        assert pa.scalar(float(row["p_poison"]), pa.float32()).as_py() == p[row["image_id"]]
        assert (row["reason"], row["family"]) == ("poison_classifier", "1")
        assert tuple(int(row[side]) for side in artifact.SIDES) == BOXED


def test_units_follow_one_another(tmp_path: Path) -> None:
    run = Folder(str(tmp_path))
    for number in (2, 0, 10):
        write_removed(run, number, [f"{number}#{row}" for row in range(2)])
    assert [row["image_id"] for row in read(run)] == ["0#0", "0#1", "2#0", "2#1", "10#0", "10#1"]


def test_an_id_is_one_field_whatever_it_holds_and_is_not_altered(tmp_path: Path) -> None:
    run = Folder(str(tmp_path))
    write_removed(run, 0, IDS)
    rows = read(run)
    assert [row["image_id"] for row in rows] == [row["source"] for row in rows] == IDS
    assert {tuple(row) for row in rows} == {tuple(artifact.REMOVED_SCHEMA.names)}


def test_without_a_removed_image_there_is_a_header_only(tmp_path: Path) -> None:
    run = Folder(make_fake_run(tmp_path, poison=False).run)
    assert read(run) == [] and header(run) == artifact.REMOVED_SCHEMA.names


def write_removed(run: Folder, number: int, ids: list[str]) -> None:
    """The reasons of one unit, as Clean writes them."""
    rows = [
        {"image_id": image_id, "source": image_id, "row": i, "reason": "poison_classifier", "family": 1}
        for i, image_id in enumerate(ids)
    ]
    table = pa.Table.from_pylist(rows, schema=artifact.REMOVED_SCHEMA)
    (run / artifact.CLEAN).write_table(artifact.unit_reasons(number), table)
