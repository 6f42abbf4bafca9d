"""Clean: a row is kept or removed by its score, and a removed row has its reason beside it."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from poisoncam_ray import artifact
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.corpus.slices import slice_table, slices_of
from poisoncam_ray.errors import LedgerError
from poisoncam_ray.folder import Folder, Ledger, Manifest, part_name
from poisoncam_ray.progress import Progress
from poisoncam_ray.stage import Run
from poisoncam_ray.stages.clean import Clean, write_unit
from tests.fake_evidence import flag_images, replace_column
from tests.fake_run import BOXED, make_fake_run
from tests.ledger import defend
from tests.tars import image


@pytest.fixture
def flagged_run(tmp_path) -> tuple[Folder, dict[int, int]]:
    """A run that removed images of two trigger families, and how many of each."""
    fake = make_fake_run(tmp_path)
    return Folder(fake.run), flag_images(Folder(fake.run), 2)


def of_parts(folder: Folder) -> list[dict]:
    return [row for name in folder.parts() for row in folder.read_table(name).to_pylist()]


def write_units(run: Folder) -> None:
    corpus = open_corpus(run.read_json(artifact.RUN)["input"])
    units = corpus.units(slices_of((run / artifact.INDEX).read_table(artifact.SLICES)))
    for number, unit in enumerate(units):
        write_unit(number, unit, corpus, run)


def test_a_removed_row_has_the_family_score_and_box_of_its_verdict(flagged_run):
    run, removed = flagged_run
    write_units(run)
    clean = run / artifact.CLEAN
    tables = [clean.read_table(name) for name in clean.names() if name.endswith(".parquet")]
    assert all(table.schema.equals(artifact.REMOVED_SCHEMA) for table in tables)
    rows = {row["image_id"]: row for table in tables for row in table.to_pylist()}
    scores = {row["image_id"]: row for row in of_parts(run / artifact.SCORES)}
    assert set(rows) == {i for i, score in scores.items() if score["fate"] == artifact.REMOVE}
    for image_id, row in rows.items():
        assert f"{row['source']}#{row['row']}" == image_id and row["reason"] == "poison_classifier"
        assert all(row[name] == scores[image_id][name] for name in ("family", "p_poison", *SIDES))
        assert [row[side] for side in SIDES] == list(BOXED)
    families = sorted(row["family"] for row in rows.values())
    assert families == [1] * removed[1] + [2] * removed[2]


def test_clean_and_removed_hold_nothing_but_the_corpus_s_own_layout(flagged_run, tmp_path):
    run, removed = flagged_run
    write_units(run)
    corpus = open_corpus(run.read_json(artifact.RUN)["input"])
    counts = []
    for name in (artifact.CLEAN_ROWS, artifact.REMOVED_ROWS):
        written = open_corpus((run / name).uri)
        files = {
            p.relative_to(Path(run.uri) / name) for p in (Path(run.uri) / name).rglob("*") if p.is_file()
        }
        assert {str(path) for path in files} <= {source.path for source in corpus.sources()}
        counts.append(sum(s.stop - s.start for s in written.slices()))
    units = [(run / artifact.CLEAN).read_json(artifact.unit_name(i)) for i in range(len(corpus.units()))]
    assert counts == [sum(u["kept"] for u in units), sum(u["removed"] for u in units)]
    assert counts[1] == sum(removed.values()) and sum(u["dead"] for u in units) == 1


def test_scores_of_other_rows_are_refused(flagged_run):
    run, _ = flagged_run
    ids = (run / artifact.SCORES).read_table(part_name(1))["image_id"].to_pylist()
    replace_column(run / artifact.SCORES, part_name(1), "image_id", pa.array(ids[::-1]))
    with pytest.raises(LedgerError, match="the scores of slice 1 are not those of its indexed rows"):
        write_units(run)


def test_what_belongs_to_no_row_is_written_when_all_units_are(ray_cluster, tmp_path):
    """As the list of the shards, without which `datasets` opens no saved dataset."""
    datasets.disable_progress_bars()
    cells = [{"bytes": image(i, 16), "path": None} for i in range(20)]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": cells}, features=features).save_to_disk(
        tmp_path / "in", num_shards=2
    )
    run, corpus = Folder(str(tmp_path / "run")), open_corpus(str(tmp_path / "in"), rows_per_slice=6)
    ends = defend(corpus, run)
    for place in (artifact.CLEAN_ROWS, artifact.REMOVED_ROWS, artifact.CLEAN):
        (run / place).delete()
    index = run / artifact.INDEX
    index.write_table(artifact.SLICES, slice_table(corpus.slices()))
    Manifest({}, {}, "0", Ledger(20, 20)).write(index)
    outcome = Clean().run(Run(Config(), corpus, run, run / artifact.CLEAN, Progress()))
    assert outcome.ledger == Ledger(20, len(ends.kept), len(ends.removed))
    for place, ids in ((artifact.CLEAN_ROWS, ends.kept), (artifact.REMOVED_ROWS, ends.removed)):
        found = datasets.load_from_disk((run / place).path).cast_column("image", datasets.Image(decode=False))
        assert [row["image"]["bytes"] for row in found] == corpus.fetch(ids)
