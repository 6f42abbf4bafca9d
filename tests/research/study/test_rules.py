"""jobs/rules.py: finished runs are decided again with each rule of the verdict halved and doubled."""

from __future__ import annotations

import runpy
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.verdict import VerdictRules
from poisoncam_ray.research.study import rules as module
from poisoncam_ray.research.study.rules import JSON, MARKDOWN, changed_rules
from tests.small_search import poisoned, write_search

JOB = Path(__file__).parents[3] / "jobs" / "rules.py"
RULES = VerdictRules()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Folder, Folder, list[int]]:
    """A run, what the job wrote about it, and the sides of the thumbnails that were read."""
    folder, sides = tmp_path_factory.mktemp("rules"), []
    run, out = Folder(str(folder / "run")), Folder(str(folder / "out"))
    write_search(run / artifact.SEARCH, poisoned())
    run.write_json(artifact.RUN, {"config": Config().model_dump(mode="json")})
    read = module.read_candidates

    def counted(search: Folder, rounds: int, side: int):
        sides.append(side)
        return read(search, rounds, side)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_candidates", counted)
        runpy.run_path(str(JOB))["rules"](output=out.uri, run=[run.uri])
    return run, out, sides


def test_every_rule_is_halved_and_doubled():
    changed = list(changed_rules())
    names = [field.name for field in fields(RULES)]
    assert [name for name, _ in changed] == [name for name in names for _ in range(2)]
    for i, (name, rules) in enumerate(changed):
        value, new = getattr(RULES, name), getattr(rules, name)
        assert {key for key, kept in asdict(rules).items() if kept != getattr(RULES, key)} == {name}
        assert type(new) is type(value)
        assert new < value if i % 2 == 0 else new > value
        if isinstance(value, int):
            assert new >= 1
        elif name == "max_suspect_share":
            assert new <= 1
        elif name.endswith(("_ncc", "_cosine")):
            assert new <= 0.99
    doubled = dict(changed)
    assert doubled["min_pattern_ncc"].min_pattern_ncc == 0.99 and doubled["max_kept"].max_kept == 400
    assert (
        doubled["scale_inflation"].scale_inflation == 4
        and doubled["max_suspect_share"].max_suspect_share == 1
    )


def test_the_rows_say_what_each_rule_changes(made):
    _, out, _ = made
    first, *rows = out.read_json(JSON)
    assert (first["run"], first["rule"], first["value"], first["changes"]) == ("run", "", None, False)
    assert (first["verdict"], first["families"], first["suspects"]) == (artifact.POISON, 2, 14)
    assert first["best_to_threshold"] > 1 and first["kept"] == 114
    assert len(rows) == 2 * len(fields(RULES))
    of = {(row["rule"], row["value"]): row for row in rows}
    # Neither trigger has sixteen windows, so no group but a supercluster is scored.
    assert of["min_group_windows", 16]["changes"] and of["min_group_windows", 16]["families"] == 0
    assert of["max_kept", 100]["kept"] < 114 == of["max_kept", 400]["kept"]
    assert of["scale_inflation", 4]["best_to_threshold"] < first["best_to_threshold"]
    assert of["scale_inflation", 1]["best_to_threshold"] > first["best_to_threshold"]
    for row in rows:
        assert row["changes"] is (row["verdict"] != first["verdict"])
        assert (row["families"] > 0) is (row["verdict"] == artifact.POISON)


def test_candidates_are_read_once_for_each_side_of_the_thumbnails(made):
    _, _, sides = made
    assert sorted(sides) == [6, 12, 24]


def test_the_table_has_a_line_for_each_row(made):
    _, out, _ = made
    text = out.read_bytes(MARKDOWN).decode()
    assert "## run\n" in text and module.COMMAND in text and "| (as they are) |  | 2 |" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + 2 * len(fields(RULES))
    assert "| min_group_windows | 16 | 0 |" in text and "**no_evidence**, changed" in text


def test_runs_are_named_by_what_tells_them_apart(made, tmp_path):
    row = module.Row("s3://here/a/1/run", "", None, artifact.POISON, 1, 2.0, 3, 2, 0.5, 4, False)
    out = Folder(str(tmp_path))
    module.write_rules([row, replace(row, run="s3://here/b/run/")], out)
    assert [row["run"] for row in out.read_json(JSON)] == ["a/1/run", "b/run"]


def test_a_folder_without_a_search_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="no finished search"):
        module.decide_again(Folder(str(tmp_path)))
