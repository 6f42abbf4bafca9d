"""`import poisoncam_ray as pc`: light to import, typed, and a run as an object. No Ray starts here."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import poisoncam_ray as pc
from poisoncam_ray import artifact, results
from poisoncam_ray.folder import MANIFEST, Folder
from poisoncam_ray.stages.report import Report
from tests.fake_run import BOXED, ERROR, FakeRun, make_fake_run
from tests.page import Page
from tests.small import ROOT


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    return finish(make_fake_run(tmp_path_factory.mktemp("python")))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    """A run without evidence."""
    return finish(make_fake_run(tmp_path_factory.mktemp("calm"), poison=False))


def finish(fake: FakeRun) -> FakeRun:
    """Write the report, as the stage does, and name the stages in run.json, as the runner does."""
    from poisoncam_ray import facts
    from poisoncam_ray.defence import stages
    from poisoncam_ray.folder import Manifest

    run = Folder(fake.run)
    about = run.read_json(artifact.RUN)
    run.write_json(artifact.RUN, about | {"stages": [[stage.name, stage.title] for stage in stages()]})
    said = facts.Reported("page", {"1": len(fake.removed)} if fake.removed else {})
    Manifest({"stage": Report.name}, {}, "0" * 64, None, 1.0, said.as_json()).write(run / artifact.REPORT)
    return fake


def unfinished(fake: FakeRun, folder: Path, *without: str) -> pc.Results:
    """A copy of the run in which these artifacts are not committed."""
    shutil.copytree(fake.run, folder)
    for name in without:
        (folder / name / MANIFEST).unlink()
    return pc.open_run(folder)


def test_the_import_loads_nothing_heavy():
    heavy = "{'ray', 'torch', 'pyarrow', 'numpy', 'pydantic'} & set(sys.modules)"
    code = f"import sys, poisoncam_ray as pc; assert not {heavy}, {heavy}; pc.UserError; assert not {heavy}"
    code += "; pc.open_run; assert not {'ray', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_public_name_is_there_and_described():
    assert set(pc.__all__) <= set(dir(pc))
    for name in pc.__all__:
        assert getattr(pc, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'attack'"):
        pc.attack  # noqa: B018


def test_an_opened_run_tells_what_happened(fake):
    run = pc.open_run(fake.run)
    assert run.finished and run.verdict.poison and run.input == fake.corpus
    counts = run.counts
    assert (counts.rows, counts.kept, counts.removed, counts.dead) == (120, 100, 19, 1)
    assert run.report == f"{fake.run}/report/index.html"
    assert str(run).startswith("Poison found: 1 trigger family, 19 images removed")
    removed = run.removed()
    assert set(removed["image_id"].to_pylist()) == fake.removed
    assert removed["box"].to_pylist() == [list(BOXED)] * 19
    assert list(removed.to_pandas().columns) == removed.column_names
    assert run.dead()["error"].to_pylist() == ["truncated"]


def test_a_run_without_evidence(calm):
    run = pc.open_run(calm.run)
    assert not run.verdict.poison and len(run.removed()) == 0 and run.counts.kept == 119
    assert str(run).startswith("No evidence of poison")
    assert "No evidence of poison" in run._repr_html_()
    assert "no evidence" in run.show().html.lower()
    with pytest.raises(pc.UserError, match=r"There is no trigger family 1: there are none\.$"):
        run.show(family=1)


def test_a_notebook_shows_the_run(fake):
    page = Page(pc.open_run(fake.run)._repr_html_())
    assert "Poison found" in page.text and "120 rows = 100 kept + 19 removed + 1 dead" in page.text
    assert page.all("img") and all(tag["src"].startswith("data:image/") for tag in page.all("img"))


def test_show_draws_the_box_where_the_trigger_is_and_escapes_names(fake, tmp_path):
    shown = pc.open_run(fake.run).show(family=1, images=5)
    page = Page(shown.html)
    assert len(page.all("image")) == len(page.all("rect")) == 5
    # 48 × 40 stored, squeezed into 32 × 32.
    x, y, width, height = 10 * 32 / 48, 6 * 32 / 40, 12 * 32 / 48, 12 * 32 / 40
    box = [float(page.all("rect")[0][key]) for key in ("x", "y", "width", "height")]
    assert box == pytest.approx([x, y, width, height], abs=1)
    assert "<b>.parquet" not in shown.html and "a<b>.parquet#" in page.text
    assert not page.all("script") and ERROR not in shown.html
    shown.save(tmp_path / "page.html")
    assert shown.html in (tmp_path / "page.html").read_text()
    assert len(repr(shown)) < 100


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(pc.UserError, match="is not a run folder"):
        pc.open_run(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 1}')
    with pytest.raises(pc.UserError, match="another version"):
        pc.open_run(str(tmp_path))


def test_an_unfinished_run_says_how_far_it_is(fake, tmp_path):
    late = unfinished(fake, tmp_path / "late", artifact.REPORT, artifact.CLEAN)
    assert not late.finished and late.verdict.poison
    for ask in (lambda: late.counts, late.removed, late.clean, late.show, lambda: late.report):
        with pytest.raises(pc.UserError, match=r"late is not finished: it has come to the stage Clean\. "):
            ask()
    assert "come to the stage Clean" in late._repr_html_() and "come to the stage Clean" in str(late)
    early = unfinished(fake, tmp_path / "early", artifact.REPORT, artifact.CLEAN, artifact.VERDICT)
    with pytest.raises(pc.UserError, match="come to the stage Verdict"):
        early.verdict  # noqa: B018


def test_a_run_that_left_the_corpus_where_it_is_has_no_clean_one(fake, tmp_path):
    run = unfinished(fake, tmp_path / "run")
    clean = run.folder / artifact.CLEAN
    manifest = clean.read_json(MANIFEST)
    clean.write_json(MANIFEST, manifest | {"facts": manifest["facts"] | {"copied": False}})
    with pytest.raises(pc.UserError, match="left the corpus where it is: keep/ lists the kept rows"):
        run.clean()


def test_a_mistake_in_a_call_is_an_error_and_starts_nothing(tmp_path):
    import ray

    (tmp_path / "photos").mkdir()
    was = ray.is_initialized()
    for settings, words in (
        ({}, "photos is empty"),
        ({"preset": "nosuch"}, "no preset 'nosuch'"),
        ({"serach": {"masks": 3}}, "no configuration key 'serach'"),
        ({"search": {"masks": "many"}}, "search.masks"),
        ({"overrides": ["search.mask=3"]}, "did you mean 'search.masks'"),
    ):
        with pytest.raises(pc.UserError, match=words):
            pc.defend(tmp_path / "photos", tmp_path / "out", progress=False, **settings)
    with pytest.raises(pc.UserError, match="is empty: give the place"):
        pc.defend("", tmp_path / "out")
    assert ray.is_initialized() == was and not (tmp_path / "out").exists()


def test_settings_of_a_call_win_over_files_and_lose_to_overrides(tmp_path):
    from poisoncam_ray.settings import load_config

    file = tmp_path / "settings.yaml"
    file.write_text("seed: 1\nsearch: {masks: 8, per_cluster: 3}\n")
    made = load_config(None, str(file), ["search.masks=32"], {"seed": 5, "search": {"masks": 16, "chunk": 4}})
    found = (made.seed, made.search.masks, made.search.per_cluster, made.search.chunk)
    assert found == (5, 32, 3, 4)


def test_the_examples_of_an_opened_run(fake, tmp_path, monkeypatch):
    """Every example of results.py but those that start Ray, which run in tests/integration/test_python.py."""
    (tmp_path / "out").symlink_to(fake.run)
    monkeypatch.chdir(tmp_path)
    run = pc.open_run("out/")
    assert run_examples(results, {"run": run, "pc": pc}, without=("Results.clean",)) >= 8
    assert (tmp_path / "family-1.html").stat().st_size > 1000


def run_examples(module, names: dict, without: tuple[str, ...] = (), only: str = "") -> int:
    """Run the examples of a module's docstrings; return how many there were."""
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(module, module.__name__):
        if only in test.name and not test.name.endswith(without or ("\0",)):
            test.globs = dict(names)
            runner.run(test)
    assert runner.failures == 0
    return runner.tries


