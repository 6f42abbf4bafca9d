"""A user's mistakes end with exit code 2 and one sentence; nothing is started for them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from poisoncam_ray import artifact, facts
from poisoncam_ray.commands import defend as defend_command
from poisoncam_ray.commands.attack import ATTACKS, attack
from poisoncam_ray.commands.evaluate import evaluate
from poisoncam_ray.errors import StageFailedError, UserError
from poisoncam_ray.folder import Folder, Manifest
from poisoncam_ray.program import RESUMES, run_program
from poisoncam_ray.runner import Done
from tests.fake_run import make_fake_run
from tests.small import ROOT


def image(size: int = 8) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (size, size), (9, 90, 200)).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    table = pa.table({"image": pa.array([image()] * 4, pa.binary()), "label": ["a", "b", "a", "b"]})
    pq.write_table(table, folder / "a.parquet")
    return folder


@pytest.fixture
def program(monkeypatch, capsys):
    """A command as a program: (exit code, what it wrote on standard error)."""

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def started(*_):
        raise AssertionError("Ray was started for a mistake that could be told before")

    def call(command, *arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("poisoncam_ray.stages.ray_cluster.start_ray", started)
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_program(command)
        return ended.value.code, capsys.readouterr().err

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def refuses(program):
    """The one sentence that a defence of these arguments ends with."""

    def call(*arguments: object) -> str:
        code, said = program(defend_command.defend, *arguments)
        assert code == 2, said
        assert "Traceback" not in said
        assert said.startswith("error ") and said.endswith((".\n", "?\n")) and said.count("\n") == 1, said
        return said

    return call


def test_input_that_is_not_there_or_empty(refuses, tmp_path):
    assert "nowhere does not exist" in refuses("--input", tmp_path / "nowhere", "--output", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert "empty is empty" in refuses("--input", tmp_path / "empty", "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_corpus_without_rows_or_without_the_column(refuses, corpus, tmp_path):
    place = ("--input", corpus, "--output", tmp_path / "run")
    assert "image column picture is missing in a.parquet: set image_column to image" in refuses(
        *place, "corpus.image_column=picture"
    )
    pq.write_table(pa.table({"label": ["a"], "n": [1]}), corpus / "a.parquet")
    assert "No column of a.parquet holds images" in refuses(*place)
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), corpus / "a.parquet")
    assert "hold no rows" in refuses(*place)


def test_an_unreadable_shard(refuses, corpus, tmp_path):
    shard = corpus / "a.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    said = refuses("--input", corpus, "--output", tmp_path / "run")
    assert "a.parquet cannot be read" in said and "take it out of the corpus" in said


def test_an_output_folder_that_is_not_ours(refuses, corpus, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    assert "'thesis.tex'" in refuses("--input", corpus, "--output", tmp_path / "home")
    assert "lies inside the input" in refuses("--input", corpus, "--output", corpus)
    assert "thesis.tex" in refuses("--input", corpus, "--output", tmp_path / "home" / "thesis.tex")
    assert "--output" in refuses("--input", corpus)


def test_an_output_inside_the_input_is_refused(refuses, corpus):
    (corpus.parent / "link").symlink_to(corpus)
    for place in (corpus, corpus.parent / "link", corpus / ".." / corpus.name):
        said = refuses("--input", corpus, "--output", place / "run")
        assert "lies inside the input" in said
    assert not (corpus / "run").exists()


def test_an_empty_place_is_not_taken_for_none(refuses, corpus):
    for name in ("--input", "--output", "--encoder"):
        given = {"--input": corpus, "--output": "run", "--encoder": "x", name: ""}
        assert "--encoder is empty: give a place" in refuses(
            *(part for pair in given.items() for part in pair)
        )


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("search.maks=3", "no configuration key 'search.maks'; did you mean 'search.masks', "),
        ("masks=3", "no configuration key 'masks'; did you mean 'search.masks', "),
        ("search.window=1.5", "search.window=1.5"),
        ("search.window=-1", "search.window=-1"),
        ("seed=-1", "seed=-1"),
        ("encoder.patch_size=5", "encoder.patch_size=5 does not divide encoder.image_size=32"),
        ("masks", "section.key=value"),
        ("search=[1]", "search"),
        ("search.masks.x=1", "search.masks"),
    ],
)
def test_settings_that_do_not_exist_or_fit(refuses, corpus, tmp_path, setting, words):
    said = refuses("--input", corpus, "--output", tmp_path / "run", setting)
    assert words in said
    assert not (tmp_path / "run").exists()


def test_presets_and_files_that_do_not_exist_or_fit(refuses, corpus, tmp_path):
    place = ("--input", corpus, "--output", tmp_path / "run")
    assert "did you mean 'imagenet100', " in refuses(*place, "--preset", "imagenet10")
    assert "none.yaml cannot be read" in refuses(*place, "--config", tmp_path / "none.yaml")
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"pretrain": {"epoch": 3}}))
    assert "did you mean 'pretrain.epochs', " in refuses(*place, "--config", file)


def test_an_unknown_name_shows_three_that_are_like_it_and_not_all(refuses, corpus, tmp_path):
    place = ("--input", corpus, "--output", tmp_path / "run")
    for wrong in (["zzz.qqq=1"], ["--preset", "zzz"]):
        assert refuses(*place, *wrong).count("'") == 2 + 3 * 2


def test_brackets_in_a_path_are_shown_as_they_are(refuses, tmp_path):
    assert "[bold]x[/] does not exist" in refuses(
        "--input", f"{tmp_path}/[bold]x[/]", "--output", tmp_path / "run"
    )


def test_the_share_of_broken_rows_is_an_option(monkeypatch):
    limits = []

    def run(_, __, config, *___):
        limits.append(config.corpus)
        return defend_command.Answer({"poison": False}, [])

    monkeypatch.setattr(defend_command, "run_defence", run)
    defend_command.defend(input="corpus", output="run", max_dead_fraction=0.25)
    defend_command.defend(input="corpus", output="run")
    assert [limit.max_dead_fraction for limit in limits] == [0.25, 0.5]


@pytest.fixture
def asked(monkeypatch, program, capsys):
    """What a `poisoncam defend` of these arguments would run: input, output, configuration."""

    def call(*arguments: object) -> tuple:
        runs = []

        def run(*given):
            runs.append(given[:3])
            return defend_command.Answer({"poison": False}, [])

        monkeypatch.setattr(defend_command, "run_defence", run)
        code, said = program(defend_command.defend, *arguments)
        assert code == 0, said
        return runs[0]

    return call


def test_the_input_may_be_an_argument_among_settings(asked):
    for arguments in (
        ["photos", "--output", "out", "search.masks=64"],
        ["search.masks=64", "--output", "out", "photos"],
        ["--input", "photos", "search.masks=64", "--output", "out"],
    ):
        input_uri, output_uri, config = asked(*arguments)
        assert (input_uri, output_uri, config.search.masks) == ("photos", "out", 64)
    # A name with '=' below a folder is no setting.
    assert asked("data/year=2024", "--output", "out")[0] == "data/year=2024"
    assert asked("s3://bucket/year=2024", "--output", "out")[0] == "s3://bucket/year=2024"


def test_a_sample_and_an_audit_are_options(asked):
    assert asked("photos", "--output", "out")[2].copies
    assert not asked("photos", "--output", "out", "--no-copy")[2].copies
    config = asked("photos", "--output", "out", "--limit", "500")[2]
    assert config.corpus.limit == 500 and not config.copies


def test_a_copy_of_a_sample_is_refused(refuses, corpus):
    said = refuses(corpus, "--output", "out", "--limit", "500", "clean.copy_corpus=true")
    assert "a part of the corpus that looks like a cleaned one" in said


def test_two_inputs_are_refused(refuses):
    assert "one input, not 'a' and 'b'" in refuses("a", "b", "--output", "out")
    assert "one input, not 'a' and 'b'" in refuses("--input", "a", "b", "--output", "out")


def test_an_option_that_does_not_exist_shows_the_usage(program, corpus):
    code, said = program(defend_command.defend, "--inptu", corpus)
    assert code == 2 and "--inptu" in said and "Traceback" not in said


def test_help_names_the_presets(program):
    code, said = program(defend_command.defend, "--help")
    assert code == 0 and said == ""


def test_a_patch_attack_has_one_target(program, corpus, tmp_path):
    code, said = program(
        attack,
        "--input",
        corpus,
        "--output",
        tmp_path / "o",
        "--target",
        "a",
        "--target",
        "b",
        "--patch",
    )
    assert code == 2 and "one --target" in said and "Traceback" not in said


def test_an_attack_on_a_label_that_is_not_there(program, corpus, tmp_path):
    code, said = program(
        attack,
        "--input",
        corpus,
        "--output",
        tmp_path / "o",
        "--target",
        "zebra",
        "--trigger",
        "generated:1",
    )
    assert code == 2 and "zebra" in said and said.count("\n") == 1


def test_the_help_names_every_attack():
    from poisoncam_ray.research.attacks import KINDS

    assert ATTACKS.split(", ") == list(KINDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kind", "blended", "--option", "alpha"], "The option alpha is no NAME=NUMBER"),
        (["--kind", "blended", "--option", "alpha=much"], "no NAME=NUMBER"),
        (["--kind", "blended", "--option", "alpha=0.3", "--option", "beta=1"], "has no option beta"),
        (["--kind", "bended"], "no attack bended"),
    ],
)
def test_an_attack_that_does_not_exist_or_is_set_wrongly(program, corpus, tmp_path, arguments, words):
    place = ("--input", corpus, "--output", tmp_path / "o", "--target", "a")
    code, said = program(attack, *place, *arguments)
    assert code == 2 and words in said and said.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_an_attack_of_another_kind_from_the_command_line(program, corpus, tmp_path):
    place = ("--input", corpus, "--output", tmp_path / "o", "--target", "a")
    code, said = program(attack, *place, "--kind", "blended", "--option", "alpha=0.3", "--share", "1")
    assert code == 0, said
    made = json.loads((tmp_path / "o" / "attack.json").read_text())
    assert (made["kind"], made["options"]["alpha"], made["n_poisoned"]) == ("blended", 0.3, 2)


def test_evaluating_what_is_no_run(program, tmp_path):
    code, said = program(evaluate, "--run", tmp_path / "none", "--truth", tmp_path / "truth.parquet")
    assert code == 2 and "Traceback" not in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--validation", "v", "--target", "3"], "--validation, --patched and --target together"),
        (["--target", "3"], "--validation, --patched and --target together"),
        (["--never-poisoned", "c"], "--never-poisoned needs --validation"),
        (["--validation", "v", "--patched", "p", "--target", "3", "--retrain"], "needs --never-poisoned"),
        (["--never-poisoned-run", "r"], "needs --never-poisoned"),
        (
            [
                "--validation",
                "v",
                "--patched",
                "p",
                "--target",
                "3",
                "--never-poisoned",
                "c",
                "--never-poisoned-run",
                "r",
            ],
            "is for --retrain",
        ),
    ],
)
def test_options_of_evaluate_that_belong_together(program, options, said):
    code, told = program(evaluate, "--run", "r", "--truth", "t", *options)
    assert code == 2 and said in told and told.count("\n") == 1


def test_a_failure_of_ours_is_not_called_the_users_mistake(program):
    def broken() -> None:
        raise RuntimeError("a bug")

    code, said = program(broken)
    assert code == 1
    assert said.startswith("error RuntimeError: a bug\nTraceback")


def test_a_failed_stage_is_named_first_and_how_to_go_on(program):
    def failing() -> None:
        raise StageFailedError("Search failed") from OSError("no space left.")

    code, said = program(failing)
    assert code == 1
    assert said.startswith(f"error Search failed: OSError: no space left. {RESUMES}\nOSError: ")


def test_a_mistake_found_in_a_stage_stays_a_mistake(program):
    def failing() -> None:
        raise StageFailedError("Index failed") from UserError("Lower it.")

    assert program(failing) == (2, "error Lower it.\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_program_by_its_finallys(tmp_path, number):
    script = tmp_path / "program.py"
    script.write_text(
        "import time\n"
        "from poisoncam_ray.program import run_program\n"
        "def work() -> None:\n"
        "    try:\n"
        "        print('at work', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('released', flush=True)\n"
        "run_program(work)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "at work\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "released\n")
    assert err == f"error Ended by {signal.Signals(number).name}.\n"


def test_an_audit_of_a_sample_says_both_at_its_end(tmp_path):
    run = Folder(make_fake_run(tmp_path).run)
    told = {
        artifact.INDEX: facts.Indexed(119, 1, 3, 0, 0, corpus_rows=50_000),
        artifact.CLEAN: facts.Cleaned(101, 18, 1, 2, 0, copied=False, restored={"ann": 1}),
        artifact.CLASSIFIER: facts.Classified(True, families=1, recall=0.9),
        artifact.REPORT: facts.Reported("page", {"1": 18}),
    }
    done = [Done(name, "", Manifest({}, {}, "", facts=said.as_json()), False) for name, said in told.items()]
    answer = defend_command.answer(run, "out", done, 1.0)
    lines = "\n".join(answer.lines)
    assert "This is a sample of 120 of 50,000 rows." in lines and "restored: 1 by ann" in lines
    assert "kept rows     out/keep" in lines and "clean corpus" not in lines
    assert answer.data["sample_of"] == 50_000 and answer.data["restored"] == {"ann": 1}
    assert answer.data["places"]["keep"] == "out/keep" and "clean" not in answer.data["places"]
