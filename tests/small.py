"""A corpus and settings small enough that the whole defence takes a minute."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.demo import draw_corpus

ROOT = Path(__file__).parents[1]
SETTINGS = [
    "corpus.rows_per_slice=64",
    "pretrain.epochs=2",
    "pretrain.batch_size=64",
    "pretrain.hidden_dim=64",
    "pretrain.out_dim=32",
    "pretrain.checkpoint_every=2",
    "pretrain.workers=1",
    "cluster.k=12",
    "search.masks=16",
    "search.refine=false",
    "search.flip_images=24",
    "search.per_cluster=1",
    "search.chunk=6",
    "search.min_live=6",
    # Whatever is found is taken for poison: every stage has work, on a corpus without a backdoor too.
    "verdict.false_alarm_rate=1",
    "classify.models=2",
    "classify.steps=8",
    "classify.batch_size=16",
    "classify.top_k=6",
    "resources.actors=1",
]


def draw_small(folder: Path, n_images: int = 240) -> Path:
    draw_corpus(str(folder), n_images=n_images, n_categories=4, size=48, seed=5, shards=2)
    return folder


def defend(
    *arguments: str, wait: bool = True, timeout: float = 900, environment: dict[str, str] | None = None
) -> subprocess.Popen:
    """jobs/defend.py as its own process, as a user runs it, with `environment` besides ours."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "defend.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | (environment or {}),
    )
    if wait:
        process.said = process.communicate(timeout=timeout)[0]
    return process


def verdicts(run: Path) -> list[dict]:
    folder = Folder(str(run)) / artifact.SCORES
    return [row for name in folder.parts() for row in folder.read_table(name).to_pylist()]


def stamps(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and modification time of every file: equal where nothing was written again."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_of(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
