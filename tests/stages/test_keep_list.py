"""Without a copy, `keep/` lists the kept rows: the tools that people have select by it what `clean/` would
have been."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from poisoncam_ray import artifact
from poisoncam_ray.corpus import Corpus, open_corpus
from poisoncam_ray.folder import Folder
from tests.ledger import Ends, defend
from tests.tars import image, plain_members, tar_bytes


def write_parquet(folder: Path) -> None:
    """Three shards, a broken image, a null, and a shard that keeps every row."""
    for i, (name, n) in enumerate({"train/a": 30, "train/b": 7, "val/c": 1}.items()):
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        images = [image(40 * i + j) for j in range(n)]
        images[n // 2] = images[n // 2][: 40 if n > 10 else None]
        table = pa.table({"image": images, "number": np.arange(n) + 100 * i})
        pq.write_table(table, path, row_group_size=8)


def write_images(folder: Path) -> None:
    for first, name in ((0, "cat"), (50, "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(9):
            (folder / name / f"{i}.png").write_bytes(image(first + i))
    (folder / "dog/4.png").write_bytes(b"no image")


def write_tars(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.tar").write_bytes(tar_bytes(plain_members(8)))
    (folder / "b.tar").write_bytes(tar_bytes([("x.png", image(91)), ("x.txt", b"1"), ("y.png", b"broken")]))


def both_ways(tmp_path: Path, corpus: Corpus) -> tuple[Ends, Folder, Folder]:
    """The same defence with a copy and without."""
    copied, listed = Folder(str(tmp_path / "copied")), Folder(str(tmp_path / "listed"))
    ends = defend(corpus, copied)
    assert defend(corpus, listed, copies=False) == ends
    return ends, copied, listed


def removed_files(run: Folder) -> dict[str, bytes]:
    root = Path(run.uri) / artifact.REMOVED_ROWS
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("write", [write_parquet, write_images, write_tars])
def test_the_list_is_what_clean_would_have_held(tmp_path, write):
    write(tmp_path / "in")
    ends, copied, listed = both_ways(tmp_path, open_corpus(str(tmp_path / "in"), rows_per_slice=9))
    assert not listed.exists(artifact.CLEAN_ROWS) and not copied.exists(artifact.KEEP_LIST)
    assert removed_files(listed) == removed_files(copied)
    keep = listed / artifact.KEEP_LIST
    tables = [keep.read_table(name) for name in keep.parts()]
    assert all(table.schema.equals(artifact.KEEP_SCHEMA) for table in tables)
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["image_id"] for row in rows] == ends.kept and ends.errors
    for row in rows:
        assert row["source"] == "." or row["image_id"] == f"{row['source']}#{row['row']}"
    if write is write_images:
        clean = Path(copied.uri) / artifact.CLEAN_ROWS
        files = {str(p.relative_to(clean)) for p in clean.rglob("*") if p.is_file()}
        assert files == {row["image_id"] for row in rows}


def clean_rows(run: Folder) -> list[tuple[bytes, int]]:
    paths = sorted((Path(run.uri) / artifact.CLEAN_ROWS).rglob("*.parquet"))
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    return list(zip(table["image"].to_pylist(), table["number"].to_pylist(), strict=True))


def test_duckdb_selects_by_the_list(tmp_path):
    write_parquet(tmp_path / "in")
    _, copied, listed = both_ways(tmp_path, open_corpus(str(tmp_path / "in")))
    rows = duckdb.sql(
        f"""
        SELECT image, number
        FROM read_parquet('{tmp_path}/in/**/*.parquet', filename = true, file_row_number = true) AS corpus
        SEMI JOIN '{listed.uri}/keep/*.parquet' AS keep
        ON corpus.filename = '{tmp_path}/in/' || keep.source AND corpus.file_row_number = keep."row"
        ORDER BY filename, file_row_number
        """
    ).fetchall()
    assert rows == clean_rows(copied)


def test_datasets_selects_by_the_list(tmp_path):
    from datasets import Dataset, concatenate_datasets

    write_parquet(tmp_path / "in")
    _, copied, listed = both_ways(tmp_path, open_corpus(str(tmp_path / "in")))
    keep = Dataset.from_parquet(
        [str(path) for path in sorted(Path(listed.uri, "keep").glob("*.parquet"))],
        cache_dir=str(tmp_path / "c"),
    ).to_pandas()
    kept = concatenate_datasets(
        [
            Dataset.from_parquet(f"{tmp_path}/in/{source}", cache_dir=str(tmp_path / "c")).select(rows)
            for source, rows in keep.groupby("source")["row"]
        ]
    )
    assert list(zip(kept["image"], kept["number"], strict=True)) == clean_rows(copied)
