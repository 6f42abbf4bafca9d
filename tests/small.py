"""A corpus and settings so small that the whole defence takes half a minute, and what it leaves behind."""

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
    "search.race.first=16",
    "search.per_cluster=1",
    "search.chunk=6",
    "search.min_live=6",
    # Every candidate is taken for poison: every stage has work, on a corpus without a backdoor too.
    "verdict.false_alarm_rate=1",
    "classify.models=2",
    "classify.steps=8",
    "classify.batch_size=16",
    "classify.top_k=6",
    "resources.actors=1",
    # Runs are compared bit by bit: none may depend on what was measured on a busy machine.
    "pretrain.precision=float32",
    "resources.precision=float32",
]


# Ray Train's controller looks at its workers every two seconds, also at the end of the training.
QUICK = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}


def draw_small(folder: Path, n_images: int = 240) -> Path:
    """The demo's pictures as a Parquet corpus in two shards."""
    draw_corpus(str(folder), n_images=n_images, n_categories=4, size=48, seed=5, shards=2)
    return folder


def defend(
    *arguments: str, wait: bool = True, timeout: float = 900, environment: dict[str, str] | None = None
) -> subprocess.Popen:
    """Run jobs/defend.py as a process of its own, as a user does.

    Args:
        arguments: of the command.
        wait: whether to wait for its end.
        timeout: seconds to wait.
        environment: variables that are set in addition to those of this process.

    Returns:
        The process; when it has ended, `said` holds what it wrote.
    """
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "defend.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | QUICK | (environment or {}),
    )
    if wait:
        process.said = process.communicate(timeout=timeout)[0]
    return process


def scores(run: Path) -> list[dict]:
    """The score of every image, as Judge writes it."""
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


def parquet_digests(folder: Path) -> dict[str, str]:
    """Digest of every Parquet file."""
    return {name: digest for name, (digest, _) in stamps(folder).items() if name.endswith(".parquet")}


def rows_of(folder: Path) -> list[dict]:
    """The rows of all Parquet files that lie directly in the folder."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
