"""A defence that is told to stop, and one whose shard changes under a worker: exit codes and messages."""

from __future__ import annotations

import signal
import subprocess

import pyarrow.parquet as pq
import pytest

from tests.small import SETTINGS, defend, draw_small

pytestmark = pytest.mark.cluster


def wait_for(process: subprocess.Popen, words: str) -> None:
    for line in process.stdout:
        if line.startswith(words):
            return
    raise AssertionError(f"ended before {words}")


def test_stopped_twice_then_a_shard_changes_under_a_worker(tmp_path):
    corpus = draw_small(tmp_path / "corpus", 160)
    command = ["--input", str(corpus), "--output", str(tmp_path / "run"), *SETTINGS]
    for stage, number in (("Pretrain", signal.SIGINT), ("Embed", signal.SIGTERM)):
        process = defend(*command, wait=False)
        wait_for(process, f"{stage:<9} …")
        process.send_signal(number)
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 128 + number, said
        assert f"error Ended by {number.name}." in said
        assert "The same command resumes" in said and "Traceback" not in said

    process = defend(*command, wait=False)
    wait_for(process, "Embed     …")
    shard = corpus / "part-00001.parquet"
    pq.write_table(pq.read_table(shard).slice(0, 20), shard)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 2, said
    first = said[said.index("error ") :].splitlines()[0]
    assert first.startswith("error The file part-00001.parquet changed since it was indexed")
    assert "Traceback" not in said
