"""A whole defence that decodes from smaller copies, killed while it makes them: every row is where it should
be, as it was stored."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from poisoncam_ray import artifact
from poisoncam_ray.folder import MANIFEST, Folder
from poisoncam_ray.research.demo import draw_corpus
from poisoncam_ray.verify import verify
from tests.small import SETTINGS, defend, rows_of

pytestmark = pytest.mark.cluster


def test_a_killed_run_with_copies_ends_and_gives_back_what_was_stored(tmp_path: Path) -> None:
    corpus, run = tmp_path / "corpus", tmp_path / "run"
    draw_corpus(str(corpus), n_images=240, n_categories=4, size=128, seed=5, shards=2)
    shard = corpus / "part-00000.parquet"
    table = pq.read_table(shard)
    cells = table["image"].to_pylist()
    cells[3] |= {"bytes": b"no image"}
    pq.write_table(
        table.set_column(table.schema.get_field_index("image"), "image", [cells]).cast(table.schema), shard
    )
    command = ["--input", str(corpus), "--output", str(run), *SETTINGS, "corpus.shrink_to=64"]
    index = run / artifact.INDEX
    process = defend(*command, wait=False)
    while not list((index / artifact.SHRUNK).glob("part-*")) and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (index / MANIFEST).exists()
    process = defend(*command)
    assert process.returncode == 0, process.said
    assert re.search(r"copies of \d+\.\d MB", process.said)
    assert verify(Folder(str(run))) == []
    stored = sorted(row["image"]["bytes"] for row in rows_of(corpus) if row["image"]["bytes"] != b"no image")
    kept, removed = (rows_of(run / side) for side in (artifact.CLEAN_ROWS, artifact.REMOVED_ROWS))
    assert sorted(row["image"]["bytes"] for row in kept + removed) == stored
    assert len(rows_of(run / artifact.DEAD_ROWS)) == 1
