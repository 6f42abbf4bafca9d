"""A run folder is checked as it lies: whatever was changed in it is found, and named."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from poisoncam_ray import artifact, review
from poisoncam_ray.corpus import DEAD, KEPT, REMOVED, open_corpus
from poisoncam_ray.corpus.slices import slices_of
from poisoncam_ray.defence import applied_stages, stages
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import MANIFEST, Folder
from poisoncam_ray.review import RESTORE, Named
from poisoncam_ray.settings import load_config
from poisoncam_ray.verify import defect as kinds
from poisoncam_ray.verify import verify
from tests.reviewed import CONFIG, SETTINGS, finish, go, judged_run, tree
from tests.stages.test_keep_list import write_images, write_parquet, write_tars
from tests.tars import image, tar_bytes

LISTED = load_config(overrides=[*SETTINGS, "clean.copy_corpus=false"])
FORMATS = pytest.mark.parametrize("write", [write_parquet, write_tars, write_images])
# A kept and a flagged image of each corpus: every fourth and its neighbours are not flagged.
KEEP = {write_parquet: "train/a.parquet#0", write_tars: "a.tar#0", write_images: "cat/0.png"}
FLAG = {write_parquet: "train/a.parquet#1", write_tars: "a.tar#1", write_images: "cat/1.png"}


def finished(folder: Path, write: Callable[[Path], None], config=CONFIG, restored: str = "") -> Folder:
    corpus, run = str(folder / "in"), Folder(str(folder / "run"))
    write(Path(corpus))
    judged_run(corpus, run, config)
    go(corpus, run, config)
    if restored:
        review.append(run, RESTORE, Named(ids=frozenset([restored])), 1, "ann", "")
        go(corpus, run, config)
    finish(run)
    return run


def found(run: Folder, quick: bool = False) -> list[tuple[str, str]]:
    return [(defect.what, defect.where) for defect in verify(run, quick)]


def write_again(run: Folder, image_id: str, fate: int) -> None:
    """Write the rows of a unit again, with another fate for one image, and leave the run's records alone."""
    corpus = open_corpus(run.read_json(artifact.RUN)["input"], rows_per_slice=9)
    slices = slices_of((run / artifact.INDEX).read_table(artifact.SLICES))
    (unit,) = [
        unit
        for unit in corpus.units(slices)
        if image_id in [s.image_id(i) for s in unit for i in range(s.stop - s.start)]
    ]
    flagged = {i for rows in review.flagged(run).values() for i in rows}
    kept = {i for rows in review.Decisions(run).restored().values() for i in rows}
    dead = {
        i
        for name in (run / artifact.DEAD_ROWS).parts()
        for i in (run / artifact.DEAD_ROWS).read_table(name)["image_id"].to_pylist()
    }
    ids = [s.image_id(i) for s in unit for i in range(s.stop - s.start)]
    usual = [DEAD if i in dead else REMOVED if i in flagged - kept else KEPT for i in ids]
    fates = [fate if i == image_id else own for i, own in zip(ids, usual, strict=True)]
    places = ((run / artifact.CLEAN_ROWS).uri, (run / artifact.REMOVED_ROWS).uri)
    if not corpus.sharded:
        for place in places:
            (Path(place) / image_id).unlink(missing_ok=True)
    corpus.split(unit, np.array(fates), *places)


def change(run: Folder, image_id: str, how: str) -> None:
    """Change one image in `clean/`, or have it there twice."""
    path, _, row = image_id.partition("#")
    file = Path(run.uri) / artifact.CLEAN_ROWS / path
    if not row and how == "twice":
        copy = Path(run.uri) / artifact.REMOVED_ROWS / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    elif not row:
        file.write_bytes(image(77))
    elif path.endswith("tar"):
        with tarfile.open(file) as archive:
            members = [(m.name, archive.extractfile(m).read()) for m in archive.getmembers()]
        first = next(i for i, (name, _) in enumerate(members) if name.endswith("png"))
        if how == "twice":
            members.append(("again.png", members[first][1]))
        else:
            members[first] = (members[first][0], image(77))
        file.write_bytes(tar_bytes(members))
    else:
        table = pq.read_table(file)
        rows = table.to_pylist()
        rows = [rows[0], *rows] if how == "twice" else [rows[0] | {"image": image(77)}, *rows[1:]]
        pq.write_table(pa.Table.from_pylist(rows, table.schema), file)


@FORMATS
@pytest.mark.parametrize("config", [CONFIG, LISTED], ids=["copied", "listed"])
def test_a_run_as_it_was_made_has_no_defect(tmp_path, write, config):
    run = finished(tmp_path, write, config, restored=FLAG[write])
    assert found(run) == found(run, quick=True) == []


