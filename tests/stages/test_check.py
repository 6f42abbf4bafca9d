"""Before any work every shard is opened: those that cannot be used are named together, or skipped and
counted."""

from __future__ import annotations

import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from poisoncam_ray import artifact
from poisoncam_ray.commands import defend as defend_command
from poisoncam_ray.corpus import Problem, open_corpus
from poisoncam_ray.corpus.protocol import OTHER_SCHEMA, UNREADABLE_SHARD
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import MANIFEST, STARTED, Folder, Ledger, Manifest
from poisoncam_ray.program import run_program
from poisoncam_ray.progress import Progress
from poisoncam_ray.runner import Runner
from poisoncam_ray.settings import load_config
from poisoncam_ray.stage import Run
from poisoncam_ray.stages.check import SHARDS_SHOWN, find_problems, refuse_problems
from poisoncam_ray.stages.index import Index
from tests.ledger import samples
from tests.tars import image, tar_bytes

ROWS = 100
SMALL = ["encoder.image_size=16", "corpus.rows_per_slice=30"]
SKIP = "corpus.skip_unreadable=true"


def write_shard(path: Path, column: str = "image", rows: int = ROWS) -> None:
    pq.write_table(
        pa.table({column: [image(i) for i in range(rows)], "n": range(rows)}), path, row_group_size=25
    )


@pytest.fixture
def drifted(tmp_path) -> Path:
    """Six shards of 100 images; in three of them the image column has another name."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(6):
        write_shard(corpus / f"{i}.parquet", "img" if i in (1, 3, 4) else "image")
    return corpus


@pytest.fixture
def signals():
    """A program takes them over; they are given back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def index(corpus: Path, run: Path, *overrides: str) -> Manifest:
    config = load_config(overrides=[*SMALL, *overrides])
    Runner(str(corpus), str(run), config, [Index()]).run(Progress())
    return Manifest.read(Folder(str(run)) / artifact.INDEX)


def dead_rows(run: Path) -> list[dict]:
    dead = Folder(str(run)) / artifact.DEAD_ROWS
    return [row for name in dead.parts() for row in dead.read_table(name).to_pylist()]


