"""Every command that a document shows exists with the options shown, and is run by a test or says why not."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import settings

import poisoncam_ray
from poisoncam_ray import cli
from poisoncam_ray.config import Config
from poisoncam_ray.settings import load_config
from tests.commands_shown import Shown, blocks, commands, documents
from tests.infra.test_image import stages as image_stages
from tests.small import ROOT

# Which test runs the command. Of a command of `poisoncam` that is not named here, some test begins a call or
# a list of arguments with its name.
RUN_BY: dict[str, tuple[str, str]] = {
    "demo": ("end_to_end/test_demo.py", "test_the_demo_finds_the_poison_and_says_so"),
    "defend": (
        "integration/test_defence.py",
        "test_every_row_is_kept_removed_or_dead_and_the_bytes_are_the_source_bytes",
    ),
    "attack": (
        "integration/test_webdataset_defence.py",
        "test_tars_are_poisoned_defended_and_keep_their_members",
    ),
    "evaluate": (
        "integration/test_webdataset_defence.py",
        "test_tars_are_poisoned_defended_and_keep_their_members",
    ),
    "study": ("research/study/test_command.py", "test_mistakes_are_one_sentence_and_write_nothing"),
    "rules": ("research/study/test_rules.py", "test_the_rows_say_what_each_rule_changes"),
    "abreast": ("research/test_abreast.py", "test_the_job_takes_counts_labels_and_a_bound"),
    "scaling": (
        "research/attacks/test_reader.py",
        "test_the_job_prints_a_row_for_each_filter_size_and_aim",
    ),
    "perfect_search": ("research/attacks/test_reader.py", "test_without_boxes_there_are_no_true_windows"),
    "warm_start": (
        "research/regime/test_curve.py",
        "test_the_jobs_make_a_warm_start_and_continue_it_on_the_attacked_corpus",
    ),
    "regime": (
        "research/regime/test_curve.py",
        "test_the_jobs_make_a_warm_start_and_continue_it_on_the_attacked_corpus",
    ),
    "recurring": ("research/rivals/test_recurring.py", "test_the_job_attacks_measures_and_lists"),
    "rivals": ("research/rivals/test_on_run.py", "test_the_job_adds_runs_and_measures_none_twice"),
    "benchmark": ("research/test_benchmark_memory.py", "test_every_stage_is_measured"),
    "photographs": ("end_to_end/test_photographs.py", "test_a_backdoor_in_photographs_is_found_and_removed"),
    "compare": ("golden/test_golden.py", "test_runs_of_both_formats_are_compared_by_their_new_words"),
    "ray job submit": (
        "integration/test_job_submit.py",
        "test_a_job_ends_with_exit_code_0_and_its_log_shows_stages_and_counts",
    ),
    "ray job stop": (
        "integration/test_job_submit.py",
        "test_a_second_job_on_the_folder_is_refused_and_a_stopped_one_resumes",
    ),
    "kubectl kustomize": ("infra/test_manifests.py", "test_overlay_passes"),
    "uv build": ("test_install.py", "test_wheel_holds_the_package_and_nothing_else"),
    "apply": ("integration/test_applied.py", "test_exactly_the_rows_with_the_trigger_are_removed"),
    "pip install": ("test_install.py", "test_commands_are_there"),
}
# What no test runs, and why. The document says so by the words NOT_RUN_HERE.
NOT_RUN = {
    "docker build": "needs Docker; the Dockerfile is linted (infra/test_image.py)",
    "docker push": "needs a registry",
    "docker buildx": "needs a registry",
    "kubectl create": "needs a cluster; --dry-run runs here",
    "kubectl apply": "needs a cluster; the overlay of the document is rendered (infra/test_manifests.py)",
    "kubectl get": "needs a cluster",
    "kubectl logs": "needs a cluster",
    "infra/lock.sh": "asks a package registry; what it made is tested (infra/test_image.py)",
}
NOT_RUN_HERE = "is not run here"
CI = {"uv run pytest": "uv run pytest", "uv sync": "uv sync", "pip install uv": "pip install --quiet uv"}
"""Lines of .ci/run."""
KUBECTL = str(Path(sys.executable).with_name("kubectl"))

Command = Any
"""Of click, or of the copy of click that typer brings."""
SHOWN = [command for document in documents() for command in commands(document)]


class _Started(BaseException):
    def __init__(self, app: typer.Typer) -> None:
        self.app = app


@cache
def program(script: str) -> Command:
    """The command line of `poisoncam` ("") or of a script, as it is about to start."""

    def start(app: typer.Typer, *_: object, **__: object) -> None:
        raise _Started(app)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.Typer, "__call__", start)
        patch.setattr("poisoncam_ray.program.end_on_signals", lambda: None)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__") if script else cli.main()
        except _Started as started:
            return typer.main.get_command(started.app)
    raise AssertionError(f"{script} starts no command line")


def parse(command: Command, words: list[str]) -> str:
    """Parse the words as the command line would, with its settings; nothing is run.

    Returns:
        The name of the subcommand, "" without one.

    Raises:
        Exception: typer's own, for a wrong option or argument.
        LookupError: there is no such command.
        UserError: a preset or a setting is wrong.
    """
    # After an option that wants a value, "…" is this value.
    flags = {option for p in command.params if getattr(p, "is_flag", False) for option in p.opts}
    values = {i + 1 for i, word in enumerate(words) if word.startswith("--") and word not in flags}
    left_out = any(word == "…" and i not in values for i, word in enumerate(words))
    words = [word for i, word in enumerate(words) if word != "…" or i in values]
    words = [word for word in words if word != "--help"]
    if hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            # Its options act as soon as they are parsed.
            assert set(words) <= {option for p in command.params for option in p.opts}, (
                f"{words}: no such option"
            )
            return ""
        name, *rest = words
        if name not in command.commands:
            raise LookupError(f"there is no command {name}")
        below = parse(command.commands[name], ["…", *rest] if left_out or not rest else rest)
        return f"{name} {below}".strip()
    if left_out:
        # What is left out is what is wanted.
        words = [*words, *(word for p in command.params if p.required for word in _made_up(p, words))]
    with command.make_context(command.name or "", words) as context:
        arguments = [p.name for p in command.params if p.param_type_name == "argument"]
        given = [word for name in arguments for word in _words(context.params[name])]
        overrides = [word for word in given if re.match(r"[a-z_.]+=", word)]
        load_config(context.params.get("preset"), None, overrides)
    return ""


def _words(value: object) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value or ()]


def _made_up(parameter: Any, words: list[str]) -> list[str]:
    if parameter.param_type_name == "argument":
        return ["something"]
    return [] if set(parameter.opts) & set(words) else [parameter.opts[0], "1"]


def check(words: list[str]) -> str:
    """Parse a command of any program; return its name in RUN_BY, NOT_RUN or CI."""
    match words:
        case ["uv", "run", "pytest", *rest] | ["python", "-m", "pytest", *rest]:
            check_pytest(rest)
            return "uv run pytest"
        case ["uv", "run", *rest]:
            return check(rest)
        case ["uv", "sync" | "build"] | ["pip", "install", "uv"]:
            return " ".join(words)
        case ["pip" | "uv", *_] if re.fullmatch(
            r"(uv )?pip install (\.|poisoncam-ray)(\[\w+\])?", " ".join(words)
        ):
            return "pip install"
        case ["ray", "job", action, *rest]:
            return check_ray(action, rest)
        case ["poisoncam", *rest]:
            name = parse(program(""), rest)
            return "demo" if rest == ["defend"] else name
        case [script, *rest] if re.fullmatch(r"jobs/\w+\.py", script):
            parse(program(script), rest)
            return "demo" if words == ["jobs/defend.py"] else Path(script).stem
        case ["python" | "python3" | "sh" | "bash" as runner, script, *rest]:
            if runner.startswith("python") and script.startswith("jobs/"):
                return check([script, *rest])
            assert (ROOT / script).is_file(), f"there is no {script}"
            return Path(script).stem if script.endswith(".py") else script
        case ["docker", *rest]:
            return check_docker(rest)
        case ["kubectl", *rest]:
            return check_kubectl(rest)
    raise AssertionError(f"{' '.join(words)}: no form that the tests know")


def check_pytest(words: list[str]) -> None:
    """The options are pytest's own, hypothesis' or those of conftest.py."""
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    conftest = (ROOT / "tests" / "conftest.py").read_text()
    rest = iter(words)
    for word in rest:
        if word == "-m":
            named = set(re.findall(r"\w+", next(rest))) - {"and", "or", "not"}
            assert named <= {marker.partition(":")[0] for marker in markers}, f"{named}: no such markers"
        elif word == "--hypothesis-profile":
            settings.get_profile(next(rest))
        else:
            assert f'addoption("{word}"' in conftest, f"{word} is unrecognized"


def check_ray(action: str, words: list[str]) -> str:
    """`ray job …` by Ray's own command line, and what it submits by ours."""
    from ray.dashboard.modules.job.cli import job_cli_group

    if "--" in words:
        at = words.index("--")
        words, ours = words[:at], words[at + 1 :]
        check(ours)
        words = [*words, "entrypoint"]
    parse_ray = job_cli_group.commands[action]
    parse_ray.make_context(action, [w for w in words if w != "…"] or ["something"])
    return f"ray job {action}"


