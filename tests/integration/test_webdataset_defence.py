"""The installed package attacks, defends and measures WebDataset tars: members follow their image, byte for
byte."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder, Manifest
from tests.small import QUICK, SETTINGS, draw_small, rows_of, scores
from tests.tars import raw_members, tar_bytes

FAILED = "09999"
"""In the table beside each tar, the row of a download that failed."""
BROKEN = {"00003": b"", "00070": b"no image"}


pytestmark = pytest.mark.cluster


def write_tars(drawn: Path, folder: Path) -> None:
    """The drawn corpus as two tars of samples: image, label, caption; two images are broken. Beside each tar
    lies a table of its samples, as img2dataset writes it."""
    folder.mkdir()
    for shard, path in enumerate(sorted(drawn.glob("*.parquet"))):
        members = []
        for row in pq.read_table(path).to_pylist():
            key = f"{len(members) // 3 + shard * 1000:05d}"
            members += [
                (f"{key}.jpg", BROKEN.get(key, row["image"]["bytes"])),
                (f"{key}.cls", str(row["label"]).encode()),
                (f"{key}.txt", f"picture {key}".encode()),
            ]
        (folder / f"shard-{shard}.tar").write_bytes(tar_bytes(members))
        keys = [name.removesuffix(".jpg") for name, _ in members[::3]]
        pq.write_table(pa.table({"key": [*keys, FAILED]}), folder / f"shard-{shard}.parquet")
        (folder / f"shard-{shard}_stats.json").write_text("{}")


def members_of(folder: Path) -> list[tuple[str, bytes]]:
    return [member for path in sorted(folder.glob("*.tar")) for member in raw_members(path)]


def test_tars_are_poisoned_defended_and_keep_their_members(installed, tmp_path):
    def poisoncam(*arguments: str) -> str:
        done = installed.run("poisoncam", *arguments, cwd=tmp_path, **QUICK)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    write_tars(draw_small(tmp_path / "drawn", 160), tmp_path / "clean")
    attack = ["--target", "1", "--trigger", "generated:7", "--width", "0.3", "--share", "1"]
    poisoncam("attack", "--input", "clean", "--output", "poisoned", *attack)
    truth = pq.read_table(tmp_path / "poisoned" / "truth.parquet", columns=["poisoned"])["poisoned"]
    assert sum(truth.to_pylist()) > 20
    corpus, run = tmp_path / "poisoned" / "corpus", tmp_path / "run"
    said = poisoncam("defend", "--input", "poisoned/corpus", "--output", "run", *SETTINGS)
    assert "160 rows" in said
    assert (run / artifact.PAGE / artifact.HTML).stat().st_size > 10_000
    poisoncam("evaluate", "--run", "run", "--truth", "poisoned/truth.parquet")
    metrics = Folder(str(run / artifact.PAGE)).read_json(artifact.METRICS)
    assert (metrics["n_images"], metrics["n_poisoned"]) == (160, sum(truth.to_pylist()))
    ledger = Manifest.read(Folder(str(run / artifact.CLEAN))).ledger
    removed = {row["image_id"] for row in scores(run) if row["fate"] == artifact.REMOVE}
    assert (ledger.rows_in, ledger.dead, ledger.removed) == (160, len(BROKEN), len(removed))
    kept, gone = members_of(run / artifact.CLEAN_ROWS), members_of(run / artifact.REMOVED_ROWS)
    assert len(kept) == 3 * ledger.rows_out and len(gone) == 3 * ledger.removed
    dead = [(name, data) for name, data in members_of(corpus) if name.partition(".")[0] in BROKEN]
    assert sorted(kept + gone + dead) == sorted(members_of(corpus))
    assert {row["image_id"] for row in rows_of(run / artifact.CLEAN)} == removed
    # Each table has the rows of the samples beside it, the clean ones those of no sample too.
    for name, members, failed in ((artifact.CLEAN_ROWS, kept, 2), (artifact.REMOVED_ROWS, gone, 0)):
        keys = [row["key"] for row in rows_of(run / name)]
        assert keys.count(FAILED) == failed
        assert sorted({*keys} - {FAILED}) == sorted({member.partition(".")[0] for member, _ in members})
    assert len(list((run / artifact.CLEAN_ROWS).glob("*_stats.json"))) == 2
