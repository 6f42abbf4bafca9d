"""The runner's four duties, with stages of a few lines: skip, refuse, check the ledger, commit last."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from poisoncam_ray import artifact
from poisoncam_ray import runner as module
from poisoncam_ray.config import Config
from poisoncam_ray.corpus.slices import source_table
from poisoncam_ray.defence import stages as defence
from poisoncam_ray.errors import LedgerError, UserError
from poisoncam_ray.facts import Facts
from poisoncam_ray.folder import MANIFEST, STARTED, Folder, Ledger, Manifest
from poisoncam_ray.progress import Progress
from poisoncam_ray.runner import Runner
from poisoncam_ray.settings import load_config
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.pretrain import Pretrain


@dataclass(frozen=True)
class Said(Facts):
    text: str = ""

    @property
    def summary(self) -> str:
        return self.text


class First(Stage):
    """Writes down the sources, as every stage that reads the corpus itself does."""

    name = "work/1_first"
    title = "First"
    version = 1
    inputs = ()
    sections = ("corpus",)

    def run(self, run: Run) -> Outcome:
        assert run.out.names() == [STARTED]
        run.out.write_table(artifact.SOURCES, source_table(run.corpus.sources()))
        rows = sum(piece.stop - piece.start for piece in run.corpus.slices())
        return Outcome(Said("three rows"), Ledger(rows, rows - 1, dead=1))


class Second(Stage):
    """Loses `lost` rows without a word, and fails `failures` times."""

    name = "work/2_second"
    title = "Second"
    version = 1
    inputs = ("work/1_first",)
    sections = ("search",)
    writes = ("rows",)
    ran: ClassVar[int] = 0

    def __init__(self, lost: int = 0, failures: int = 0) -> None:
        self.lost, self.failures = lost, failures

    def run(self, run: Run) -> Outcome:
        Second.ran += 1
        read = run.manifest("work/1_first").ledger
        assert read is not None
        run.out.write_json("half.json", run.config.search.window)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the machine went away")
        (run.folder / "rows").write_json("kept.json", read.rows_out)
        return Outcome(Said(), Ledger(read.rows_out, read.rows_out - self.lost))


class Computes(Second):
    """Runs a network."""

    def depends_on(self, config: Config) -> dict[str, Any]:
        return {"resources.precision": config.resources.precision}


def write_shard(path: Path, rows: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sink = io.BytesIO()
    Image.new("RGB", (4, 4)).save(sink, "PNG")
    pq.write_table(pa.table({"image": pa.array([sink.getvalue()] * rows, pa.binary())}), path)


@pytest.fixture
def corpus(tmp_path) -> Path:
    write_shard(tmp_path / "corpus" / "a.parquet", 3)
    write_shard(tmp_path / "corpus" / "b.parquet", 1)
    return tmp_path / "corpus"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "run"


def run(corpus: Path, out: Path, *overrides: str, stages: list[Stage] | None = None):
    """What was done, and what the user read."""
    console = Console(record=True, file=io.StringIO(), soft_wrap=True)
    work = Runner(str(corpus), str(out), load_config(overrides=overrides), stages or [First(), Second()])
    return work.run(Progress(console)), console.export_text()


def refusal(corpus: Path, out: Path, *overrides: str, stages: list[Stage] | None = None) -> str:
    """The sentence, told before any stage ran and without touching the folder."""
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(UserError) as caught:
        Runner(str(corpus), str(out), load_config(overrides=overrides), stages or [First(), Second()])
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_stages_run_in_order_and_are_committed_with_their_ledgers(corpus, out):
    done, said = run(corpus, out)
    assert [(stage.title, stage.reused) for stage in done] == [("First", False), ("Second", False)]
    first, second = (Manifest.read(Folder(str(out / name))) for name in ("work/1_first", "work/2_second"))
    assert first.ledger == Ledger(4, 3, dead=1) and second.ledger == Ledger(3, 3)
    assert first.identity["config"].keys() == {"corpus"} and "sources" in first.identity
    assert second.inputs.keys() == {"work/1_first"} and "sources" not in second.identity
    assert "three rows" in said


@pytest.mark.parametrize(
    ("key", "digest"), [("encoder.checkpoint", "checkpoint_sha256"), ("pretrain.init", "init_sha256")]
)
def test_a_file_that_the_settings_name_is_known_by_its_bytes(corpus, out, tmp_path, key, digest):
    """The same address, another checkpoint: what the first made is not passed off as the second's."""
    mine = tmp_path / "mine.safetensors"

    class Third(Second):
        name = "work/3_third"

        def depends_on(self, config):
            return Pretrain().depends_on(config)

    stages, setting = [First(), Third()], f"{key}={mine}"
    assert "mine.safetensors" in refusal(corpus, out, setting, stages=stages)
    mine.write_bytes(b"one")
    run(corpus, out, setting, stages=stages)
    done, _ = run(corpus, out, setting, stages=stages)
    assert all(stage.reused for stage in done)
    mine.write_bytes(b"two")
    assert f"work/3_third.{digest}" in refusal(corpus, out, setting, stages=stages)


