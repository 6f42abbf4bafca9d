"""The program `poisoncam` as a whole: its commands, their help and examples, what they print for scripts."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import poisoncam_ray
from poisoncam_ray import cli
from poisoncam_ray.commands.options import Output
from poisoncam_ray.config import Config
from poisoncam_ray.program import as_app
from poisoncam_ray.research.demo import draw_corpus
from poisoncam_ray.settings import load_config, presets
from tests.fake_run import make_fake_run
from tests.report.test_words import finish
from tests.small import ROOT

PROGRAM = "import sys; sys.argv[0] = 'poisoncam'; from poisoncam_ray.cli import main; main()"
COMMANDS = {command.__name__: command for command in cli.TOP}
COMMANDS |= {
    f"{group} {command.__name__}": command for group, below in cli.GROUPS.items() for command in below
}


def poisoncam(*arguments: str) -> str:
    """What the program writes on standard output, where it does not fail."""
    told = CliRunner().invoke(as_app(*cli.TOP, **cli.GROUPS), list(arguments), catch_exceptions=False)
    assert told.exit_code == 0, told.output
    return told.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_can_be_read_and_the_shared_options(name):
    examples = COMMANDS[name].examples
    assert examples
    for example in examples:
        program, *arguments = shlex.split(example.partition(" > ")[0], comments=True)
        assert program == "poisoncam"
        # The options of each example are parsed; the command is not run.
        told = CliRunner().invoke(as_app(*cli.TOP, **cli.GROUPS), [*arguments, "--help"])
        assert told.exit_code == 0 and example.split()[1] in told.stdout
    said = poisoncam(*name.split(), "--help")
    assert "Examples" in said and "--json" in said and "--quiet" in said
    assert all(" ".join(example.split()[:2]) in said.rpartition("Examples")[2] for example in examples)


def test_the_version_is_the_packages():
    assert poisoncam("--version") == f"poisoncam {poisoncam_ray.__version__}\n"


def test_the_shell_completes_commands_and_presets():
    def complete(line: str) -> str:
        words = {
            "_POISONCAM_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(line.count(" ")),
        }
        environment = os.environ | words | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", PROGRAM]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout

    assert complete("poisoncam def").split() == ["defend"]
    assert complete("poisoncam defend --preset tiny-v").split() == ["tiny-vit-gpu", "tiny-vit"]


def test_the_presets_say_what_they_are_for():
    listed = json.loads(poisoncam("presets", "--json"))["presets"]
    assert [row["preset"] for row in listed] == list(presets())
    (large,) = (row for row in listed if row["preset"] == "imagenet100")
    assert (large["encoder"], large["image_size"]) == ("vit_base_patch16_224", 224)
    assert large["for"].startswith("The paper's encoder")
    assert all(row["for"] and not row["for"].endswith(".") for row in listed)
    assert "stl10" in poisoncam("presets") and "96 px" in poisoncam("presets")


@pytest.mark.parametrize("name", [None, *presets()])
def test_the_settings_that_are_shown_are_read_again_as_they_are(name, tmp_path):
    chosen = ["--preset", name] if name else []
    shown = poisoncam("config", "show", *chosen, "search.masks=64", "corpus.image_column='0'")
    file = tmp_path / "mine.yaml"
    file.write_text(shown)
    expected = load_config(name, None, ["search.masks=64", "corpus.image_column='0'"])
    assert load_config(None, str(file)) == expected
    said = json.loads(poisoncam("config", "show", *chosen, "--json", "search.masks=64"))
    assert Config.model_validate(said).search == expected.search


def test_the_settings_are_shown_with_what_they_mean():
    shown = poisoncam("config", "show")
    lines = shown.splitlines()
    at = lines.index("  max_bytes: 134217728")
    assert lines[at - 1] == "  # A larger image is never decoded. Its row is dead."
    assert set(yaml.safe_load(shown)) == set(Config.model_fields)


@pytest.fixture
def defended(tmp_path, monkeypatch, capfd):
    """`poisoncam defend` over a fake run whose stages are done: exit code, standard output and error."""
    fake = make_fake_run(tmp_path)

    def launch(input_uri, output_uri, config, stages, progress, *_):
        with progress.stage("Clean"):
            progress.update(1, 2, "files")
        return finish(fake)

    monkeypatch.setattr("poisoncam_ray.launch.launch", launch)

    def call(*options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["poisoncam", fake.corpus, "--output", fake.run, *options])
        with pytest.raises(SystemExit) as ended:
            as_app(cli.TOP[0])()
        return ended.value.code, *capfd.readouterr()

    return call


def test_the_last_line_of_a_defence_for_scripts_is_the_verdict(defended):
    code, out, err = defended("--json")
    (line,) = out.splitlines()
    said = json.loads(line)
    assert code == 0 and (said["verdict"], said["poison"]) == ("poison", True)
    assert (said["rows"], said["kept"], said["removed"], said["dead"]) == (120, 100, 19, 1)
    assert [family["removed"] for family in said["families"]] == [19]
    for place in said["places"].values():
        assert place.startswith(said["run"])
    # Progress is told, but not there.
    assert "Clean     …" in err and "1 of 2 files" in err
    assert defended("--json", "--exit-code")[0] == 3


def test_a_quiet_defence_says_its_result_only(defended):
    code, out, err = defended("--quiet")
    assert (code, err) == (0, "") and out.splitlines()[0].startswith("120 rows = 100 kept + 19 removed")
    assert "…" not in out and "files" not in out
    loud = defended()
    assert loud[1].endswith(out[out.index("Poison found") :]) and "1 of 2 files" in loud[1]
    code, out, err = defended("--quiet", "--json")
    assert json.loads(out)["removed"] == 19 and err == ""


def test_an_attack_answers_scripts(tmp_path):
    draw_corpus(str(tmp_path / "corpus"), n_images=12, n_categories=2, size=16, seed=1, shards=1)
    place = ["--input", str(tmp_path / "corpus"), "--output", str(tmp_path / "out"), "--target", "1"]
    said = json.loads(poisoncam("attack", *place, "--trigger", "generated:1", "--json"))
    assert said["n_images"] == 12 and said["n_poisoned"] == 3
    assert Path(said["truth"]).is_file() and Path(said["corpus"]).is_dir()


def test_a_result_is_json_whatever_it_holds(capsys):
    # Terminals obey U+009B as they obey escape and bracket.
    held = {
        "mean": float("nan"),
        "runs": [(1.5, float("inf"))],
        "name": "[bold]ünï\x1b[31m",
        "\x9b2J": "\x7f",
    }
    Output(as_json=True).result(held, [])
    shown = capsys.readouterr().out
    assert json.loads(shown) == held | {"mean": None, "runs": [[1.5, None]]}
    assert "NaN" not in shown and "ünï" in shown and shown.strip().isprintable()
    Output().result({}, [held["name"]])
    assert capsys.readouterr().out == "[bold]ünï\N{REPLACEMENT CHARACTER}[31m\n"