@FORMATS
def test_smaller_copies_change_no_output_and_are_checked(tmp_path, write):
    shrinking = load_config(overrides=[*SETTINGS, "corpus.shrink_to=32"])
    runs = []
    for name, config in (("a", CONFIG), ("b", shrinking)):
        (tmp_path / name).mkdir()
        runs.append(finished(tmp_path / name, write, config))
    outputs = artifact.CLEAN_ROWS, artifact.REMOVED_ROWS, artifact.DEAD_ROWS
    assert tree(runs[0], *outputs) == tree(runs[1], *outputs)
    run, part = runs[1], "part-000000.parquet"
    assert found(run) == found(run, quick=True) == []
    copies = run / artifact.INDEX / artifact.SHRUNK
    where, table = f"{artifact.INDEX}/{artifact.SHRUNK}/{part}", copies.read_table(part)
    copies.write_table(part, table[1:])
    assert found(run) == found(run, quick=True) == [(kinds.LISTED, where)]
    copies.delete(part)
    assert found(run) == [(kinds.UNREADABLE, where)] and "--redo index" in str(verify(run)[0])


@FORMATS
@pytest.mark.parametrize("plant", ["hash", "lost", "twice", "removed", "kept", "restored"])
def test_what_was_planted_is_found_by_name_and_nothing_else(tmp_path, write, plant):
    run = finished(tmp_path, write, restored=FLAG[write] if plant == "restored" else "")
    keep, flag = KEEP[write], FLAG[write]
    if plant in ("hash", "twice"):
        change(run, keep, plant)
        what = {"hash": kinds.HASH, "twice": kinds.TWICE}[plant]
        ((found_what, where),) = found(run)
        assert found_what == what and where.endswith(keep)
    else:
        planted = {
            "lost": (keep, DEAD, kinds.LOST),
            "removed": (keep, REMOVED, kinds.REMOVED),
            "kept": (flag, KEPT, kinds.KEPT),
            "restored": (flag, REMOVED, kinds.REMOVED),
        }
        image_id, fate, what = planted[plant]
        write_again(run, image_id, fate)
        assert found(run) == [(what, image_id)]
        if plant == "restored":
            assert "restored by ann" in str(verify(run)[0])
    # A count tells all but a changed image.
    assert bool(found(run, quick=True)) == (plant != "hash")


def test_a_family_that_was_removed_against_a_review_is_found_image_by_image(tmp_path):
    run = finished(tmp_path, write_parquet)
    images = {i for rows in review.flagged(run).values() for i, family in rows.items() if family == 2}
    review.append(run, review.REJECT, Named(2), len(images), "ann", "")
    wrong = [where for what, where in found(run) if what == kinds.REMOVED]
    assert set(wrong) == images and len(wrong) == len(images) > 5
    # The records say it, too: Clean was not made from this review.
    assert (kinds.INPUT, f"{artifact.CLEAN}/{MANIFEST}") in found(run, quick=True)


def test_a_whole_copy_that_differs_beside_its_images_is_checked_row_by_row(tmp_path):
    run = finished(tmp_path, write_parquet)
    file = Path(run.uri) / artifact.CLEAN_ROWS / "val/c.parquet"
    assert file.exists()
    file.write_bytes(file.read_bytes()[:-20])
    assert found(run) == [(kinds.UNREADABLE, "clean/val/c.parquet")]


def test_a_removed_row_without_a_copy_of_the_corpus(tmp_path):
    run = finished(tmp_path, write_parquet, LISTED)
    corpus = open_corpus(str(tmp_path / "in"))
    (unit,) = [unit for unit in corpus.units() if unit[0].source == "train/a.parquet"]
    fates = np.full(30, DEAD)
    flagged = [
        int(i.split("#")[1]) for rows in review.flagged(run).values() for i in rows if i.startswith("train/a")
    ]
    fates[[0, *flagged]] = REMOVED
    corpus.split(unit, fates, None, (run / artifact.REMOVED_ROWS).uri)
    assert found(run) == [(kinds.REMOVED, "train/a.parquet#0")]
    assert "no copy (its score says keep)" in str(verify(run)[0])


def write_nulls(folder: Path) -> None:
    """Rows without an image, as a download that failed leaves them."""
    folder.mkdir()
    images = [None if i % 4 == 3 else image(i) for i in range(12)]
    pq.write_table(pa.table({"image": pa.array(images, pa.binary()), "n": range(12)}), folder / "a.parquet")


