"""`poisoncam status`: a run in several states, on a disk and on a real S3 server, with a driver at work."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from poisoncam_ray import artifact, cli, defence, facts
from poisoncam_ray.commands.status import look, told
from poisoncam_ray.errors import UserError
from poisoncam_ray.fingerprint import fingerprint
from poisoncam_ray.folder import STARTED, Folder, Manifest
from poisoncam_ray.lease import LEASE, Lease
from poisoncam_ray.program import as_app
from poisoncam_ray.progress import Progress
from tests.fake_run import make_fake_run
from tests.test_lease import ELSEWHERE

__all__ = ["run_folder"]
from tests.test_lease import run_folder


def commit(run: Folder, name: str, said: facts.Facts) -> None:
    Manifest({"stage": name}, {}, fingerprint({}), seconds=12.4, facts=said.as_json()).write(run / name)


def begin(run: Folder) -> None:
    """Index is done, Pretrain begun."""
    run.write_json(artifact.RUN, {"format": artifact.FORMAT})
    commit(run, artifact.INDEX, facts.Indexed(240, 1, 4, 0, 0))
    Manifest({}, {}, "0").write(run / artifact.ENCODER, STARTED)


def write_lease(run: Folder, **changed: object) -> None:
    (run / LEASE).write_json("000001.json", ELSEWHERE | {"beat": 0, "released": False} | changed)


def lines(run: Folder, *options: str) -> list[str]:
    """What the command prints."""
    said = CliRunner().invoke(as_app(*cli.TOP), ["status", run.uri, *options], catch_exceptions=False)
    assert said.exit_code == 0, said.output
    return said.stdout.splitlines()


def test_the_titles_are_those_of_the_stages():
    assert list(artifact.TITLES.items()) == [(stage.name, stage.title) for stage in defence.stages()]


def test_a_run_at_work_says_how_far_it_is_and_who_works(run_folder):
    progress, now = Progress(), [0.0]
    progress.console.quiet, progress._clock = True, lambda: now[0]
    begin(run_folder)
    with Lease(run_folder, beat_s=0.05, work=progress.as_json), progress.stage("Pretrain"):
        progress.update(0, 100, "steps")
        now[0] = 20.0
        progress.update(40, 100, "steps", "loss 2.5")
        while not (found := look(run_folder))["work"] or not found["work"]["done"]:
            pass
        assert found["state"] == "running" and found["driver"]["silent_s"] <= 2
        assert found["work"] | {"began": ""} == {
            "stage": "Pretrain", "began": "", "done": 40, "total": 100, "unit": "steps", "note": "loss 2.5",
            "waiting": "", "rate": 2.0, "seconds_left": 30,
        }  # fmt: skip
        said = lines(run_folder)
        assert said[0].startswith("Running: process ") and found["driver"]["host"] in said[0]
        assert said[1].split(maxsplit=1) == ["Index", "240 images in 4 slices, 1 broken (12 s)"]
        assert said[2].split(maxsplit=1) == ["Pretrain", "40 of 100 steps, loss 2.5, 2.0/s, 30 s left"]
        assert said[3].split() == ["Embed", "–"]
        (line,) = lines(run_folder, "--json")
        assert json.loads(line)["stages"][1] == {"stage": "Pretrain", "state": "begun"}
    found = look(run_folder)
    assert (found["state"], found["work"], found["verdict"]) == ("stopped", None, None)
    assert lines(run_folder)[0].startswith("Stopped before the end")
    assert lines(run_folder)[2].split(maxsplit=1) == ["Pretrain", "begun, not done"]


def test_a_driver_that_is_silent_for_over_a_minute_is_said_to_be(tmp_path):
    run = Folder(str(tmp_path))
    begin(run)
    for seconds, state in ((30, "running"), (90, "silent"), (7200, "silent")):
        at = datetime.now(UTC) - timedelta(seconds=seconds)
        write_lease(run, at=at.isoformat(timespec="seconds"))
        found = look(run)
        assert found["state"] == state and seconds <= found["driver"]["silent_s"] < seconds + 10
    assert lines(run)[0].startswith(
        "Silent: process 7 on far, since noon, has not been heard for 2 h 00 min."
    )


@pytest.mark.parametrize(
    "work", [{}, {"stage": "Pretrain"}, {"done": "many", "total": 3, "unit": "steps"}, 7]
)
def test_a_lease_that_says_nothing_sensible_about_the_work_is_no_failure(tmp_path, work):
    run = Folder(str(tmp_path))
    begin(run)
    write_lease(run, work=work, at=datetime.now(UTC).isoformat())
    assert look(run)["work"] is None
    assert lines(run)[2].split(maxsplit=1) == ["Pretrain", "begun, not done"]


def test_a_driver_of_an_earlier_version_does_not_say_when_it_wrote(tmp_path):
    run = Folder(str(tmp_path))
    begin(run)
    write_lease(run)
    assert look(run)["state"] == "silent" and "unknown time" in lines(run)[0]


def test_a_killed_driver_of_this_machine_has_stopped(tmp_path):
    run = Folder(str(tmp_path))
    begin(run)
    with Lease(run):
        ours = (run / LEASE).read_json("000001.json")
    write_lease(run, machine=ours["machine"], pid=2**22 + 1, at=datetime.now(UTC).isoformat())
    assert look(run)["state"] == "stopped"


def test_a_finished_run_has_its_verdict_and_the_time_of_every_stage(tmp_path):
    run = Folder(make_fake_run(tmp_path).run)
    commit(run, artifact.REPORT, facts.Reported("[bold]page[/]", {}))
    found = look(run)
    assert (found["state"], found["driver"], found["verdict"], found["families"]) == (
        "finished",
        None,
        "poison",
        1,
    )
    assert [stage["state"] for stage in found["stages"]] == ["done"] * 10
    said = lines(run)
    assert said[0] == "Finished." and said[-1] == "Verdict: poison, 1 trigger family."
    # Summaries are shown as they are, whatever they hold.
    assert "Cluster   <img src=x onerror=alert(1)> 3 (2 min)" in said
    assert "Report    [bold]page[/] (12 s)" in said


def test_no_evidence_is_said(tmp_path):
    run = Folder(make_fake_run(tmp_path, poison=False).run)
    assert told(look(run))[-1] == "Verdict: no evidence of poison."


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        look(Folder(str(tmp_path)))


def test_a_driver_that_has_only_begun_is_shown(tmp_path):
    run = Folder(str(tmp_path))
    with Lease(run):
        found = look(run)
    assert found["state"] == "running" and {stage["state"] for stage in found["stages"]} == {"due"}


def test_watching_looks_again_until_the_driver_has_ended(tmp_path, monkeypatch):
    run = Folder(str(tmp_path))
    begin(run)
    lease = Lease(run).__enter__()
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            lease.__exit__(None, None, None)

    monkeypatch.setattr("poisoncam_ray.commands.status.time.sleep", sleep)
    states = [json.loads(line)["state"] for line in lines(run, "--watch", "--json")]
    assert states == ["running", "running", "stopped"] and waits == [10, 10]
