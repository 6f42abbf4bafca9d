"""What died is tried again: only that, only what lives again is done again, and a kill changes nothing.

Rows die here as in storage that rots: bytes of a shard or file turn to zeros, and come back from a backup
that keeps sizes and times, so that the input is still the one that was indexed.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from poisoncam_ray.pipeline import Run, Runner, defence
from rich.console import Console

from poisoncam_ray import artifact, cli, retry
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import MANIFEST, Folder, Ledger, Manifest
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.progress import Progress
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.index import Index
from tests.small import SETTINGS, defend, draw_small, rows_of, stamps

N, PER_SLICE = 160, 20
ROTTEN, EMPTY = (3, 17, 45), (30, 100)
"""Rows of the corpus: what the backup has, in slices 0 and 2 of 8; what never was, in slices 1 and 5."""
KEPT = (*retry.KEPT, "03_clusters/centroids")


@dataclass
class Case:
    """A finished run over a corpus with dead rows, and the corpus's files from before they rotted."""

    corpus: Path
    run: Path
    backup: Path
    settings: list[str]

    def restore(self) -> None:
        for path in (p for p in self.backup.rglob("*") if p.is_file()):
            rotten = self.corpus / path.relative_to(self.backup)
            times = (rotten.stat().st_atime_ns, rotten.stat().st_mtime_ns)
            rotten.write_bytes(path.read_bytes())
            os.utime(rotten, ns=times)

    def again(self, *overrides: str, retry_dead: bool = True, stages=None) -> str:
        """What the same command says."""
        console = Console(record=True, file=io.StringIO(), soft_wrap=True)
        config = load_config(overrides=[*self.settings, *overrides])
        runner = Runner(str(self.corpus), str(self.run), config, stages or defence())
        runner.run(Progress(console), retry_dead)
        return console.export_text()

    def ledger(self, stage: str = artifact.CLEAN_ROWS) -> Ledger:
        return Manifest.read(Folder(str(self.run / stage))).ledger

    def dead(self) -> list[str]:
        return sorted(row["image_id"] for row in rows_of(self.run / artifact.DEAD_ROWS))

    def verdicts(self) -> dict[str, tuple[float, str]]:
        """To three digits: in a batch with others the last bits of a sum differ."""
        return {
            row["image_id"]: (round(row["p_poison"], 3), row["verdict"])
            for row in rows_of(self.run / artifact.SCORES)
        }

    def stamps(self) -> dict[str, tuple[str, int]]:
        """Without what every run writes."""
        return {k: v for k, v in stamps(self.run).items() if k != "run.json" and not k.startswith("_lease/")}


def images_of(corpus: Path) -> dict[str, bytes]:
    """The stored bytes by image id."""
    if shards := sorted(corpus.glob("*.parquet")):
        return {
            f"{shard.name}#{i}": cell["bytes"]
            for shard in shards
            for i, cell in enumerate(pq.read_table(shard)["image"].to_pylist())
        }
    return {path.name: path.read_bytes() for path in sorted(corpus.iterdir())}


def draw_shards(corpus: Path) -> None:
    """Uncompressed, so that bytes of one image are bytes of the file."""
    draw_small(corpus, N)
    first = 0
    for shard in sorted(corpus.iterdir()):
        table = pq.read_table(shard)
        cells = table["image"].to_pylist()
        for row in EMPTY:
            if first <= row < first + len(cells):
                cells[row - first]["bytes"] = b""
        first += len(cells)
        images = pa.array(cells, table.schema.field("image").type)
        index = table.schema.get_field_index("image")
        table = table.set_column(index, table.schema.field(index), images)
        pq.write_table(table, shard, compression="none", use_dictionary=False)


def draw_files(corpus: Path) -> None:
    shards = corpus.with_name("shards")
    draw_shards(shards)
    corpus.mkdir()
    for i, data in enumerate(images_of(shards).values()):
        (corpus / f"{i:04d}.png").write_bytes(data)


def rot(corpus: Path) -> None:
    """Zeros for the head of some images, in place."""
    ids = list(images_of(corpus).items())
    for image_id, data in (ids[row] for row in ROTTEN):
        path = corpus / image_id.partition("#")[0]
        file = path.read_bytes()
        assert file.count(data) == 1
        path.write_bytes(file.replace(data, bytes(64) + data[64:]))


