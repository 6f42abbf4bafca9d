"""Progress: a bar on a terminal, lines in a log that become rarer, rates of what this attempt did."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console

from poisoncam_ray.folder import Manifest
from poisoncam_ray.progress import FIRST_S, LONGEST_S, Progress, duration, per_time
from tests.small import ROOT


class Log:
    """A log, and a clock that tests move."""

    def __init__(self) -> None:
        self.now, self.file = 1000.0, io.StringIO()
        console = Console(file=self.file, highlight=False, soft_wrap=True)
        self.progress = Progress(console, clock=lambda: self.now)

    def lines(self) -> list[str]:
        """What was printed since the last call, times of day left out."""
        text = re.sub(r" \d\d:\d\d:\d\d ", " ", self.file.getvalue())
        self.file.seek(0)
        self.file.truncate()
        return text.splitlines()


@pytest.fixture
def log() -> Log:
    return Log()


def test_a_log_line_has_the_time_counts_rate_and_what_is_left(log):
    with log.progress.stage("Embed"):
        log.progress.update(0, 400, "slices")
        log.now += 30
        log.progress.update(60, 400, "slices")
        line = log.file.getvalue().splitlines()[-1]
    assert re.fullmatch(r"Embed     \d\d:\d\d:\d\d 60 of 400 slices, 2\.0/s, 3 min left", line)


def test_lines_become_rarer_up_to_five_minutes(log):
    times = []
    with log.progress.stage("Embed"):
        log.progress.update(0, 100_000, "slices")
        assert log.lines() == ["Embed     …"]
        for second in range(1, 2000):
            log.now = 1000.0 + second
            log.progress.update(second, 100_000, "slices")
            if log.lines():
                times.append(second)
    waits = [later - earlier for earlier, later in zip([0, *times], times, strict=False)]
    assert waits == [15, 30, 60, 120, 240, *[300] * 5]
    assert (waits[0], max(waits)) == (FIRST_S, LONGEST_S)


def test_the_first_and_the_last_of_a_stage_are_always_there(log):
    with log.progress.stage("Embed"):
        for done in range(4):
            log.progress.update(done, 3, "slices")
    log.progress.finish("Embed", Manifest({}, {}, "0", seconds=2.0, facts={"summary": "3 features"}))
    assert log.lines() == ["Embed     …", "Embed     3 features (2 s)"]
    with log.progress.stage("Embed"):
        log.progress.update(0, 3, "slices")
        log.now += 16
        log.progress.update(2, 3, "slices")
        log.now += 1
        log.progress.update(3, 3, "slices")
    assert [line[:28] for line in log.lines()][1:] == [
        "Embed     2 of 3 slices, 7.5",
        "Embed     3 of 3 slices, 11/",
    ]


def test_work_of_an_earlier_attempt_is_shown_and_not_counted_in_the_rate(log):
    with log.progress.stage("Embed"):
        log.progress.update(900, 1000, "slices")
        assert log.lines() == ["Embed     …", "Embed     900 of 1,000 slices"]
        log.now += 20
        log.progress.update(920, 1000, "slices")
        assert log.lines() == ["Embed     920 of 1,000 slices, 1.0/s, 80 s left"]
        assert log.progress.work.as_json() | {"began": ""} == {
            "stage": "Embed", "began": "", "done": 920, "total": 1000, "unit": "slices", "note": "",
            "waiting": "", "rate": 1.0, "seconds_left": 80,
        }  # fmt: skip
    assert log.progress.work is None


def test_another_unit_begins_another_count(log):
    with log.progress.stage("Index"):
        log.progress.update(0, 500, "shards opened")
        log.now += 10
        log.progress.update(500, 500, "shards opened")
        log.progress.update(0, 100, "slices")
        log.now += 10
        log.progress.update(50, 100, "slices", "3 broken")
        assert log.lines()[1:] == ["Index     50 of 100 slices, 3 broken, 5.0/s, 10 s left"]


def test_steps_that_are_done_again_after_a_failure_begin_another_count(log):
    with log.progress.stage("Pretrain"):
        log.progress.update(0, 100, "steps")
        log.now += 10
        log.progress.update(50, 100, "steps")
        log.progress.update(40, 100, "steps")
        log.now += 10
        log.progress.update(50, 100, "steps", "loss 2.5")
        assert log.lines()[1:] == ["Pretrain  50 of 100 steps, loss 2.5, 1.0/s, 50 s left"]


def test_what_cannot_be_counted_says_how_long_it_takes(log):
    with log.progress.stage("Cluster"):
        for _ in range(20):
            log.now += 1
            log.progress.update(0, note="k-means: 12 clusters of 240 features, 20 iterations")
    assert log.lines()[1:] == ["Cluster   k-means: 12 clusters of 240 features, 20 iterations, 15 s so far"]


def test_waiting_is_said_once_then_rarely_and_ends_with_the_next_work(log):
    what = "waiting for 8 GPUs, the cluster has 4"
    with log.progress.stage("Pretrain"):
        log.progress.update(0, 100, "steps")
        log.now += 2
        log.progress.wait_for(what)
        assert log.lines()[1:] == [f"Pretrain  0 of 100 steps, {what}"]
        for _ in range(20):
            log.now += 2
            log.progress.wait_for(what)
        assert log.lines() == [f"Pretrain  0 of 100 steps, {what}"] * 1
        assert log.progress.work.as_json()["waiting"] == what
        log.progress.update(1, 100, "steps")
        assert log.progress.work.as_json()["waiting"] == ""
    assert not any("waiting" in line for line in log.lines())


def test_names_with_markup_and_brackets_are_shown_as_they_are(log):
    with log.progress.stage("Index"):
        log.now += 16
        log.progress.update(1, 2, "slices", "[bold]x[/]")
    assert "[bold]x[/]" in log.lines()[-1]


def test_nothing_is_printed_when_it_is_quiet():
    file = io.StringIO()
    progress = Progress(Console(file=file, quiet=True, force_terminal=True))
    with progress.stage("Embed"):
        progress.update(1, 2, "slices")
        assert progress.work.done == 1
    progress.skip("Embed")
    assert file.getvalue() == ""


BAR = """
import time
from poisoncam_ray.progress import Progress
progress = Progress()
with progress.stage("Embed"):
    progress.update(0, 400, "slices")
    for done in (100, 200):
        time.sleep(0.3)
        progress.update(done, 400, "slices")
    time.sleep(0.4)
print("ended")
"""


def test_a_terminal_has_one_line_with_a_bar_that_goes_away():
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen([sys.executable, "-c", BAR], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    said = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:
            break
        if not chunk:
            break
        said += chunk
    os.close(ours)
    assert process.wait(60) == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())
    drawn = [line for line in re.split(r"[\r\n]+", plain) if line.startswith("Embed")]
    assert drawn and all(len(line) <= 80 for line in drawn)
    assert "━" in drawn[-1] and "200 of 400 slices, " in drawn[-1] and "left" in drawn[-1]
    assert re.search(r"\d:\d\d:\d\d\s*$", drawn[-1]), "the elapsed time"
    # Each drawing takes the place of the one before: none ends a line, but the last, which is then erased.
    assert plain.count("\n") <= 2 and plain.rstrip().endswith("ended")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3599, "1 h 00 min"),
        (3900, "1 h 05 min"),
        (266_400, "3 d 2 h"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("rate", "words"),
    [(1234.5, "1,234/s"), (2.04, "2.0/s"), (0.5, "30/min"), (0.001, "3.6/h"), (1e-5, "0.0/h")],
)
def test_rates(rate, words):
    assert per_time(rate) == words