def write_saved(folder: Path) -> None:
    import datasets

    rows = {"image": [image(i) for i in range(12)], "n": list(range(12))}
    features = datasets.Features({"image": datasets.Value("binary"), "n": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features).save_to_disk(str(folder), num_shards=2)


def write_img2dataset(folder: Path) -> None:
    write_tars(folder)
    for name, keys in (("a", [f"set/{i:04d}" for i in range(8)]), ("b", ["x", "y"])):
        pq.write_table(pa.table({"key": keys}), folder / f"{name}.parquet")
        (folder / f"{name}_stats.json").write_text("{}")


def write_captioned(folder: Path) -> None:
    write_images(folder)
    for path in list(folder.rglob("*.png")):
        path.with_suffix(".txt").write_text(path.name)
    lines = [json.dumps({"file_name": f"cat/{i}.png"}) for i in range(9)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("write", [write_nulls, write_saved, write_img2dataset, write_captioned])
def test_corpora_with_more_than_images_have_no_defect_and_give_the_same_back(tmp_path, write):
    run = finished(tmp_path, write)
    assert found(run) == found(run, quick=True) == []
    before = tree(run, artifact.CLEAN_ROWS, artifact.REMOVED_ROWS)
    flagged = frozenset(i for rows in review.flagged(run).values() for i in rows)
    for action in (RESTORE, review.UNDO):
        review.append(run, action, Named(ids=flagged), len(flagged), "ann", "")
        go(str(tmp_path / "in"), run)
        finish(run)
        assert found(run) == []
        changed = tree(run, artifact.CLEAN_ROWS, artifact.REMOVED_ROWS) != before
        assert changed == (action == RESTORE)


def test_a_row_without_an_image_is_missed(tmp_path):
    run = finished(tmp_path, write_nulls)
    file = Path(run.uri) / artifact.CLEAN_ROWS / "a.parquet"
    table = pq.read_table(file)
    pq.write_table(table.filter(pc.is_valid(table["image"])), file)
    assert {what for what, _ in found(run)} == {kinds.LOST}
    assert {where for _, where in found(run)} == {f"a.parquet#{i}" for i in (3, 7, 11)}


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_records_that_do_not_agree_are_named(tmp_path):
    run = finished(tmp_path, write_parquet)
    clean, scores = f"{artifact.CLEAN}/{MANIFEST}", f"{artifact.SCORES}/{MANIFEST}"
    marker, removed = f"{artifact.CLEAN}/{artifact.unit_name(0)}", f"{artifact.PAGE}/{artifact.REMOVED_CSV}"
    dead, verdict = f"{artifact.DEAD_ROWS}/part-000001.parquet", f"{artifact.PAGE}/{artifact.VERDICT_FILE}"

    def after(name: str, spoil: Callable[[Path], object]) -> list[tuple[str, str]]:
        """What is found when one file is spoilt; it is mended again."""
        path = Path(run.uri) / name
        before = path.read_bytes()
        spoil(path)
        now = found(run, quick=True)
        path.write_bytes(before)
        return now

    ledger = {"rows_in": 38, "rows_out": 1, "removed": 1, "dead": 1}
    assert (kinds.LEDGER, clean) in after(clean, lambda path: edit(path, ledger=ledger))
    assert after(scores, lambda path: edit(path, seconds=7.0)) == [(kinds.INPUT, clean)]
    assert after(clean, Path.unlink) == [(kinds.UNFINISHED, artifact.CLEAN)]
    assert after(marker, lambda path: edit(path, kept=99)) == [(kinds.MARKER, marker)]
    assert after(marker, Path.unlink) == [(kinds.MARKER, marker)]
    assert (kinds.COUNT, "dead/") in after(dead, Path.unlink)
    assert after(verdict, lambda path: edit(path, verdict="x")) == [(kinds.LISTED, f"{verdict} verdict")]
    shorter = after(removed, lambda path: path.write_text("".join(path.open().readlines()[:-1])))
    assert shorter == [(kinds.LISTED, removed)]
    assert found(run) == []
    (Path(run.uri) / "clean/train/stray.parquet").write_bytes(b"")
    assert found(run) == [(kinds.FOREIGN, "clean/train/stray.parquet")]


def test_a_run_that_applied_an_earlier_one_has_fewer_stages(tmp_path):
    run = finished(tmp_path, write_parquet)
    shorter = applied_stages(run)
    searched = [stage.name for stage in stages() if stage.name not in {one.name for one in shorter}]
    for name in searched:
        run.delete(name)
    assert [what for what, _ in found(run)] == [kinds.UNFINISHED] * len(searched)
    edit(Path(run.uri) / artifact.RUN, stages=[[stage.name, stage.title] for stage in shorter])
    assert found(run) == []


def test_what_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        verify(Folder(str(tmp_path)))


def test_the_input_may_be_gone(tmp_path):
    run = finished(tmp_path, write_parquet)
    shutil.rmtree(tmp_path / "in")
    assert found(run) == []
    change(run, KEEP[write_parquet], "hash")
    assert [what for what, _ in found(run)] == [kinds.HASH]