@pytest.fixture(scope="module", params=[draw_shards, draw_files], ids=["parquet", "folder"])
def finished(request, ray_cluster, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp("dead_letters")
    corpus, backup, checkpoint = folder / "corpus", folder / "backup", folder / "own.safetensors"
    request.param(corpus)
    shutil.copytree(corpus, backup)
    rot(corpus)
    settings = [*SETTINGS, f"corpus.rows_per_slice={PER_SLICE}", f"encoder.checkpoint={checkpoint}"]
    made = load_config(overrides=settings).encoder
    torch.manual_seed(0)
    encoder = build_encoder(made.backbone, made.image_size, made.patch_size)
    safetensors.torch.save_file(encoder.state_dict(), checkpoint)
    case = Case(corpus, folder / "run", backup, settings)
    case.again(retry_dead=False)
    assert case.ledger().dead == len(case.dead()) == len(ROTTEN) + len(EMPTY)
    return case


@pytest.fixture
def case(finished, tmp_path) -> Case:
    """A copy to spoil, with the times of the files."""
    for name in ("corpus", "run"):
        shutil.copytree(getattr(finished, name), tmp_path / name)
    return Case(tmp_path / "corpus", tmp_path / "run", finished.backup, finished.settings)


def ids_of(case: Case, rows: tuple[int, ...]) -> list[str]:
    ids = list(images_of(case.corpus))
    return [ids[row] for row in rows]


def check_revived(case: Case, before: dict[str, tuple[float, str]]) -> None:
    """The end that every way must reach: the ledger exact, all else as it was."""
    ledger = case.ledger()
    assert ledger.dead == len(EMPTY) and case.dead() == sorted(ids_of(case, EMPTY))
    assert ledger.rows_in == N == ledger.rows_out + ledger.removed + ledger.dead
    for stage in (artifact.FEATURES, artifact.CLUSTERS, artifact.SCORES):
        assert case.ledger(stage) == Ledger(N - len(EMPTY), N - len(EMPTY))
    now = case.verdicts()
    assert set(now) - set(before) == set(ids_of(case, ROTTEN))
    assert {image_id: now[image_id] for image_id in before} == before
    stored, removed = images_of(case.corpus), {k for k, (_, verdict) in now.items() if verdict == "remove"}
    clean = {**kept_of(case.run / artifact.CLEAN_ROWS), **kept_of(case.run / "removed")}
    assert sorted(clean.values()) == sorted(stored[image_id] for image_id in now)
    assert len(kept_of(case.run / "removed")) == len(removed) == ledger.removed
    assert not retry.under_way(Folder(str(case.run)))


def kept_of(folder: Path) -> dict[str, bytes]:
    if not folder.exists():
        return {}
    shards = [path for path in folder.glob("*.parquet") if "image" in pq.read_schema(path).names]
    rows = {
        (folder, shard, i): cell["bytes"]
        for shard in shards
        for i, cell in enumerate(pq.read_table(shard)["image"].to_pylist())
    }
    return rows | {(folder, path): path.read_bytes() for path in folder.glob("*.png")}


def test_rows_that_live_again_are_done_again_and_nothing_else_is(case):
    before, files = case.verdicts(), case.stamps()
    case.restore()
    said = case.again()
    assert f"{len(ROTTEN)} dead rows live again, 2 slices are done again" in said
    check_revived(case, before)
    now = case.stamps()
    written = {name for name in now if now[name] != files.get(name)} | (set(files) - set(now))
    corpora = ("07_clean/", "removed/")
    parts = {name for name in written if "part-" in name and not name.startswith(corpora)}
    stages = (artifact.INDEX, artifact.DEAD_ROWS, artifact.FEATURES, artifact.CLUSTERS, artifact.SCORES)
    assert parts == {f"{stage}/part-{i:06d}.parquet" for stage in stages for i in (0, 2)}
    models = {name for name in written if name.startswith(KEPT)}
    assert models == {f"{stage}/{MANIFEST}" for stage in retry.KEPT}
    assert "kept" in Manifest.read(Folder(str(case.run / artifact.SEARCH))).facts
    # The shard, or the files of slices, in which nothing lives again.
    untouched = "part-00001.parquet" if any(case.corpus.glob("*.parquet")) else "0021.png"
    assert f"07_clean/{untouched}" not in written
    # A second try finds nothing more, and changes nothing.
    assert f"all {len(EMPTY)} dead rows are still dead" in case.again()
    assert case.stamps() == now


def test_the_try_is_part_of_the_same_command_when_it_was_cut_off(case):
    """Cut off in each stage that is done again; with the option or without, the next run goes on."""

    class CutOffError(Exception):
        pass

    before = case.verdicts()
    case.restore()
    for turn, name in enumerate([retry.INDEX, *retry.PARTS, retry.CLEAN, retry.REPORT]):
        stages = defence()
        cut = next(stage for stage in stages if stage.name == name)

        def fail(run: Run) -> None:
            raise CutOffError

        cut.run = fail
        with pytest.raises(CutOffError):
            case.again(retry_dead=turn % 2 == 0, stages=stages)
        assert retry.under_way(Folder(str(case.run)))
        assert name in [stage.name for stage in Runner(
            str(case.corpus), str(case.run), load_config(overrides=case.settings), defence()
        ).pending()]  # fmt: skip
    case.again()
    check_revived(case, before)


def test_taking_back_may_be_cut_off_after_any_write_or_deletion(case, monkeypatch, tmp_path):
    def of(folder: Path) -> Run:
        config = load_config(overrides=case.settings)
        runner = Runner(str(case.corpus), str(folder), config, defence())
        return Run(config, runner.corpus, runner.folder, runner.folder / artifact.INDEX, Progress())

    def files(folder: Path) -> dict[str, str]:
        return {name: digest for name, (digest, _) in stamps(folder).items()}

    case.restore()
    retry.begin(of(case.run), defence())
    assert retry.under_way(Folder(str(case.run)))
    calm = tmp_path / "calm"
    shutil.copytree(case.run, calm)
    retry.take_back(of(calm))
    left, real = 0, {name: getattr(Folder, name) for name in ("delete", "write_bytes")}

    def counted(name: str):
        def call(self, *arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return real[name](self, *arguments)

        return call

    for name in real:
        monkeypatch.setattr(Folder, name, counted(name))
    # Threads delete parts side by side: one at a time here, so that the cut is where it is meant to be.
    monkeypatch.setattr(retry, "in_parallel", lambda function, items: [function(item) for item in items])
    for steps in range(100):
        run = tmp_path / f"cut-{steps}"
        shutil.copytree(case.run, run)
        left = steps
        try:
            retry.take_back(of(run))
        except KeyboardInterrupt:
            left = 1000
            retry.take_back(of(run))
            assert files(run) == files(calm)
        else:
            break
        shutil.rmtree(run)
    assert 15 < steps < 99


@pytest.mark.parametrize("finished", [draw_shards], indirect=True, ids=["parquet"])
def test_a_killed_retry_goes_on(case):
    before = case.verdicts()
    case.restore()
    command = ["--input", str(case.corpus), "--output", str(case.run), "--retry-dead", *case.settings]
    process = defend(*command, wait=False)
    while not (case.run / retry.JOURNAL).exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Ray's own processes notice the driver's death; until then they may finish the piece in hand.
    time.sleep(3)
    assert not (case.run / "report" / MANIFEST).exists() or (case.run / retry.JOURNAL).exists()
    last = defend(*command)
    assert last.returncode == 0, last.said
    check_revived(case, before)


def test_settings_and_input_must_be_those_of_the_run(case):
    case.restore()
    files = case.stamps()
    with pytest.raises(UserError, match=r"corpus\.max_pixels: 64000000 then, 70000000 now"):
        case.again("corpus.max_pixels=70000000")
    first = next(iter(sorted(case.corpus.iterdir())))
    os.utime(first)
    with pytest.raises(UserError, match=f"input {first.name}: changed"):
        case.again()
    assert case.stamps() == files


def test_between_index_and_the_end_a_run_must_be_finished_first(case):
    (case.run / artifact.CLEAN_ROWS / MANIFEST).unlink()
    with pytest.raises(UserError, match="without --retry-dead first"):
        case.again()
    assert case.dead() and not retry.under_way(Folder(str(case.run)))


def test_where_index_alone_has_begun_its_slices_with_dead_rows_are_indexed_again(case):
    for name in os.listdir(case.run):
        if name not in (artifact.INDEX, "dead", "run.json"):
            shutil.rmtree(case.run / name)
    before = {k: v for k, v in case.stamps().items() if "part-" in k}
    case.restore()
    said = case.again(stages=[Index()])
    assert "4 slices with dead rows are indexed again" in said
    assert case.ledger(artifact.INDEX) == Ledger(N, N - len(EMPTY), dead=len(EMPTY))
    assert case.dead() == sorted(ids_of(case, EMPTY))
    now = case.stamps()
    assert {k for k in before if k.startswith(artifact.INDEX) and now[k] == before[k]} == {
        f"00_index/part-{i:06d}.parquet" for i in (3, 4, 6, 7)
    }


def test_where_nothing_is_dead_there_is_nothing_to_try(case):
    case.restore()
    shutil.rmtree(case.run / "dead")
    files = case.stamps()
    assert "there are no dead rows to try again" in case.again()
    assert case.stamps() == files


def test_the_command_line_has_both_options(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "run_defence", lambda *arguments: seen.append(arguments))
    cli.defend(input="corpus", output="run", max_dead_fraction=0.25, retry_dead=True)
    cli.defend(input="corpus", output="run")
    assert [(config.corpus.max_dead_fraction, tried) for _, _, config, tried in seen] == [
        (0.25, True),
        (0.5, False),
    ]


def test_every_stage_is_a_model_or_done_again():
    names = {retry.INDEX, *retry.PARTS, *retry.KEPT, retry.CLEAN, retry.REPORT}
    assert {stage.name for stage in defence()} == names