def test_what_is_committed_is_skipped(corpus, out):
    run(corpus, out)
    ran = Second.ran
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("work/*/*")}
    runner = Runner(str(corpus), str(out), load_config(), [First(), Second()])
    assert runner.pending() == []
    done, said = run(corpus, out)
    assert all(stage.reused for stage in done) and Second.ran == ran
    assert {path: path.stat().st_mtime_ns for path in out.glob("work/*/*")} == stamps
    assert said.count("done before, nothing to do") == 2


def test_a_stage_that_failed_is_run_again_over_what_it_left(corpus, out):
    stages = [First(), Second(failures=1)]
    with pytest.raises(RuntimeError):
        run(corpus, out, stages=stages)
    second = out / "work/2_second"
    assert (
        (second / "half.json").exists() and (second / STARTED).exists() and not (second / MANIFEST).exists()
    )
    assert [s.name for s in Runner(str(corpus), str(out), load_config(), stages).pending()] == [
        "work/2_second"
    ]
    done, _ = run(corpus, out, stages=stages)
    assert [stage.reused for stage in done] == [True, False]


@pytest.mark.parametrize("lost", [1, -1])
def test_a_row_lost_or_invented_fails_the_stage_and_commits_nothing(corpus, out, lost):
    with pytest.raises(LedgerError, match=r"Second.*rows_in': 3") as caught:
        run(corpus, out, stages=[First(), Second(lost)])
    assert f"'rows_out': {3 - lost}" in str(caught.value)
    assert not (out / "work/2_second" / MANIFEST).exists()
    assert not run(corpus, out)[0][1].reused


def test_the_manifest_is_written_last(corpus, out, monkeypatch):
    order, write = [], Folder.write_bytes

    def note(self, name, data):
        order.append(f"{Path(self.uri).relative_to(out)}/{name}")
        write(self, name, data)

    monkeypatch.setattr(Folder, "write_bytes", note)
    run(corpus, out)
    for stage in ("work/1_first", "work/2_second"):
        own = [name for name in order if name.startswith(stage)]
        assert own[0] == f"{stage}/{STARTED}" and own[-1] == f"{stage}/{MANIFEST}" and len(own) == 3
    assert order.index(f"work/1_first/{MANIFEST}") < order.index(f"work/2_second/{STARTED}")


def test_no_stage_starts_before_the_ones_it_reads_are_committed(corpus, out):
    with pytest.raises(LedgerError, match="work/1_first is not committed"):
        run(corpus, out, stages=[Second()])
    assert not (out / "work/2_second").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["search.window=0.3"], "search.window: 0.35 then, 0.3 now"),
        (["corpus.rows_per_slice=7"], "corpus.rows_per_slice: 1024 then, 7 now"),
        (["corpus.image_column=image"], "corpus.image_column: None then, 'image' now"),
        (
            ["search.masks=16", "search.cell=0.2"],
            "search.cell: 0.125 then, 0.2 now; search.masks: 128 then, 16 now",
        ),
    ],
)
def test_other_settings_are_refused_and_named(corpus, out, overrides, words):
    run(corpus, out)
    said = refusal(corpus, out, *overrides)
    assert words in said and "seed" not in said and "another output folder" in said


