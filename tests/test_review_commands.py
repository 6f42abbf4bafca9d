"""`restore`, `review` and `verify` as one types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from poisoncam_ray import artifact, review
from poisoncam_ray.commands.restore import restore
from poisoncam_ray.commands.review import review as review_command
from poisoncam_ray.commands.verify import verify as verify_command
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.program import as_app
from poisoncam_ray.review import Named
from poisoncam_ray.stages.clean import Clean
from poisoncam_ray.stages.report import Report
from poisoncam_ray.store import connect
from poisoncam_ray.verify import verify
from tests.fake_evidence import flag_images
from tests.fake_run import CONFIG as FAKE_CONFIG
from tests.fake_run import make_fake_run
from tests.reviewed import finish, go, judged_run
from tests.stages.test_keep_list import write_images, write_parquet
from tests.test_verify import FLAG, KEEP, change, finished


def call(*arguments: str) -> Result:
    return CliRunner().invoke(as_app(restore, review_command, verify_command), arguments)


def answer(*arguments: str) -> dict:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(*arguments: str) -> str:
    done = call(*arguments)
    assert isinstance(done.exception, UserError), done.output
    return str(done.exception)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Folder:
    """A run with two trigger families: 10 images removed for the first, 9 for the second."""
    fake = make_fake_run(tmp_path)
    made = Folder(fake.run)
    flag_images(made, 2)
    for name in (artifact.CLEAN_ROWS, artifact.REMOVED_ROWS, artifact.CLEAN):
        made.delete(name)
    go(fake.corpus, made, FAKE_CONFIG, [Clean(), Report()])
    # The stages before are made up.
    monkeypatch.setattr("poisoncam_ray.defence.stages", lambda: [Clean(), Report()])
    return made


def removed(run: Folder) -> list[str]:
    lines = run.read_bytes(f"{artifact.PAGE}/{artifact.REMOVED_CSV}").decode().splitlines()[1:]
    return [line.split('"')[1] for line in lines]


def test_ids_families_and_files_are_restored_and_removed_again(run, tmp_path):
    all_of_them = removed(run)
    assert len(all_of_them) == 19
    told = answer("restore", run.uri, "--ids", *all_of_them[:3], "--by", "ann", "--note", "logo")
    assert (told["kept"], told["removed"], told["restored"]) == (103, 16, {"ann": 3})
    assert told["entry"]["images"] == 3 and told["entry"]["note"] == "logo"
    assert removed(run) == all_of_them[3:]
    # By a file of ids, one a line; by one with a column, as a spreadsheet saves it; by a family.
    (tmp_path / "ids.txt").write_text("\n".join(all_of_them[3:5]))
    assert answer("restore", run.uri, "--file", f"{tmp_path}/ids.txt")["removed"] == 14
    table = run.read_bytes(f"{artifact.PAGE}/{artifact.RESTORED_CSV}")
    (tmp_path / "ids.csv").write_bytes(b"\xef\xbb\xbf" + table)
    assert answer("restore", run.uri, "--file", f"{tmp_path}/ids.csv", "--undo")["removed"] == 19
    assert answer("restore", run.uri, "--family", "2")["removed"] == 10
    assert answer("restore", run.uri, "--family", "2", "--undo")["removed"] == 19
    assert removed(run) == all_of_them


def test_a_review_is_logged_and_shown(run):
    assert answer("review", run.uri) == {"decisions": []}
    assert answer("review", run.uri, "--accept", "--family", "1", "--by", "ben")["removed"] == 19
    assert answer("review", run.uri, "--reject", "--family", "2", "--by", "ann")["restored"] == {"ann": 9}
    log = answer("review", run.uri)["decisions"]
    assert [(entry["action"], entry["family"], entry["who"]) for entry in log] == [
        ("accept", 1, "ben"),
        ("reject", 2, "ann"),
    ]
    shown = call("review", run.uri).stdout
    assert "accept family 1 (10 images)" in shown and "reject family 2 (9 images)" in shown
    assert review.whoever() in call("review", run.uri, "--accept", "--family", "1").stdout


def test_mistakes_are_told_and_change_nothing(run, tmp_path):
    before = removed(run)
    said = {
        "Not among the flagged images": ("restore", run.uri, "--ids", "nowhere"),
        "is of family 7": ("restore", run.uri, "--family", "7"),
        "Give either --family or ids": ("restore", run.uri),
        "either --family or ids of images": ("restore", run.uri, "--family", "1", "--ids", before[0]),
        "Not among the restored": ("restore", run.uri, "--ids", before[0], "--undo"),
        "cannot be read": ("restore", run.uri, "--file", f"{tmp_path}/none.txt"),
        "is not a run folder": ("restore", str(tmp_path / "none"), "--family", "1"),
        "--accept or --reject, not both": ("review", run.uri, "--accept", "--reject", "--family", "1"),
        "Give --accept or --reject with": ("review", run.uri, "--family", "1"),
        "not a run folder: give the --output": ("verify", str(tmp_path / "none")),
    }
    for words, arguments in said.items():
        assert words in refused(*arguments), arguments
    assert removed(run) == before and review.entries(run) == []


def test_a_decision_that_cannot_be_applied_yet_is_logged_and_says_so(run):
    def busy(*_):
        raise UserError("in use by another driver")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("poisoncam_ray.runner.Runner.run", busy)
        done = call("restore", run.uri, "--family", "2")
    assert str(done.exception) == "in use by another driver" and "The decision is logged." in done.output
    assert answer("restore", run.uri, "--family", "1")["removed"] == 0


def test_a_run_of_another_version_is_refused_in_one_sentence(run):
    about = run.read_json(artifact.RUN)
    about["config"]["search"]["gone"] = 1
    run.write_json(artifact.RUN, about)
    for command in (("restore", "--family", "1"), ("review",), ("verify",)):
        name, *options = command
        assert "was made by another version of poisoncam_ray" in refused(name, run.uri, *options)


def test_a_run_that_is_not_finished_is_refused(run):
    run.delete(f"{artifact.REPORT}/_manifest.json")
    assert "is not finished (Report is to be done)" in refused("restore", run.uri, "--family", "1")


def test_verify_names_each_defect_and_ends_with_a_code(tmp_path):
    run = finished(tmp_path, write_parquet)
    clean = call("verify", run.uri)
    assert clean.exit_code == 0 and "Counts, manifests and every image: no defect." in clean.stdout
    change(run, KEEP[write_parquet], "hash")
    done = call("verify", run.uri)
    line = next(line for line in done.stdout.splitlines() if line.startswith("wrong hash: "))
    assert KEEP[write_parquet] in line and ": expected " in line and ", found " in line
    assert done.exit_code == 1 and "1 defect." in done.stdout
    told = json.loads(call("verify", run.uri, "--json").stdout)["defects"]
    assert [defect["what"] for defect in told] == ["wrong hash"]
    assert call("verify", run.uri, "--quick").exit_code == 0


@pytest.mark.parametrize("write", [write_parquet, write_images])
def test_on_s3(tmp_path, s3, use_s3, write):
    use_s3(s3.environment())
    root = s3.uri(write.__name__)
    write(tmp_path / "in")
    fs, run = connect(root)[0], Folder(f"{root}/run")
    for path in (tmp_path / "in").rglob("*.*"):
        fs.pipe_file(f"{root}/in/{path.relative_to(tmp_path / 'in')}", Path(path).read_bytes())
    judged_run(f"{root}/in", run)
    go(f"{root}/in", run)
    finish(run)
    before = s3.objects(f"{write.__name__}/run/{artifact.REMOVED_ROWS}")
    assert verify(run) == [] and before
    for action in (review.RESTORE, review.UNDO):
        review.append(run, action, Named(ids=frozenset([FLAG[write]])), 1, "ann", "")
        go(f"{root}/in", run)
        finish(run)
        assert verify(run) == []
        now = s3.objects(f"{write.__name__}/run/{artifact.REMOVED_ROWS}")
        assert (now == before) == (action == review.UNDO)