def check_docker(words: list[str]) -> str:
    options = dict(pairwise(words))
    if words[0] == "build":
        assert set(re.findall(r"(?<= )--?\w[\w-]*", " ".join(words))) <= {
            "-f",
            "--target",
            "-t",
            "--build-arg",
        }
        assert (ROOT / options["-f"]).is_file() and options["--target"] in image_stages()
        assert words[-1] == "."
    return f"docker {words[0]}"


def check_kubectl(words: list[str]) -> str:
    """An option that kubectl does not know ends even its --help."""
    done = subprocess.run([KUBECTL, *words, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    action = next(word for word in (words[2:] if words[0] == "-n" else words) if not word.startswith("-"))
    if action == "create":
        dry = subprocess.run(
            [KUBECTL, *words, "--dry-run=client", "-o", "yaml"], capture_output=True, text=True
        )
        assert dry.returncode == 0 and dry.stdout.startswith("apiVersion"), dry.stderr
    return f"kubectl {action}"


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: f"{shown}"[:80])
def test_a_command_is_parsed_and_run_by_a_test(shown: Shown):
    if any(re.search(r"\bX\.py", word) for word in shown.words):
        return  # any of the scripts
    name = check(list(shown.words))
    if not name:
        return  # the help of `poisoncam`: test_install.py
    if name in CI or name == ".ci/run":
        assert CI.get(name, "") in (ROOT / ".ci" / "run").read_text()
    elif name in NOT_RUN:
        assert NOT_RUN_HERE in (ROOT / shown.document).read_text()
    elif name in RUN_BY:
        file, test = RUN_BY[name]
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {test}"
    else:
        words = r",\s*".join(f'"{word}"' for word in name.split())
        calls = re.compile(rf'[\[(]\s*(?:"poisoncam",\s*)?{words}')
        tests = (ROOT / "tests").rglob("test_*.py")
        assert any(calls.search(test.read_text()) for test in tests), f"name the test of `{name}` in RUN_BY"


def examples(command: Command) -> list[str]:
    """The examples of a command and of those below it, as their help shows them."""
    own = list(getattr(command.callback, "examples", ()))
    below = getattr(command, "commands", {}).values()
    return own + [line for one in below for line in examples(one)]


def test_examples_in_the_help_are_parsed():
    for line in examples(program("")):
        check(line.partition("#")[0].split())


FOR_USERS = [name for name in documents() if not name.startswith(("poisoncam_ray/", "tests/"))]


@pytest.mark.parametrize("document", FOR_USERS)
def test_options_and_settings_named_in_the_text_exist(document: str):
    """`--option` of our own commands; `section.key` of the settings, with its value where one is shown."""
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text(), flags=re.DOTALL)
    sections = "|".join(Config.model_fields)
    for span in re.findall(r"`([^`]+)`", text):
        if found := re.fullmatch(rf"((?:{sections})\.[a-z_]+)(?:=(\S+))?", span.strip()):
            section, key = found[1].split(".")
            assert key in type(getattr(Config(), section)).model_fields, f"{document}: no setting {span}"
            if found[2] and found[2] != "…":
                load_config(None, None, [span])
    known = {option for command in ours() for p in command.params for option in (*p.opts, *p.secondary_opts)}
    named = {
        w for span in re.findall(r"`(--[^`]+)`", text) for w in re.findall(r"(?<!\S)--[a-z][a-z-]*", span)
    }
    assert named - known <= OTHERS, document