def test_another_seed_is_named_once(corpus, out):
    run(corpus, out)
    said = refusal(corpus, out, "seed=9")
    assert said.count("seed: 0 then, 9 now") == 1 and "work/1_first" not in said


def test_settings_that_no_stage_read_and_resources_change_nothing(corpus, out):
    run(corpus, out)
    done, _ = run(corpus, out, "classify.top_k=3", "resources.actors=7", "corpus.max_dead_fraction=1")
    assert all(stage.reused for stage in done)


def test_another_version_of_a_stage_is_refused(corpus, out):
    class Newer(Second):
        version = 2

    run(corpus, out)
    assert "work/2_second.version: 1 then, 2 now" in refusal(corpus, out, stages=[First(), Newer()])


def test_a_stage_that_only_started_is_held_to_its_settings_too(corpus, out):
    with pytest.raises(RuntimeError):
        run(corpus, out, stages=[First(), Second(failures=1)])
    assert "search.window: 0.35 then, 0.3 now" in refusal(corpus, out, "search.window=0.3")


def test_input_that_is_gone_new_or_changed_is_named(corpus, out):
    run(corpus, out)
    for path in corpus.iterdir():
        path.rename(path.with_suffix(".kept"))
    write_shard(corpus / "b.parquet", 2)
    write_shard(corpus / "c" / "d.parquet", 1)
    size = (corpus / "b.kept").stat().st_size, (corpus / "b.parquet").stat().st_size
    said = refusal(corpus, out)
    assert f"input b.parquet: changed ({size[0]} bytes then, {size[1]} now)" in said
    assert "input a.parquet: gone" in said and "input c/d.parquet: new" in said
    for path in corpus.glob("*.kept"):
        path.rename(path.with_suffix(".parquet"))
    assert refusal(corpus, out).endswith("go back: input c/d.parquet: new.")
    (corpus / "c" / "d.parquet").unlink()
    assert all(stage.reused for stage in run(corpus, out)[0])


def test_a_file_written_again_with_the_same_size_counts_as_changed(corpus, out):
    run(corpus, out)
    write_shard(corpus / "b.parquet", 1)
    assert "input b.parquet: changed" in refusal(corpus, out)


def test_a_copy_of_the_input_elsewhere_is_the_same_input_when_its_stamps_are(corpus, out):
    run(corpus, out)
    corpus.rename(corpus.with_name("moved"))
    done, _ = run(corpus.with_name("moved"), out)
    assert all(stage.reused for stage in done)


def test_a_folder_that_is_not_ours_is_refused(corpus, out):
    out.mkdir()
    (out / ".DS_Store").touch()
    assert Runner(str(corpus), str(out), load_config(), [First()]).pending()
    (out / "thesis.tex").write_text("years of work")
    assert "'thesis.tex' and no run.json" in refusal(corpus, out)
    assert (out / "thesis.tex").read_text() == "years of work"


def test_a_run_inside_the_run_folder_is_left_alone(corpus, out):
    """jobs/evaluate.py --retrain trains its models there."""
    run(corpus, out)
    inside, _ = run(corpus, out / "models" / "cleaned")
    assert not any(stage.reused for stage in inside)
    again, _ = run(corpus, out)
    assert all(stage.reused for stage in again)
    assert (out / "models" / "cleaned" / "work/2_second" / MANIFEST).exists()


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "only started"])
def test_an_artifact_made_anew_makes_what_came_from_it_refused(corpus, out, committed):
    run(corpus, out)
    folder = Folder(str(out / "work/1_first"))
    manifest = Manifest.read(folder)
    replace(manifest, seconds=manifest.seconds + 1).write(folder)
    if not committed:
        (out / "work/2_second" / MANIFEST).unlink()
    with pytest.raises(UserError) as caught:
        run(corpus, out)
    assert "work/2_second was made from another work/1_first than lies there now" in str(caught.value)
    assert "--redo second" in str(caught.value)


