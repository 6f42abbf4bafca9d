"""Folders of Delta, Iceberg, Lance and Hudi tables: their files are never taken for all of their rows."""

from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from poisoncam_ray.corpus import open_corpus
from tests.corpus.mistakes import refuse
from tests.corpus.tables import structs
from tests.tars import image, rows_of

TABLES = {
    "Delta": ("_delta_log/00000000000000000000.json", "part-00000.parquet"),
    "Hudi": (".hoodie/hoodie.properties", "part-00000.parquet"),
    "Iceberg": (
        "metadata/00001-5e2a41a1-6a0b-4b3c-9f0e-2f1f0c7c8f11.metadata.json",
        "data/00000-0-part.parquet",
    ),
    "Iceberg, by Hadoop": ("metadata/v3.metadata.json", "data/00000-0-part.parquet"),
    "Lance": ("_versions/1.manifest", "data/5e2a41a1.lance"),
}


def write(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"image": structs(2)}), folder / name)
        else:
            (folder / name).write_text("{}")


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("below", ["", "tables/pictures/"])
@pytest.mark.parametrize("format", ["auto", "parquet"])
def test_a_table_of_another_format_is_refused_by_name(tmp_path, monkeypatch, kind, below, format):
    """The other Parquet file would be read otherwise."""
    monkeypatch.setattr("poisoncam_ray.corpus.can_read_delta", lambda: False)
    write(tmp_path / "in", (*(below + name for name in TABLES[kind]), "other.parquet"))
    name = kind.partition(",")[0]
    refuse(f"in/{below}".rstrip("/") + f" is an? {name} table.*Parquet", tmp_path / "in", format=format)
    root = f"memory://{uuid.uuid4().hex}"
    fs = fsspec.filesystem("memory")
    fs.put(f"{tmp_path}/in/", f"{root}/", recursive=True)
    refuse(f" is an? {name} table", root, format=format)


def test_a_partition_of_a_delta_table_is_no_corpus(tmp_path):
    write(tmp_path, ("t/_delta_log/00000000000000000000.json", "t/a=1/b=x/p.parquet"))
    for part in ("t/a=1", "t/a=1/b=x/"):
        refuse("is one partition of the Delta table .*/t: give the whole table", tmp_path / part)
    write(tmp_path, ("plain/a=1/p.parquet",))
    assert len(rows_of(open_corpus(str(tmp_path / "plain/a=1")))) == 2


@pytest.mark.parametrize(
    "name",
    [
        "metadata/photo.metadata.json",
        "data/sir.lance/a.txt",
        "delta_log/a.txt",
        "my_delta_log.txt",
        "v1.metadata.json",
    ],
)
def test_names_that_only_look_alike_are_no_table(tmp_path, name):
    write(tmp_path, (name,))
    (tmp_path / "a.png").write_bytes(image(1))
    assert [row.data for row in rows_of(open_corpus(str(tmp_path)))] == [image(1)]