USER = """
import poisoncam_ray as pc

def flagged(place: str) -> list[str]:
    run = pc.open_run(place)
    if not run.verdict.poison or run.counts.removed == 0:
        return []
    p: float | None = run.verdict.p_value
    names: list[str] = [str(name) for name in run.removed()["image_id"].to_pylist()]
    html: str = run.show(family=1).html
    return [run.report, html, f"{p}", *names]

def call() -> pc.Results:
    return pc.defend("photos/", "out/", preset="tiny-cnn", seed=1, search={"masks": 64})
"""


def test_a_script_that_uses_it_passes_the_strict_type_checker(tmp_path):
    from mypy import api as mypy

    assert (ROOT / "poisoncam_ray" / "py.typed").exists()
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(USER.replace("run.report, html", "run.verdict, html"))
    # Typed libraries below ours take half a minute to check.
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*,ray.*,numpy.*]\nfollow_imports = skip\n")
    files = [str(tmp_path / name) for name in ("user.py", "wrong.py")]
    options = ["--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache")]
    said, _, code = mypy.run([*options, "--config-file", str(tmp_path / "mypy.ini"), *files])
    assert code == 1 and said.count(": error: ") == 1 and "wrong.py:11: error: List item 0 has" in said, said


def test_the_readme_calls_what_there_is():
    """Its examples are those of the docstrings, which run; here each call must fit the signature."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    owners = {"pc": pc, "run": results.Results}
    names = set()
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert hasattr(owners[node.value.id], node.attr), ast.unparse(node)
            names.add(node.attr)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if not isinstance(node.func.value, ast.Name):
                continue
            owner = node.func.value.id
            called = getattr(owners[owner], node.func.attr)
            given = [*(["self"] if owner == "run" else []), *node.args]
            inspect.signature(called).bind(*given, **{word.arg: None for word in node.keywords})
    assert names == {"defend", "apply", "verdict", "removed", "show", "clean"}