def test_a_stage_may_read_committed_artifacts_only(corpus, out):
    config = load_config()
    runner = Runner(str(corpus), str(out), config, [First()])
    seen = Run(config, runner.corpus, runner.folder, runner.folder / "x", Progress())
    with pytest.raises(LedgerError, match="work/1_first is not committed"):
        seen.manifest("work/1_first")


def test_every_stage_of_the_defence_reads_only_stages_before_it():
    stages = defence()
    for i, stage in enumerate(stages):
        assert set(stage.inputs) <= {earlier.name for earlier in stages[:i]}
        assert set(stage.sections) <= set(load_config().model_dump()) - {"resources", "seed"}
    assert len({stage.name for stage in stages}) == len(stages)


def test_a_stage_is_done_again_with_all_after_it(corpus, out):
    run(corpus, out)
    ran, first = Second.ran, (out / "work/1_first" / MANIFEST).stat().st_mtime_ns
    (out / "work/2_second" / "stale.json").write_text("{}")
    (out / "rows" / "stale.json").write_text("{}")
    runner = Runner(str(corpus), str(out), load_config(), [First(), Second()], redo="Second")
    assert [stage.title for stage in runner.pending()] == ["Second"]
    done = runner.run(Progress(Console(file=io.StringIO())))
    assert [stage.reused for stage in done] == [True, False] and Second.ran == ran + 1
    assert (out / "work/1_first" / MANIFEST).stat().st_mtime_ns == first
    # Nothing of the earlier attempt is left.
    assert not (out / "work/2_second" / "stale.json").exists() and not (out / "rows" / "stale.json").exists()


def test_a_stage_may_be_done_again_with_other_settings(corpus, out):
    """Only what the stages before it were made with must stay."""
    run(corpus, out)
    changed = load_config(overrides=["search.window=0.3"])
    Runner(str(corpus), str(out), changed, [First(), Second()], redo="second").run(
        Progress(Console(file=io.StringIO()))
    )
    assert Manifest.read(Folder(str(out / "work/2_second"))).identity["config"]["search"]["window"] == 0.3
    other = load_config(overrides=["corpus.rows_per_slice=7"])
    with pytest.raises(UserError, match="rows_per_slice"):
        Runner(str(corpus), str(out), other, [First(), Second()], redo="second")


def test_a_redo_that_is_killed_leaves_a_whole_shorter_run(corpus, out, monkeypatch):
    """The last stage is forgotten first, so every state in between is a run that goes on as always."""
    run(corpus, out)
    forgotten, delete = [], Folder.delete

    def fail_at_the_first(self, name=""):
        if self.uri.endswith("1_first"):
            raise KeyboardInterrupt
        forgotten.append(self.uri)
        delete(self, name)

    monkeypatch.setattr(Folder, "delete", fail_at_the_first)
    again = Runner(str(corpus), str(out), load_config(), [First(), Second()], redo="first")
    with pytest.raises(KeyboardInterrupt):
        again.run(Progress(Console(file=io.StringIO())))
    monkeypatch.undo()
    assert forgotten and (out / "work/1_first" / MANIFEST).exists()
    assert not (out / "work/2_second").exists()
    assert [stage.reused for stage in run(corpus, out)[0]] == [True, False]


def test_a_stage_to_do_again_must_exist(corpus, out):
    with pytest.raises(UserError, match="no stage 'third' to do again: there are first, second"):
        Runner(str(corpus), str(out), load_config(), [First(), Second()], redo="third")


