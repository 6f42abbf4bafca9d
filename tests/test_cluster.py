"""The cluster of the tests itself."""

from __future__ import annotations

import subprocess
import sys

from tests.small import ROOT

# In a process of its own: what does not end in time loses all processes below this one.
SHUT_DOWN = """
import subprocess, threading, ray
from tests.cluster import shut_down_ray
below = subprocess.Popen(["sleep", "600"])
ray.shutdown = {shutdown}
shut_down_ray({seconds})
print(below.poll())
below.kill()
"""


def shut_down(shutdown: str, seconds: float) -> subprocess.CompletedProcess[str]:
    code = SHUT_DOWN.format(shutdown=shutdown, seconds=seconds)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )


def test_a_shutdown_that_waits_for_ever_is_told_and_left():
    done = shut_down("threading.Event().wait", 0.5)
    assert done.stdout == "-9\n"
    assert "in shut_down_ray" in done.stderr


def test_a_shutdown_that_ends_stops_nothing_else():
    done = shut_down("lambda: None", 60)
    assert (done.stdout, done.stderr) == ("None\n", "")
