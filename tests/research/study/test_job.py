"""The study as its tasks in a row: resumption, refusal, and the same answer however it was cut up."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from poisoncam_ray import artifact
from poisoncam_ray.config import Resources
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, Manifest
from poisoncam_ray.research.study import job
from poisoncam_ray.research.study.runs import StudyRun, found, given
from tests.fake_run import make_fake_run
from tests.research.study.small_grid import small_grid

GRID = small_grid(strategies=["interval", "random_window"], masks=[4], windows=[0.3], k_factors=[1],
                  images=3, base={"k_factor": 1, "masks": 4, "cell": 0.25, "window": 0.3})  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """One finished run in the layout of the results table, and one that has not got to its features."""
    root = tmp_path_factory.mktemp("table")
    here = root / "seed-1" / "trigger_10"
    make_fake_run(here)
    (here / "poisoned").mkdir()
    (here / "truth.parquet").rename(here / "poisoned" / "truth.parquet")
    shutil.copytree(here / "poisoned", root / "seed-1" / "trigger_11" / "poisoned")
    return root


def work(runs: list[StudyRun], out: Folder, most: int = 99) -> int:
    """At most so many tasks, here; how many were left to do."""
    resources = Resources(threads_per_actor=1)
    by_name = {one.name: one for one in runs}
    for one in job.unprepared(runs, out):
        job._prepare(one, GRID, out, resources)
    todo = job.unmeasured(runs, GRID, out)
    for i, one in list(todo.items())[:most]:
        job._measure(i, one, by_name[one.run], GRID, out, resources)
    return len(todo)


def test_a_killed_study_goes_on_where_it_was_with_the_same_rows(table, tmp_path):
    runs = found(str(table))
    assert [one.name for one in runs] == ["seed-1/trigger_10"]
    whole, cut = Folder(str(tmp_path / "whole")), Folder(str(tmp_path / "cut"))
    for out in (whole, cut):
        job.begin(runs, GRID, out)
    assert work(runs, whole) == 2
    assert work(runs, cut, most=1) == 2
    written = (tmp_path / "cut" / "parts" / "part-000000.parquet").stat().st_mtime_ns
    job.begin(runs, GRID, cut)
    assert work(runs, cut) == 1, "only what is missing is left"
    assert work(runs, cut) == 0 and not job.unprepared(runs, cut)
    assert (tmp_path / "cut" / "parts" / "part-000000.parquet").stat().st_mtime_ns == written
    assert job.rows(cut).drop_columns(["seconds"]).equals(job.rows(whole).drop_columns(["seconds"]))


def test_another_grid_or_other_runs_are_refused_with_the_difference(table, tmp_path):
    runs, out = found(str(table)), Folder(str(tmp_path / "out"))
    job.begin(runs, GRID, out)
    with pytest.raises(UserError, match=r"grid\.images: 3 then, 4 now"):
        job.begin(runs, GRID.model_copy(update={"images": 4}), out)
    features = Path(runs[0].run_uri) / artifact.FEATURES / "_manifest.json"
    kept = features.read_text()
    features.write_text(kept.replace("0" * 64, "1" * 64))
    try:
        with pytest.raises(UserError, match=r"runs.seed-1/trigger_10.features: '0+' then, '1+' now"):
            job.begin(runs, GRID, out)
    finally:
        features.write_text(kept)


def test_a_folder_of_something_else_is_refused(table, tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds 'holiday.jpg'"):
        job.begin(found(str(table)), GRID, Folder(str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_pairs_are_checked_before_any_work(table, tmp_path):
    here = table / "seed-1" / "trigger_10"
    run, truth = str(here / "run"), str(here / "poisoned" / "truth.parquet")
    out = Folder(str(tmp_path / "out"))
    with pytest.raises(UserError, match="one --truth for each --run"):
        given([run, run], [truth])
    with pytest.raises(UserError, match="no truth at"):
        job.begin(given([run], [truth + "x"]), GRID, out)
    with pytest.raises(UserError, match="is not a run folder"):
        job.begin(given([str(here)], [truth]), GRID, out)
    rows = pq.read_table(truth)
    without = rows.set_column(rows.column_names.index("x1"), "x1", rows["x0"])
    pq.write_table(without, tmp_path / "without.parquet")
    with pytest.raises(UserError, match="no patch on any image: leave that run out"):
        job.begin(given([run], [str(tmp_path / "without.parquet")]), GRID, out)
    half = Path(shutil.copytree(run, tmp_path / "half"))
    (half / artifact.FEATURES / "_manifest.json").unlink()
    assert Manifest.read(Folder(str(half)) / artifact.ENCODER)
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    settings = json.loads((moved / artifact.RUN).read_text())
    (moved / artifact.RUN).write_text(json.dumps(settings | {"input": str(tmp_path / "gone")}))
    with pytest.raises(UserError, match=r"gone does not exist"):
        job.begin(given([str(moved)], [truth]), GRID, out)
    with pytest.raises(UserError, match=f"no finished {artifact.FEATURES}"):
        job.begin(given([str(half)], [truth]), GRID, out)
    assert not out.names()


def test_a_table_without_runs_is_told(table, tmp_path):
    with pytest.raises(UserError, match="lies no finished run"):
        found(str(tmp_path))
    assert found(str(table), only="trigger_1") == found(str(table))
    with pytest.raises(UserError, match="under a path with 'trigger_11'"):
        found(str(table), only="trigger_11")
