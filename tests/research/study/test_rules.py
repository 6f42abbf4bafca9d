"""jobs/rules.py: finished runs and stored candidates are decided again with other rules of the verdict."""

from __future__ import annotations

import runpy
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.verdict import VerdictRules, decide
from poisoncam_ray.research.evaluate.stored import candidates_of
from poisoncam_ray.research.study import rules as module
from poisoncam_ray.research.study.rules import JSON, MARKDOWN, STRATA, changed_rules
from poisoncam_ray.stages.verdict import as_verdict, read_candidates
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


CHANGES = ["min_group_windows=16", "thumbnail_side=6", "scale_inflation=1"]


def job(**options: Any) -> None:
    runpy.run_path(str(JOB))["rules"](**options)


def test_stored_candidates_give_the_same_rows_as_their_run(made, tmp_path):
    run, whole, _ = made
    folder, out = Folder(str(tmp_path / "stored")), Folder(str(tmp_path / "out"))
    candidates_of(run, None, "run").write(folder, "run.parquet")
    job(output=out.uri, candidates=[folder.uri], rule=CHANGES)
    of = {(row["rule"], row["value"]): row for row in whole.read_json(JSON)}
    rows = out.read_json(JSON)
    tried = [("", None), ("min_group_windows", 16), ("thumbnail_side", 6), ("scale_inflation", 1)]
    assert [(row["rule"], row["value"]) for row in rows] == tried
    assert rows == [of[key] for key in tried] and rows[1]["changes"]
    assert out.read_json(STRATA) == [] and "by stratum" not in out.read_bytes(MARKDOWN).decode()


def test_with_a_truth_the_rows_tell_the_precision_and_the_strata_what_is_suspected(made, tmp_path):
    run, _, _ = made
    _, tried = read_candidates(run / artifact.SEARCH, 2)
    found = decide(tried, Config().verdict.false_alarm_rate, RULES)
    members = {family.cluster: family.n_candidates for family in as_verdict(tried, found, 0.05).families}
    # The trigger of cluster 9 is poison; one window of the other is a decoy, the rest are clean images.
    stored = candidates_of(run, None, "run")
    ids = stored.table["image_id"].to_pylist()
    poisoned, natural = {f"a#{300 + i:04d}" for i in range(10)}, {"a#0301"}
    columns = {
        "poisoned": [image_id in poisoned for image_id in ids],
        "decoy": [image_id == "a#0200" for image_id in ids],
        "poison_share": [0.75 if image_id in poisoned - natural else 0.5 for image_id in ids],
        "hit": [image_id != "a#0302" if image_id in poisoned else None for image_id in ids],
    }
    table = stored.table
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    known = replace(stored, table=table, about=stored.about | {"n_images": 1000, "n_poisoned": 10})
    known.write(Folder(str(tmp_path)), "one.parquet")
    out = Folder(str(tmp_path / "out"))
    job(output=out.uri, candidates=[f"{tmp_path}/one.parquet"], rule=["min_group_windows=16"])
    first, strict = out.read_json(JSON)
    assert set(members) == {2, 9} and first["members"] == sum(members.values())
    assert first["precision"] == pytest.approx(members[9] / (sum(members.values()) - 1))
    assert (strict["members"], strict["precision"]) == (0, None)
    own, among, clean = out.read_json(STRATA)
    assert (own["n"], among["n"], clean["n"]) == (9, 1, len(ids) - 11)
    assert (own["accuracy"], among["accuracy"], clean["accuracy"]) == (pytest.approx(8 / 9), 1, None)
    assert own["in_family"] * 9 + among["in_family"] == pytest.approx(members[9])
    assert clean["in_family"] * clean["n"] == pytest.approx(members[2] - 1)
    assert sum(one["suspected"] * one["n"] for one in (own, among, clean)) == pytest.approx(
        first["suspects"] - 1
    )
    text = out.read_bytes(MARKDOWN).decode()
    assert f"| {first['precision']:.3f} | 114 | poison |" in text and "| one | clean images | " in text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "give --run or --candidates"),
        ({"candidates": ["nowhere"]}, "nowhere holds no Parquet file"),
        ({"candidates": ["none.parquet"]}, r"There is no .*none\.parquet"),
        ({"run": ["x"], "rule": ["min_ncc=1"]}, "There is no rule 'min_ncc': use one of thumbnail_side, "),
        ({"run": ["x"], "rule": ["max_shift"]}, "give max_shift a whole number of at least 1"),
        ({"run": ["x"], "rule": ["max_kept=2.5"]}, "give max_kept a whole number of at least 1"),
        ({"run": ["x"], "rule": ["min_scale=nan"]}, "give min_scale a number of at least 0"),
        ({"run": ["x"], "rule": ["max_shift=12"]}, "smaller than a thumbnail's side"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, options, told):
    with pytest.raises(UserError, match=told):
        job(output=str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()
