"""The results table: which runs there are, what is done again and what is not. The stages are not run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from poisoncam_ray import artifact
from poisoncam_ray.config import SEEDS, Config, Encoder, Resources, Search
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, Ledger, Manifest
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.progress import Progress
from poisoncam_ray.research.evaluate import corpora, never_poisoned, peer, table
from poisoncam_ray.research.evaluate.controls import control_encoder
from poisoncam_ray.research.evaluate.corpora import Attacked
from poisoncam_ray.research.evaluate.joined import Truth
from poisoncam_ray.research.evaluate.retrain import MODELS
from poisoncam_ray.research.evaluate.table import Setting, make_table
from poisoncam_ray.stages.own_encoder import own_encoder
from tests.fake_evidence import write_evidence
from tests.small import draw_small


class FakeStored:
    """In place of a run's candidates: a file that says whose they are."""

    def __init__(self, run: Folder, truth: Any, name: str) -> None:
        self.told = f"{name} {truth and truth.n_images}"

    def write(self, folder: Folder, name: str) -> None:
        folder.write_bytes(name, self.told.encode())


FIGURES = {"acc_clean": 0.4, "acc_patched": 0.3, "asr": 0.2}


class FakeRunner:
    runs: list[tuple[str, str | None, int]]

    def __init__(self, input_uri: str, output_uri: str, config: Config, stages: list) -> None:
        self.out, self.stages = Folder(output_uri), stages
        self.runs.append((output_uri.rpartition("/")[2], config.encoder.checkpoint, len(stages)))

    def run(self, progress: Progress) -> list:
        for stage in self.stages:
            Manifest({"version": 7}, {}, "0", Ledger(100, 97, 3)).write(self.out / stage.name)
        write_evidence(self.out, verdict=artifact.NO_EVIDENCE, best_group=0.03, threshold=0.04)
        return []


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Nothing is trained, attacked or measured: {run, retrain} of every evaluation is noted."""
    noted: list[tuple[str, bool]] = []

    def evaluate(run: str, truth: str, strategies=(), validation=None, beside=None, progress=None) -> dict:
        if validation is None:
            return {"recall": 1.0}
        # The labels are always the clean corpus', whether more models are trained or not.
        assert beside.clean_uri.endswith("/clean")
        noted.append((run, beside.retrain))
        models = ("threat", "cleaned", "never_poisoned") if beside.retrain else ("threat",)
        return {"recall": 1.0, "probes": {model: {"knn": FIGURES} for model in models}}

    def poison(self: Attacked, clean: Folder, out: Folder) -> dict:
        out.write_bytes(table.TRUTH, b"")
        return {"poison_rate": 0.01}

    monkeypatch.setattr(FakeRunner, "runs", [], raising=False)
    monkeypatch.setattr(table, "Runner", FakeRunner)
    monkeypatch.setattr(table, "evaluate_run", evaluate)
    monkeypatch.setattr(never_poisoned, "Runner", FakeRunner)
    monkeypatch.setattr(never_poisoned, "probe", lambda *_, **__: {"knn": FIGURES})
    monkeypatch.setattr(table, "take_classes", lambda *_: None)
    monkeypatch.setattr(table, "candidates_of", FakeStored)
    monkeypatch.setattr(table, "read_truth", lambda uri: Truth(uri.count("/seed-"), None, None))
    monkeypatch.setattr(Attacked, "poison", poison)
    monkeypatch.setattr(Attacked, "patch", lambda *_: None)
    return noted


def setting(**changes: Any) -> Setting:
    return Setting("train", "val", ("a/red.png", "a/blue.png"), (1, 2), tuple(range(20)), **changes)


def test_every_combination_is_run_once_and_not_again(evaluated: list, tmp_path: Path) -> None:
    asked = setting(shares=(1.0, 0.5), kinds=("patch", "frequency"))
    rows = make_table(asked, Config(), Folder(str(tmp_path)), Progress())
    # A kind that makes its own trigger has one run for all triggers.
    assert len(rows) == len(evaluated) == len({run for run, _ in evaluated}) == 2 * 2 * (2 + 1)
    assert {(row["kind"], row["share"], row["trigger"]) for row in rows if row["seed"] == 1} == {
        (kind, share, trigger)
        for share in (1.0, 0.5)
        for kind, trigger in (("patch", "red"), ("patch", "blue"), ("frequency", "own"))
    }
    assert all(row["asr_never_poisoned"] == 0.2 and row["poison_rate"] == 0.01 for row in rows)
    assert make_table(asked, Config(), Folder(str(tmp_path)), Progress()) == rows
    assert len(evaluated) == len(rows)


def test_a_table_that_is_asked_for_more_keeps_what_it_has(evaluated: list, tmp_path: Path) -> None:
    out = Folder(str(tmp_path))
    make_table(setting(), Config(), out, Progress())
    evaluated.clear()
    rows = make_table(setting(retrain=True), Config(), out, Progress())
    assert all(retrain for _, retrain in evaluated) and len(evaluated) == len(rows) == 4
    assert rows[0]["cleaned knn asr"] == 0.2 and rows[0]["cleaned less never_poisoned knn asr"] == 0
    evaluated.clear()
    assert make_table(setting(), Config(), out, Progress()) == rows and not evaluated


def test_rows_are_compared_with_the_mean_of_several_models_without_poison(
    evaluated: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_folder(run: str, *_: Any, linear: bool) -> dict:
        further = "-again/" in run
        return {"knn": FIGURES | {"acc_clean": 0.7 if further else 0.4, "asr": None if further else 0.2}}

    monkeypatch.setattr(never_poisoned, "probe", by_folder)
    out = Folder(str(tmp_path))
    rows = make_table(setting(), Config(), out, Progress())
    assert rows[0]["acc_clean_never_poisoned"] == 0.4 and rows[0]["trainings_never_poisoned"] == 1
    FakeRunner.runs.clear()
    rows = make_table(setting(trainings=3), Config(), out, Progress())
    assert all(row["acc_clean_never_poisoned"] == pytest.approx(0.6) for row in rows)
    assert all(row["trainings_never_poisoned"] == 3 and row["asr_never_poisoned"] is None for row in rows)
    assert [name for name, *_ in FakeRunner.runs].count("trained") == 2 * 2
    # The model that evaluate_run has probed is not probed again, and the gap is to the mean.
    rows = make_table(setting(retrain=True), Config(), out, Progress())
    assert rows[0]["never_poisoned knn acc_clean"] == pytest.approx(0.6)
    assert rows[0]["cleaned less never_poisoned knn acc_clean"] == pytest.approx(0.4 - 0.6)


def test_further_trainings_differ_from_every_other_seeds() -> None:
    seeds = {never_poisoned.further_seed(seed, index) for seed in range(1000) for index in range(5)}
    assert len(seeds) == 5000
    Config(seed=never_poisoned.further_seed(2**23 - 1, 1))


def test_results_tell_of_every_run_in_the_folder(evaluated: list, tmp_path: Path) -> None:
    out = Folder(str(tmp_path))
    make_table(setting(clean=True), Config(), out, Progress())
    make_table(replace(setting(kinds=("large",)), seeds=(1,)), Config(), out, Progress())
    lines = (tmp_path / "results.csv").read_text().splitlines()
    told = [tuple(line.split(",")[:2]) for line in lines[1:]]
    clean, patch, large = (("1", "clean"), ("2", "clean")), (("1", "patch"), ("2", "patch")), ("1", "large")
    assert told == [*clean, patch[0], patch[0], patch[1], patch[1], large, large]


def test_the_peer_searches_on_the_same_encoder(
    evaluated: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "PEER", {"strategy": "sliding"})
    rows = make_table(setting(peer=True), Config(), Folder(str(tmp_path)), Progress())
    assert all(row["peer recall"] == 1.0 for row in rows)
    peers = [checkpoint for name, checkpoint, _ in FakeRunner.runs if name == "peer"]
    own = f"/run/{artifact.ENCODER}/{artifact.WEIGHTS}"
    assert len(set(peers)) == 4 and all(path.endswith(own) for path in peers)
    monkeypatch.setattr(peer, "PEER", {"strategy": "nonsense"})
    with pytest.raises(UserError, match="The peer's search does not fit"):
        make_table(setting(peer=True), Config(), Folder(str(tmp_path)), Progress())


def test_the_same_defence_runs_with_encoders_that_hold_no_backdoor(evaluated: list, tmp_path: Path) -> None:
    out, config = Folder(str(tmp_path)), Config(encoder=Encoder(backbone="resnet_tiny", image_size=32))
    asked = replace(setting(encoders=("never-poisoned",)), seeds=(1,))
    make_table(asked, config, out, Progress())
    rows = make_table(replace(asked, encoders=("untrained",)), config, out, Progress())
    for control in ("untrained", "never-poisoned"):
        # One that was asked for before stays in the row.
        assert {row[f"{control} encoder: recall"] for row in rows} == {1.0}
        assert {row[f"{control} encoder: verdict"] for row in rows} == {"no_evidence"}
        used = {checkpoint for name, checkpoint, _ in FakeRunner.runs if name == f"with-{control}"}
        assert (
            len(used) == 1 and (control in (found := used.pop() or "")) and found.endswith(artifact.WEIGHTS)
        )
    text = (tmp_path / "results.md").read_text()
    assert "with an untrained encoder: verdict" in text and "encoder never poisoned: verdict" in text


def test_untrained_weights_are_those_that_training_begins_with(tmp_path: Path) -> None:
    config = Config(encoder=Encoder(backbone="resnet_tiny", image_size=32), seed=5)
    folder = Folder(str(tmp_path))
    file = control_encoder("untrained", config, Folder("none"), folder)
    torch.manual_seed(5)
    first = build_encoder("resnet_tiny", 32)
    weights = own_encoder(file, config).state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in first.state_dict().items())
    assert control_encoder("untrained", config.model_copy(update={"seed": 6}), Folder("none"), folder) == file
    assert torch.equal(own_encoder(file, config).state_dict()[name := next(iter(weights))], weights[name])


def test_runs_that_left_the_same_corpus_share_its_model(
    evaluated: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of seed 2's runs one loses a clean image as well.
    left = {"seed-1/red": [1], "seed-1/blue": [1], "seed-2/red": [1], "seed-2/blue": [1, 2]}
    trained: list[str] = []
    given: list[str | None] = []

    def of(run: str) -> str:
        return next(name for name in left if all(part in run for part in name.split("/")))

    def run(self: FakeRunner, progress: Progress) -> list:
        if self.out.uri.endswith("/run"):
            rows = pa.table({"row": left[of(self.out.uri)]})
            (self.out / artifact.CLEAN_ROWS).write_table("part-00000.parquet", rows)
            Manifest({"version": 7}, {}, "0", Ledger(100, 97, 3)).write(self.out / artifact.SEARCH)
            write_evidence(self.out, best_group=None, threshold=None)
        return []

    def evaluate(run: str, truth: str, strategies=(), validation=None, beside=None, progress=None) -> dict:
        given.append(beside.cleaned_uri and of(beside.cleaned_uri))
        if not beside.cleaned_uri:
            trained.append(of(run))
            Manifest({}, {}, "0").write(Folder(run) / MODELS / "cleaned" / artifact.ENCODER)
        return {"probes": {model: {"knn": FIGURES} for model in ("threat", "cleaned", "never_poisoned")}}

    monkeypatch.setattr(FakeRunner, "run", run)
    monkeypatch.setattr(table, "evaluate_run", evaluate)
    rows = make_table(setting(retrain=True), Config(), Folder(str(tmp_path)), Progress())
    assert trained == ["seed-1/red", "seed-2/red", "seed-2/blue"]
    assert given == [None, "seed-1/red", None, None]
    assert [len({row["cleaned_corpus"] for row in rows if row["seed"] == seed}) for seed in (1, 2)] == [1, 2]
    # One that was killed when it had trained its own goes on with that, though another is finished by now.
    (tmp_path / "seed-1/patch/share-1/red/row.json").unlink()
    given.clear()
    make_table(setting(retrain=True), Config(), Folder(str(tmp_path)), Progress())
    assert given == [None]


def test_a_clean_corpus_has_a_row_of_its_own(evaluated: list, tmp_path: Path) -> None:
    rows = make_table(setting(clean=True), Config(), Folder(str(tmp_path)), Progress())
    clean = [row for row in rows if row["kind"] == "clean"]
    assert len(clean) == 2 and len(rows) == 6
    assert (clean[0]["n_removed"], clean[0]["removed_share"]) == (3, 0.03)
    assert (clean[0]["verdict"], clean[0]["best_group_in_thresholds"]) == ("no_evidence", 0.75)
    assert {row["search_version"] for row in rows} == {7}
    every = len(table.defence())
    assert {stages for name, _, stages in FakeRunner.runs if name == "never-poisoned"} == {every}


def test_every_run_has_a_file_of_its_candidates(evaluated: list, tmp_path: Path, capsys: Any) -> None:
    out, stored = Folder(str(tmp_path)), tmp_path / "candidates"
    asked = replace(setting(clean=True, encoders=("never-poisoned",)), seeds=(1,))
    make_table(asked, Config(), out, Progress())
    runs = [f"seed-1_patch_share-1_{trigger}" for trigger in ("red", "blue")]
    names = [
        "seed-1_never-poisoned",
        *(f"{run}{control}" for run in runs for control in ("", "_with-never-poisoned")),
    ]
    files = {path.name: path for path in stored.iterdir()}
    assert sorted(files) == sorted(f"{name}.parquet" for name in names)
    # Beside a clean corpus stands that nothing is poisoned: the number of its images.
    assert files["seed-1_never-poisoned.parquet"].read_text() == "seed-1_never-poisoned 100"
    assert files[f"{runs[0]}.parquet"].read_text() == f"{runs[0]} 1"
    size = sum(path.stat().st_size for path in files.values())
    assert f"candidates of 5 runs: {size / 1e6:.1f} MB in {stored}" in capsys.readouterr().out.replace(
        "\n", ""
    )


def test_finished_runs_of_an_interrupted_table_get_the_files_that_they_lack(
    evaluated: list, tmp_path: Path
) -> None:
    out, stored = Folder(str(tmp_path)), tmp_path / "candidates"
    asked = replace(setting(), seeds=(1,))
    make_table(asked, Config(), out, Progress())
    red, blue = (stored / f"seed-1_patch_share-1_{trigger}.parquet" for trigger in ("red", "blue"))
    told = blue.read_text()
    blue.unlink()
    red.write_text("kept")
    evaluated.clear()
    make_table(asked, Config(), out, Progress())
    assert not evaluated and (blue.read_text(), red.read_text()) == (told, "kept")
    # A run that is measured anew is stored anew, with its new figures.
    make_table(replace(asked, retrain=True), Config(), out, Progress())
    assert red.read_text() != "kept"
    # Of a run whose folder was deleted the file stays.
    (out / "seed-1/patch/share-1/red/run").delete()
    (out / "seed-1/patch/share-1/blue/poisoned").delete()
    blue.unlink()
    make_table(replace(asked, retrain=True), Config(), out, Progress())
    assert red.exists() and not blue.exists()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"n_classes": 21}, "21 classes cannot be drawn from 20 labels"),
        ({"kinds": ("patch", "blendet")}, "no attack blendet"),
        ({"shares": (0.5, 5.0)}, "share is 5.0"),
        ({"encoders": ("fresh",)}, "no control fresh: use untrained or never-poisoned"),
        ({"trainings": 0}, "--trainings is 0"),
        ({"seeds": (1, SEEDS)}, "The seed is 8388608: use one from 0 to 8,388,607"),
        ({"seeds": (-1,)}, "The seed is -1"),
    ],
)
def test_what_cannot_be_is_told_before_any_training(asked: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        replace(setting(), **asked)


def test_without_triggers_only_clean_corpora_are_defended(evaluated: list, tmp_path: Path) -> None:
    asked = Setting("train", "val", (), (1, 2, 3), tuple(range(20)), clean=True)
    rows = make_table(asked, Config(), Folder(str(tmp_path)), Progress())
    assert [(row["seed"], row["kind"]) for row in rows] == [(1, "clean"), (2, "clean"), (3, "clean")]
    assert evaluated == []
    with pytest.raises(UserError, match="There is nothing to run"):
        Setting("train", "val", (), (1,), tuple(range(20)))


def test_triggers_that_would_share_a_folder_are_refused() -> None:
    with pytest.raises(UserError, match="share a file name"):
        Setting("train", "val", ("a/red.png", "b/red.jpg"), (1,), tuple(range(20)))


def test_rows_of_other_settings_are_not_passed_off_as_these(evaluated: list, tmp_path: Path) -> None:
    out = Folder(str(tmp_path))
    rows = make_table(setting(), Config(), out, Progress())
    more = setting(shares=(1.0, 0.5), clean=True)
    assert len(make_table(more, Config(resources=Resources(actors=3)), out, Progress())) > len(rows)
    for asked, config, told in (
        (setting(width=0.2), Config(), r"width: 0\.3125 then, 0\.2 now"),
        (replace(setting(), train_uri="other"), Config(), "train: '.*/train' then, '.*/other' now"),
        (setting(per_class=20), Config(), "per_class: 300 then, 20 now"),
        (setting(), Config(search=Search(scales=(0.5, 1.0))), r"config\.search\.scales: \[1\.0\] then"),
    ):
        with pytest.raises(UserError, match=told):
            make_table(asked, config, out, Progress())


def attacked(kind: str, trigger: str = "generated:7") -> Attacked:
    return Attacked(kind, 0.5, trigger, "1", 0.3, 4, n_classes=5)


def test_an_attack_is_made_once_and_its_trigger_goes_on_the_validation_set(tmp_path: Path) -> None:
    clean = Folder(str(draw_small(tmp_path / "clean", n_images=40)))
    poisoned, patched = Folder(str(tmp_path / "poisoned")), Folder(str(tmp_path / "patched"))
    # What a killed table left half done is begun anew.
    poisoned.write_bytes("corpus/half", b"x")
    made = attacked("patch").poison(clean, poisoned)
    assert made["n_poisoned"] == 5 and not poisoned.exists("corpus/half")
    assert attacked("patch").poison(clean, poisoned) == made
    attacked("patch").patch(clean, poisoned, patched)
    there = patched.read_json("attack.json")
    assert there["n_poisoned"] == 40 and there["triggers"] == made["triggers"]
    assert attacked("patch").name == "patch/share-0.5/generated-7"


def test_each_kind_is_asked_for_in_its_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, tuple, dict]] = []

    def note(_: str, out: str, *arguments: Any, **named: Any) -> None:
        calls.append((out.rpartition("/")[2], arguments, named))
        Folder(out).write_json("attack.json", {"trigger_files": ["triggers/crop.png"]})

    monkeypatch.setattr(corpora, "poison_corpus", note)
    monkeypatch.setattr(corpora, "patch_corpus", note)
    clean, base = Folder("clean"), Folder(str(tmp_path))
    for kind, trigger in (("untargeted", "t.png"), ("large", "t.png"), ("natural", "")):
        poisoned = base / kind / "poisoned"
        attacked(kind, trigger).poison(clean, poisoned)
        attacked(kind, trigger).patch(clean, poisoned, base / kind / "patched")
    untargeted, large, natural = calls[:2], calls[2:4], calls[4:]
    # As many images as half of one class of five.
    assert untargeted[0][1:] == (
        ([], ["t.png"]),
        {"share": 0.1, "seed": 4, "kind": "untargeted", "width": 0.3},
    )
    assert untargeted[1][1] == ("", "t.png")
    assert large[0][1] == (["1"], ["t.png"]) and "width" not in large[0][2] | large[1][2]
    assert natural[0][1] == (["1"], [])
    assert natural[1][1] == ("1", f"{base.uri}/natural/poisoned/triggers/crop.png")


def test_a_corpus_without_labels_is_told_in_a_sentence(tmp_path: Path) -> None:
    corpora.check_labelled(str(draw_small(tmp_path / "labelled", n_images=40)))
    (tmp_path / "plain").mkdir()
    pq.write_table(pa.table({"label": ["cat"]}), tmp_path / "plain" / "a.parquet")
    for name, told in (("plain", "no column label of integers"), ("nowhere", "holds no Parquet files")):
        with pytest.raises(UserError, match=told):
            corpora.check_labelled(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("a/seed-1/patch/x", "a/seed-1"),
        ("seed-12/x", "seed-12"),
        ("seed-1", "seed-1"),
        ("run-0", "run-0"),
        ("x/seed-a/y", "x/seed-a/y"),
    ],
)
def test_runs_of_one_seed_are_known_by_its_folder(name: str, seed: str) -> None:
    assert corpora.seed_of(name) == seed


def test_the_strength_of_the_trigger_reaches_the_attack_and_must_fit_its_kind() -> None:
    strength = {"options": (("alpha", 0.4),), "region": (0.7, 1.0)}
    settings = Attacked("blended", 0.5, "a/red.png", "1", 0.3, 4, 5, **strength)._settings()
    assert settings == {"kind": "blended", "width": 0.3, "options": {"alpha": 0.4}, "region": (0.7, 1.0)}
    with pytest.raises(UserError, match="patch has no option alpha"):
        Setting("train", "val", ("a/red.png",), (1,), tuple(range(20)), options=(("alpha", 0.4),))
