"""What the memory benchmark measures with; the peaks themselves are nobody's promise."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest

from poisoncam_ray import artifact
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.decode import decode
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.benchmark.memory import Watch, draw_tiny_corpus, markdown, measure_memory
from poisoncam_ray.research.benchmark.processes import Sampler, descendants, private_mib, sample, store_mib
from poisoncam_ray.settings import load_config
from tests.small import ROOT, stamps

MIB = 2**20


def test_tiny_images_decode_and_no_two_are_the_same(tmp_path):
    draw_tiny_corpus(Folder(str(tmp_path)), 70_000, seed=3)
    corpus = open_corpus(str(tmp_path), rows_per_slice=1024)
    slices = corpus.slices()
    assert sum(piece.stop - piece.start for piece in slices) == 70_000
    rows = [row.data for piece in slices for row in corpus.read(piece)]
    assert len(set(rows)) == 70_000
    assert all(decode(data, 16, 100).shape == (3, 16, 16) for data in rows[::7_000])
    drawn = stamps(tmp_path)
    draw_tiny_corpus(Folder(str(tmp_path)), 70_000, seed=3)
    assert stamps(tmp_path) == drawn


def test_own_memory_counts_and_shared_memory_does_not():
    before = private_mib(os.getpid())
    # Not from the heap, which may have held so much before.
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
        own[:] = b"1" * len(own)
        assert private_mib(os.getpid()) - before > 56
    shared = SharedMemory(create=True, size=64 * MIB)
    try:
        before = private_mib(os.getpid())
        shared.buf[:] = b"1" * len(shared.buf)
        assert private_mib(os.getpid()) - before < 8
    finally:
        shared.close()
        shared.unlink()


def test_children_of_children_are_found():
    sleep = "import time; print('up', flush=True); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleep!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        found = descendants(os.getpid())
        assert process.pid in found
        assert len(set(found) & set(descendants(process.pid))) == 1
    finally:
        for pid in [*descendants(process.pid), process.pid]:
            os.kill(pid, 9)
        process.communicate()


def test_workers_and_the_object_store_are_seen(ray_cluster):
    import ray

    def hold(seconds: float) -> int:
        block = np.ones(256 * MIB, np.uint8)
        time.sleep(seconds)
        return int(block[0])

    block = ray.put(np.ones(32 * MIB, np.uint8))
    sampler = Sampler()
    sampler.start()
    ray.get(ray.remote(hold).options(num_cpus=0.1).remote(3))
    sampler.stop()
    assert sampler.peaks.worker > 256
    assert sampler.peaks.store > 31
    assert sampler.peaks.ray > 10
    assert sampler.peaks.driver >= 10
    assert store_mib() > 31
    del block
    assert sample().driver > 0


def test_a_cluster_of_ones_own_is_asked_for(ray_cluster, tmp_path):
    with pytest.raises(UserError, match="new process"):
        measure_memory(load_config(), Folder(str(tmp_path)), 10)


def test_stages_measured_before_a_kill_stay(tmp_path):
    folder = Folder(str(tmp_path))
    for title in ("Index", "Embed"):
        with Watch(folder).stage(title):
            pass
    found = Watch(folder).stages
    assert [at["stage"] for at in found] == ["Index", "Embed"]
    assert all(at["driver"] > 0 for at in found)


def test_the_table_tells_growth():
    def measured(rows: int, driver: float) -> dict:
        at = {"stage": "Index", "seconds": 1.0, "driver": driver, "worker": 100.0, "ray": 70.0, "store": 0.0}
        files = {"work/1_index/part-*.parquet": {"files": rows // 10, "bytes": 50 * rows}}
        return {"rows": rows, "stages": [at], "files": files}

    lines = markdown([measured(1000, 200.0), measured(16_000, 210.0)]).splitlines()
    assert "| 16,000 | Index | 1 | 210 | 100 | 70 | 0 |" in lines
    assert "| Index | 1.05 | 1.00 | 1.00 | – |" in lines
    assert "| work/1_index/part-*.parquet | 1,600 | 800,000 | 50.00 |" in lines


@pytest.mark.cluster
def test_every_stage_is_measured(tmp_path):
    command = [sys.executable, str(ROOT / "jobs" / "benchmark.py"), "--output", str(tmp_path)]
    command += ["--memory", "300", "cluster.k=4", "pretrain.batch_size=32"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    measured = json.loads((tmp_path / "memory.json").read_text())
    assert measured[0]["rows"] == 300
    before, after = (
        ["Index", "Shuffle", "Pretrain", "Embed"],
        ["Search", "Verdict", "Classify", "Judge", "Clean", "Report"],
    )
    titles = [*before, "Cluster", *after]
    assert [at["stage"] for at in measured[0]["stages"]] == titles
    assert all(at["driver"] > 0 for at in measured[0]["stages"])
    assert measured[0]["files"]["work/1_index/part-*.parquet"]["files"] == 1
    assert (tmp_path / "memory.md").read_text() in ran.stdout
    shuffled = Folder(str(tmp_path / "rows-300" / "run" / artifact.WORK / "shuffled")).read_json(
        "_manifest.json"
    )
    assert shuffled["facts"]["rows"] == 9 * 32