def test_drifted_shards_are_refused_together_with_exit_code_2(
    ray_cluster, signals, drifted, tmp_path, monkeypatch, capsys
):
    arguments = ["--input", str(drifted), "--output", str(tmp_path / "run"), *SMALL]
    monkeypatch.setattr("sys.argv", ["poisoncam", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_program(defend_command.defend)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in said and said.count("\n") == 1
    assert "3 of the 6 files of " in said
    for i in range(6):
        reason = f"{i}.parquet: the image column image is missing; the columns are img, n"
        assert (reason in said) == (i in (1, 3, 4))
    assert "set corpus.image_column" in said and SKIP in said
    index_folder = tmp_path / "run" / artifact.INDEX
    assert not (index_folder / artifact.SLICES).exists() and not list(index_folder.glob("part-*"))


def test_a_run_that_skips_them_counts_their_rows_as_dead(ray_cluster, drifted, tmp_path):
    manifest = index(drifted, tmp_path / "run", SKIP)
    assert manifest.ledger == Ledger(600, 300, dead=300)
    assert manifest.facts["shards_skipped"] == 3 and "3 shards skipped" in manifest.facts["summary"]
    dead = dead_rows(tmp_path / "run")
    ids = {f"{i}.parquet#{row}" for i in (1, 3, 4) for row in range(ROWS)}
    assert {row["image_id"] for row in dead} == ids and len(dead) == len(ids)
    assert {row["error"] for row in dead} == {OTHER_SCHEMA}
    assert {row["message"] for row in dead} == {"the image column image is missing; the columns are img, n"}


def test_a_refused_folder_takes_the_option_and_repaired_shards(ray_cluster, drifted, tmp_path):
    for run in ("skips", "repaired"):
        with pytest.raises(UserError, match="3 of the 6 files"):
            index(drifted, tmp_path / run)
        assert not (tmp_path / run / artifact.INDEX / STARTED).exists()
    assert index(drifted, tmp_path / "skips", SKIP).ledger == Ledger(600, 300, dead=300)
    # The option decides what comes out: a finished run cannot change it.
    with pytest.raises(UserError, match=r"corpus\.skip_unreadable: True then, False now"):
        index(drifted, tmp_path / "skips")
    for i in (1, 3, 4):
        write_shard(drifted / f"{i}.parquet")
    assert index(drifted, tmp_path / "repaired").ledger == Ledger(600, 600)


def test_a_minority_that_comes_first_does_not_choose_the_column_unseen(ray_cluster, drifted, tmp_path):
    write_shard(drifted / "0.parquet", "img")
    write_shard(drifted / "1.parquet")
    write_shard(drifted / "3.parquet")
    with pytest.raises(UserError, match=r"4 of the 6 files .* image column img is missing"):
        index(drifted, tmp_path / "run")
    with pytest.raises(UserError, match="more than --max-dead-fraction"):
        index(drifted, tmp_path / "skips", SKIP)


def test_a_mixture_is_listed_together_and_an_unreadable_shard_is_one_row(ray_cluster, drifted, tmp_path):
    (drifted / "4.parquet").write_bytes((drifted / "4.parquet").read_bytes()[:-9])
    (drifted / "5.parquet").write_bytes(b"")
    pq.write_table(pa.table({"image": ["a", "b"]}), drifted / "6\x1b[31m\n.parquet")
    with pytest.raises(UserError) as caught:
        index(drifted, tmp_path / "run")
    said = str(caught.value)
    assert "5 of the 7 files" in said and said.isprintable()
    for words in (
        "1.parquet: the image column image is missing",
        "3.parquet: the image column image is missing",
        "4.parquet: ",
        "5.parquet: ",
        "6?[31m .parquet: the image column image is not binary or struct{bytes, path}",
    ):
        assert words in said
    manifest = index(drifted, tmp_path / "skips", SKIP, "corpus.max_dead_fraction=1")
    assert manifest.ledger == Ledger(404, 200, dead=204)
    kinds = {(row["source"], row["error"]) for row in dead_rows(tmp_path / "skips")}
    assert {source for source, kind in kinds if kind == UNREADABLE_SHARD} == {"4.parquet", "5.parquet"}


def test_tars_are_checked_too(ray_cluster, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(3):
        (corpus / f"{i}.tar").write_bytes(tar_bytes(samples(100 * i)))
    (corpus / "text.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(UserError, match=r"1 of the 4 files .*: text\.tar: no tar header at byte 0\. Repair"):
        index(corpus, tmp_path / "run")
    manifest = index(corpus, tmp_path / "run", SKIP)
    assert manifest.ledger == Ledger(37, 36, dead=1)
    assert manifest.facts["shards_skipped"] == 1 and "1 shard skipped" in manifest.facts["summary"]


def test_a_finished_index_is_not_checked_again_and_an_unfinished_one_is(
    ray_cluster, drifted, tmp_path, monkeypatch
):
    for i in (1, 3, 4):
        write_shard(drifted / f"{i}.parquet")
    checked = []

    def count(run, sources):
        checked.append(len(sources))
        return []

    monkeypatch.setattr("poisoncam_ray.stages.index.find_problems", count)
    for _ in range(2):
        index(drifted, tmp_path / "run")
    assert checked == [6]
    (tmp_path / "run" / artifact.INDEX / MANIFEST).unlink()
    index(drifted, tmp_path / "run")
    assert checked == [6, 6]


def test_a_shard_that_changed_since_it_was_listed_is_no_problem_but_a_mistake(tmp_path):
    write_shard(tmp_path / "a.parquet")
    corpus = open_corpus(str(tmp_path))
    (source,) = corpus.sources()
    write_shard(tmp_path / "a.parquet", rows=ROWS + 1)
    with pytest.raises(UserError, match="changed since it was indexed"):
        corpus.check(source)


def test_the_refusal_names_so_many_and_counts_the_others():
    problems = [Problem(f"{i:03d}.tar", None, UNREADABLE_SHARD, "no tar header") for i in range(23)]
    refuse_problems("in", [], 30)
    with pytest.raises(UserError) as caught:
        refuse_problems("in", problems, 1030)
    said = str(caught.value)
    assert said.count("no tar header") == SHARDS_SHOWN and "; and 3 more. Repair them, or" in said
    assert said.startswith("23 of the 1,030 files of in cannot be used: 000.tar: no tar header; 001.tar: ")
    assert "image_column" not in said


def test_the_files_of_a_folder_are_not_opened(tmp_path, monkeypatch):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.png").write_bytes(b"no image")
    monkeypatch.setattr("poisoncam_ray.stages.check.ray.remote", None)
    corpus = open_corpus(str(tmp_path / "corpus"))
    out = Folder(str(tmp_path / "run"))
    assert find_problems(Run(load_config(), corpus, out, out, Progress()), corpus.sources()) == []
