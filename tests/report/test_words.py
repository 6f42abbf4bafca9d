"""The verdict in words, on the console and as an exit code."""

from __future__ import annotations

import signal
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray import artifact
from poisoncam_ray.artifact import NO_EVIDENCE, Verdict
from poisoncam_ray.commands import defend as defend_command
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.facts import Classified
from poisoncam_ray.folder import Folder, Manifest
from poisoncam_ray.program import run_program
from poisoncam_ray.progress import Progress
from poisoncam_ray.report.words import (
    NO_TRIGGER,
    TOO_FEW,
    TOO_HIGH,
    chance,
    p_words,
    percent,
    tell,
    what_training_saw,
)
from poisoncam_ray.runner import Done
from poisoncam_ray.stage import Run
from poisoncam_ray.stages.report import Report
from tests.fake_evidence import FOUND, flag_images, write_evidence
from tests.fake_run import FakeRun, make_fake_run


@pytest.mark.parametrize(
    ("p_value", "words"),
    [
        (1.0, "100 % of benign window groups score"),
        (0.31, "31 % of benign window groups score"),
        (1 / 513, "1 in 510 benign window groups scores"),
        (0.0004, "1 in 2,500 benign window groups scores"),
        (0.0, "fewer than 1 in 10,000 benign window groups scores"),
    ],
)
def test_a_p_value_in_words(p_value: float, words: str) -> None:
    assert chance(p_value) == words


@given(st.floats(1e-4, 0.1))
def test_one_in_so_many_is_the_p_value_to_two_digits(p_value: float) -> None:
    n = int(chance(p_value).split()[2].replace(",", ""))
    assert 1 / n == pytest.approx(p_value, rel=0.06)


def test_figures() -> None:
    assert [percent(share) for share in (0.05, 0.07, 0.001, 0.4125, 1.0)] == [
        "5 %", "7 %", "0.1 %", "41.2 %", "100 %",
    ]  # fmt: skip
    assert (p_words(0.0004), p_words(1e-7), p_words(0.3123)) == ("p = 0.0004", "p < 0.0001", "p = 0.31")


def test_how_much_of_the_corpus_the_threat_model_has_seen() -> None:
    assert what_training_saw(4_000_000, 1_000_000, 2_500_000) == (
        "The threat model was shown 25 % of the 4,000,000 images, each 2.5 times. "
        "Of a poison of 0.1 %, which is 4,000 images, it has seen about 1,000."
    )
    assert "100 % of the 60,000 images, each 20 times" in what_training_saw(60_000, 60_000, 1_200_000)
    assert "50 % of the 60,000 images, each once." in what_training_saw(60_000, 30_000, 30_000)
    assert what_training_saw(0, 0, 0) == "", "your own checkpoint, or a run of an earlier version"


def test_the_line_for_one_and_for_many() -> None:
    assert tell(FOUND, 1, {}) == ["Poison found: 0 trigger families, 1 image removed (p = 0.0004)."]


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"best_group": 0.06}, ["No evidence of poison (false alarm rate 5 %): nothing was removed."]),
        (
            {"best_group": 0.17},
            ["No evidence of poison (false alarm rate 5 %): nothing was removed.", f"  {NO_TRIGGER}"],
        ),
        (
            {"threshold": 1.2},
            ["No evidence of poison (false alarm rate 5 %): nothing was removed.", f"  {TOO_HIGH}"],
        ),
        ({"threshold": None}, ["No evidence of poison: nothing was removed.", f"  {TOO_FEW}"]),
    ],
)
def test_no_evidence_says_whether_windows_stood_out_and_whether_they_could(tmp_path, changes, lines) -> None:
    write_evidence(Folder(str(tmp_path)), verdict=NO_EVIDENCE, **changes)
    assert tell(Verdict.read(Folder(str(tmp_path)) / artifact.VERDICT), 0, {}) == lines


def finish(fake: FakeRun) -> list[Done]:
    """What the runner hands back, with the report written by its stage."""
    run, report = Folder(fake.run), Report()
    here = Run(Config(), open_corpus(fake.corpus), run, run / report.name, Progress())
    outcome = report.run(here)
    manifests = {name: here.manifest(name) for name in (artifact.INDEX, artifact.CLASSIFIER, artifact.CLEAN)}
    manifests[report.name] = Manifest({}, {}, "0", None, 1.0, outcome.facts.as_json())
    return [Done(name, name, manifest, reused=False) for name, manifest in manifests.items()]


@pytest.fixture
def defend(monkeypatch, capsys):
    """`poisoncam defend` over a fake run whose stages are done: (exit code, lines on standard output)."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def call(fake: FakeRun, *flags: str) -> tuple[int, list[str]]:
        class Finished:
            def __init__(self, *_: object) -> None:
                self.folder = Folder(fake.run)

            def pending(self) -> list:
                return []

            def run(self, *_: object) -> list[Done]:
                return finish(fake)

        monkeypatch.setattr("poisoncam_ray.runner.Runner", Finished)
        monkeypatch.setattr(sys, "argv", ["defend", "--input", fake.corpus, "--output", fake.run, *flags])
        with pytest.raises(SystemExit) as ended:
            run_program(defend_command.defend)
        return ended.value.code, capsys.readouterr().out.splitlines()

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_poison_is_said_by_family_and_is_an_exit_code_for_those_who_ask(tmp_path, defend) -> None:
    fake = make_fake_run(tmp_path)
    removed = flag_images(Folder(fake.run), 2)
    code, lines = defend(fake, "--exit-code")
    counts = next(i for i, line in enumerate(lines) if line.startswith("120 rows = 100 kept"))
    assert code == 3
    assert lines[counts + 1 : counts + 4] == [
        "Poison found: 2 trigger families, 19 images removed (p = 0.0004).",
        f"  family 1: {removed[1]} images removed, best score 90 % (p = 0.0004)",
        f"  family 2: {removed[2]} images removed, best score 87 % (p = 0.0008)",
    ]
    assert lines[-1].endswith("report/index.html")
    assert defend(fake)[0] == 0


def test_a_family_whose_classifier_was_in_doubt_says_why_nothing_of_it_went(tmp_path, defend) -> None:
    fake = make_fake_run(tmp_path)
    flag_images(Folder(fake.run), 2)
    trained = Folder(fake.run) / artifact.CLASSIFIER
    Manifest({}, {}, "0", None, 1.0, Classified(True, in_doubt=[2], recall=0.9).as_json()).write(trained)
    said = [line for line in defend(fake)[1] if line.startswith("  family ")]
    assert "images removed, best score 90 %" in said[0]
    assert said[1] == "  family 2: nothing removed, its classifier is in doubt, best score 87 % (p = 0.0008)"


def test_no_evidence_is_one_line_and_code_0_either_way(tmp_path, defend) -> None:
    fake = make_fake_run(tmp_path, poison=False)
    for flags in ((), ("--exit-code",)):
        code, lines = defend(fake, *flags)
        assert code == 0
        assert "No evidence of poison (false alarm rate 5 %): nothing was removed." in lines


def test_evidence_without_an_image_that_carries_it_is_no_all_clear(tmp_path, defend) -> None:
    fake = make_fake_run(tmp_path, poison=False)
    write_evidence(Folder(fake.run))
    code, lines = defend(fake, "--exit-code")
    assert code == 3 and not any(line.startswith("Poison found") for line in lines)
    assert any("no poisoned image was identified: nothing was removed." in line for line in lines)