OTHERS = {"--build-arg", "--quick", "--help"}
"""Options of docker and pytest, and of every command."""


def ours() -> list[Command]:
    """All commands of `poisoncam` and of the scripts."""
    found: list[Command] = []
    todo = [program(""), *(program(f"jobs/{path.name}") for path in sorted((ROOT / "jobs").glob("*.py")))]
    while todo:
        found.append(todo.pop())
        todo += getattr(found[-1], "commands", {}).values()
    return found


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("poisoncam defend --inputs a --output b", "No such option"),
        ("poisoncam defends", "no command"),
        ("poisoncam defend --input a --output b --preset no", "no preset"),
        ("uv run jobs/defend.py --input a --output b search.maks=3", "search.masks"),
        ("jobs/attack.py --input a", "Missing"),
        ("jobs/photographs.py … --sed 3", "No such option"),
        ("ray job submit --adress x -- python jobs/defend.py", "No such option"),
        ("ray job submit -- python jobs/defend.py --inputs a", "No such option"),
        ("kubectl get rayjob --wach", "unknown flag"),
        ("docker build -f infra/Dockerfile --target gpu .", "gpu"),
        ("uv run pytest --quickly", "unrecognized"),
        ("uv run pytest -m fast", "no such markers"),
        ("python jobs/no.py", "no.py"),
        ("make", "no form"),
    ],
)
def test_a_wrong_command_would_be_noticed(line: str, error: str):
    with pytest.raises(BaseException, match=error):
        check(line.split())


@pytest.mark.parametrize("document", documents())
def test_python_that_a_document_shows_uses_names_that_exist(document: str):
    for language, code in blocks((ROOT / document).read_text()):
        if language in ("python", "py") or re.match(r"(import|from) \w", code):
            compile(code, document, "exec")
            if alias := re.search(r"import poisoncam_ray as (\w+)", code):
                for name in re.findall(rf"\b{alias[1]}\.(\w+)", code):
                    assert hasattr(poisoncam_ray, name), f"{document}: poisoncam_ray.{name}"


def test_the_documents_are_read():
    """A parser that finds nothing would pass everything."""
    found: dict[str, int] = {}
    for shown in SHOWN:
        found[shown.document] = found.get(shown.document, 0) + 1
    assert found["README.md"] > 10 and found["infra/README.md"] > 8 and found["CONTRIBUTING.md"] >= 3
    assert len(SHOWN) > 40
