"""Which models are trained and probed, from what, and into which folders; the stages are not run."""

from pathlib import Path
from typing import Any

import pytest

from poisoncam_ray import artifact
from poisoncam_ray.config import Config, Encoder
from poisoncam_ray.errors import StageFailedError, UserError
from poisoncam_ray.folder import Folder, Manifest
from poisoncam_ray.progress import Progress
from poisoncam_ray.research.evaluate import OtherModels, Validation, probe_models, retrain
from poisoncam_ray.research.evaluate.retrain import MODELS

VALIDATION = Validation("validation", "patched", "3")


class FakeRunner:
    """Notes what it is asked to run, and commits it with nothing inside."""

    asked: list["FakeRunner"]

    def __init__(self, input_uri: str, output_uri: str, config: Config, stages: list) -> None:
        self.input, self.output, self.config = input_uri, Folder(output_uri), config
        self.stages = [stage.name for stage in stages]
        self.asked.append(self)

    def pending(self) -> list:
        return self.stages

    def run(self, progress: Progress) -> None:
        for name in self.stages:
            Manifest({}, {}, "0").write(self.output / name)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> type[FakeRunner]:
    monkeypatch.setattr(FakeRunner, "asked", [], raising=False)
    monkeypatch.setattr(retrain, "Runner", FakeRunner)
    monkeypatch.setattr(retrain, "probe", lambda run, corpus, validation: {"knn": {"of": run}})
    return FakeRunner


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    """A finished defence whose threat model was the user's own."""
    run = Folder(str(tmp_path / "run"))
    config = Config(seed=5, encoder=Encoder(checkpoint="mine.safetensors"))
    run.write_json(
        artifact.RUN, {"format": artifact.FORMAT, "input": "poisoned", "config": config.model_dump()}
    )
    for name in (artifact.ENCODER, artifact.CLEAN):
        Manifest({}, {}, "0").write(run / name)
    return run


def asked(runner: type[FakeRunner]) -> dict[str, tuple[str, str | None, int, int]]:
    """{output: (input, checkpoint, seed, number of stages)}."""
    made = {
        r.output.uri: (r.input, r.config.encoder.checkpoint, r.config.seed, len(r.stages))
        for r in runner.asked
    }
    assert len(made) == len(runner.asked)
    return made


def test_without_retraining_only_the_threat_model_is_probed(runner: Any, run: Folder) -> None:
    got = probe_models(run.uri, OtherModels("clean"), VALIDATION, Progress())
    threat = f"{run.uri}/{MODELS}/labelled/threat"
    assert got == {"threat": {"knn": {"of": threat}}}
    assert asked(runner) == {threat: ("clean", f"{run.uri}/{artifact.ENCODER}/{artifact.WEIGHTS}", 5, 3)}


def test_further_models_are_pretrained_even_where_the_threat_model_was_given(
    runner: Any, run: Folder
) -> None:
    got = probe_models(run.uri, OtherModels("clean", retrain=True), VALIDATION, Progress())
    models = f"{run.uri}/{MODELS}"
    assert {name: probes["knn"]["of"] for name, probes in got.items()} == {
        "threat": f"{models}/labelled/threat",
        "cleaned": f"{models}/labelled/cleaned",
        "never_poisoned": f"{models}/never_poisoned",
    }
    assert asked(runner) == {
        f"{models}/labelled/threat": ("clean", f"{run.uri}/{artifact.ENCODER}/{artifact.WEIGHTS}", 5, 3),
        f"{models}/cleaned": (f"{run.uri}/{artifact.CLEAN_ROWS}", None, 5, 2),
        f"{models}/labelled/cleaned": (
            "clean",
            f"{models}/cleaned/{artifact.ENCODER}/{artifact.WEIGHTS}",
            5,
            3,
        ),
        f"{models}/never_poisoned": ("clean", None, 5, 3),
    }


def test_a_run_on_the_never_poisoned_corpus_is_taken(runner: Any, run: Folder, tmp_path: Path) -> None:
    shared = str(tmp_path / "shared")
    got = probe_models(run.uri, OtherModels("clean", shared, retrain=True), VALIDATION, Progress())
    assert got["never_poisoned"]["knn"]["of"] == shared
    assert asked(runner)[shared] == ("clean", None, 5, 3)
    assert f"{run.uri}/{MODELS}/never_poisoned" not in asked(runner)


def test_an_unfinished_run_is_not_trained_on(runner: Any, run: Folder) -> None:
    (run / artifact.CLEAN).delete()
    with pytest.raises(UserError, match=f"no finished {artifact.CLEAN}"):
        probe_models(run.uri, OtherModels("clean", retrain=True), VALIDATION, Progress())


def test_a_model_of_other_settings_is_refused_with_the_way_out(
    runner: Any, run: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise UserError("It was made with another seed.")

    monkeypatch.setattr(runner, "__init__", refuse)
    with pytest.raises(UserError, match=r"another seed\. To start again, delete .*/labelled/threat\."):
        probe_models(run.uri, OtherModels("clean"), VALIDATION, Progress())


def test_of_a_run_of_the_users_own_nobody_says_delete_it(
    runner: Any, run: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = FakeRunner.__init__

    def refuse(self: FakeRunner, input_uri: str, output_uri: str, *rest: Any) -> None:
        if output_uri == "theirs":
            raise UserError("It was made with another seed.")
        begin(self, input_uri, output_uri, *rest)

    monkeypatch.setattr(runner, "__init__", refuse)
    with pytest.raises(UserError, match=r"another seed\. Or leave --never-poisoned-run out\.") as error:
        probe_models(run.uri, OtherModels("clean", "theirs", retrain=True), VALIDATION, Progress())
    assert "delete" not in str(error.value)


def test_a_training_that_fails_says_where(runner: Any, run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(runner, "run", fail)
    with pytest.raises(StageFailedError, match="models/labelled/threat failed") as caught:
        probe_models(run.uri, OtherModels("clean"), VALIDATION, Progress())
    assert isinstance(caught.value.__cause__, OSError)