def test_a_run_folder_of_an_earlier_version_is_refused_in_one_sentence(corpus, out):
    (out / "00_index").mkdir(parents=True)
    (out / "run.json").write_text(json.dumps({"input": str(corpus), "config": {}}))
    said = refusal(corpus, out)
    assert "was made by another version of poisoncam_ray (format 1, this version has format 2)" in said
    assert said.count(".") == 1 + str(out).count(".") and "use a new output folder" in said


def test_the_run_says_what_made_it(corpus, out):
    run(corpus, out)
    about = json.loads((out / "run.json").read_text())
    assert about["format"] == artifact.FORMAT and about["input"] == str(corpus)
    decided = about["config"]["resources"].pop("precision")
    given = load_config().model_dump(mode="json")
    assert decided in ("float32", "bfloat16") and given["resources"].pop("precision") == "auto"
    assert about["config"] == given
    assert {"poisoncam_ray", "python", "ray", "torch", "pyarrow"} <= set(about["versions"])


def test_a_folder_with_only_a_lease_is_one_that_was_killed_at_once(corpus, out):
    (out / "work" / "lease").mkdir(parents=True)
    assert Runner(str(corpus), str(out), load_config(), [First()]).pending()
    (out / "work" / "mine").mkdir()
    assert "'work' and no run.json" in refusal(corpus, out)


def test_what_an_artifact_was_made_from_is_forgotten_last(corpus, out, monkeypatch):
    """Or a part that a cut deletion left would be taken for one made with the settings of the next try."""
    run(corpus, out)
    order, delete = [], Folder.delete

    def note(self, name=""):
        order.append(f"{Path(self.uri).relative_to(out)}/{name}")
        delete(self, name)

    monkeypatch.setattr(Folder, "delete", note)
    again = Runner(str(corpus), str(out), load_config(), [First(), Second()], redo="second")
    again.run(Progress(Console(file=io.StringIO())))
    second = [name for name in order if name.startswith("work/2_second")]
    assert second == [f"work/2_second/{MANIFEST}", "work/2_second/half.json", "work/2_second/"]
    assert order.index("rows/") < order.index("work/2_second/half.json")


def test_a_run_keeps_the_precision_that_it_began_with(corpus, out, monkeypatch):
    """Another machine goes on with it, and an explicit other one is refused."""

    def machine(precision: str) -> None:
        monkeypatch.setattr(module, "_by_hardware", lambda gpu: precision)

    def recorded() -> str:
        return json.loads((out / artifact.RUN).read_text())["config"]["resources"]["precision"]

    machine("bfloat16")
    with pytest.raises(RuntimeError, match="went away"):
        run(corpus, out, stages=[First(), Computes(failures=1)])
    assert recorded() == "bfloat16"
    machine("float32")
    said = refusal(corpus, out, "resources.precision=float32", stages=[First(), Computes()])
    assert "resources.precision: 'bfloat16' then, 'float32' now" in said
    done, _ = run(corpus, out, stages=[First(), Computes()])
    assert done[1].manifest.identity["resources.precision"] == recorded() == "bfloat16"
    assert Runner.of_run(str(out), [First(), Computes()]).config.resources.precision == "bfloat16"


def test_a_driver_obeys_what_another_has_decided_meanwhile(corpus, out, monkeypatch):
    stages = [First(), Computes()]
    monkeypatch.setattr(module, "_by_hardware", lambda gpu: "float32")
    late = Runner(str(corpus), str(out), load_config(), stages)
    monkeypatch.setattr(module, "_by_hardware", lambda gpu: "bfloat16")
    run(corpus, out, stages=stages)
    assert late.config.resources.precision == "float32"
    done = late.run(Progress(Console(file=io.StringIO())))
    assert [one.reused for one in done] == [True, True]


def test_the_precision_is_decided_by_the_resources_of_the_actors(corpus, out, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "_by_hardware", lambda gpu: asked.append(gpu) or "float32")
    run(corpus, out, "resources.gpus_per_actor=0.5")
    run(corpus, out.parent / "other", "resources.precision=bfloat16")
    assert set(asked) == {True}
