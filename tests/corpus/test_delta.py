"""Delta tables, written by deltalake: the files of one version are read, and no others."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from poisoncam_ray.corpus import KEPT, REMOVED, delta, open_corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.runner import Runner
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.index import Index
from poisoncam_ray.store import connect
from tests.corpus.mistakes import refuse
from tests.tars import image, rows_of

LABELS = ["x y", "é", "b"]


def rows(numbers: range) -> pa.Table:
    return pa.table(
        {
            "image": pa.array([image(i) for i in numbers], pa.binary()),
            "label": [LABELS[i % 3] for i in numbers],
            "n": list(numbers),
        }
    )


@pytest.fixture
def table(tmp_path) -> Path:
    """Version 0: rows 0 … 8. Version 1: 9 … 11 too. Version 2: without 4 and all of label "b"."""
    folder = tmp_path / "table"
    write_deltalake(folder, rows(range(9)), partition_by=["label"])
    write_deltalake(folder, rows(range(9, 12)), mode="append")
    DeltaTable(folder).delete("n = 4 OR label = 'b'")
    return folder


LIVE = {0: range(9), 1: range(12), 2: [i for i in range(12) if i != 4 and i % 3 != 2]}


@pytest.mark.parametrize("version", [None, 0, 1, 2])
@pytest.mark.parametrize("format", ["auto", "delta"])
def test_the_rows_are_those_of_the_version(table, version, format):
    expected = {image(i) for i in LIVE[2 if version is None else version]}
    corpus = open_corpus(str(table), format=format, version=version)
    found = [row.data for row in rows_of(corpus)]
    assert set(found) == expected and len(found) == len(expected)
    files = {source.path for source in corpus.sources()}
    assert files < {path.relative_to(table).as_posix() for path in table.rglob("*.parquet")}
    assert [corpus.check(source) for source in corpus.sources()] == [None] * len(files)
    ids = [row.image_id for row in rows_of(corpus)][::-2]
    assert corpus.fetch(ids) == found[::-2]


def test_an_open_corpus_stays_with_its_version(table):
    corpus = open_corpus(str(table))
    before = corpus.sources()
    write_deltalake(table, rows(range(20, 30)), mode="append")
    assert corpus.sources() == before and len(open_corpus(str(table)).sources()) == len(before) + 3


def test_a_table_on_another_store_gives_what_the_disk_gives(table):
    root = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(f"{table}/", f"{root}/", recursive=True)
    for version in (None, 1):
        assert rows_of(open_corpus(root, version=version)) == rows_of(
            open_corpus(str(table), version=version)
        )


@pytest.mark.s3
def test_a_table_on_s3_gives_what_the_disk_gives(table, s3, use_s3):
    use_s3(s3.environment())
    root = f"s3://{s3.bucket}/{uuid.uuid4().hex}"
    fs, place = connect(root)
    fs.put(f"{table}/", f"{place}/", recursive=True)
    for version in (None, 1):
        assert rows_of(open_corpus(root, version=version)) == rows_of(
            open_corpus(str(table), version=version)
        )


def test_what_is_written_is_a_folder_of_plain_shards_in_the_partitions_folders(table, tmp_path):
    corpus = open_corpus(str(table))
    for unit in corpus.units():
        n = unit[-1].stop
        assert corpus.split(unit, [KEPT] * (n - 1) + [REMOVED], str(tmp_path / "k"), str(tmp_path / "r")) == (
            n - 1,
            1,
        )
    for name in ("k", "r"):
        files = {
            path.relative_to(tmp_path / name).as_posix()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        assert files == {source.path for source in corpus.sources()}
    hive = ds.partitioning(pa.schema([("label", pa.string())]), flavor="hive")
    found = pa.concat_tables(ds.dataset(tmp_path / name, partitioning=hive).to_table() for name in ("k", "r"))
    assert sorted(found["n"].to_pylist()) == list(LIVE[2]) and set(found["label"].to_pylist()) == set(
        LABELS[:2]
    )


def test_mistakes_are_named(table, tmp_path, monkeypatch):
    refuse("version 9 of the Delta table .* cannot be read", table, version=9)
    refuse("picture is missing in label=", table, image_column="picture")
    pq.write_table(pa.table({"image": [image(1)]}), tmp_path / "a.parquet")
    refuse("no Delta table in .*a.parquet", tmp_path / "a.parquet", format="delta")
    refuse("no Delta table: leave out corpus.version", tmp_path / "a.parquet", version=0)
    (gone,) = {path for path in DeltaTable(table, version=0).file_uris() if "label=b" in path}
    Path(gone).unlink()
    refuse("of the Delta table .* is gone: give a later corpus.version", table, version=0)
    assert len(rows_of(open_corpus(str(table)))) == len(LIVE[2])
    monkeypatch.setattr(delta.importlib.util, "find_spec", lambda name: None)
    refuse(r"is a Delta table.*pip install 'poisoncam-ray\[delta\]'", table)
    refuse(r"is a Delta table: install .*pip install 'poisoncam-ray\[delta\]'", table, format="delta")


def edit_log(table: Path, **changes: dict) -> None:
    """Change the actions of the first commit, as other writers would have written them."""
    path = table / "_delta_log/00000000000000000000.json"
    actions = [json.loads(line) for line in path.read_text().splitlines()]
    for action in actions:
        for kind in action:
            action[kind] |= changes.get(kind, {})
    path.write_text("\n".join(map(json.dumps, actions)))


def features(*names: str) -> dict:
    return {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": names, "writerFeatures": names}


INLINE = {
    "storageType": "i",
    "pathOrInlineDv": "wi5b=000010000siXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L",
    "sizeInBytes": 44,
    "cardinality": 6,
}
ON_DISK = {
    "storageType": "u",
    "pathOrInlineDv": "ab^-aqEH.-t@S}K{vb[*k^",
    "offset": 4,
    "sizeInBytes": 40,
    "cardinality": 2,
}


@pytest.fixture
def plain(tmp_path) -> Path:
    write_deltalake(tmp_path / "plain", rows(range(6)).drop_columns("label"))
    return tmp_path / "plain"


@pytest.mark.parametrize("vector", [INLINE, ON_DISK])
def test_deletion_vectors_are_refused_and_not_overlooked(plain, vector):
    edit_log(plain, protocol=features("deletionVectors"))
    assert len(rows_of(open_corpus(str(plain)))) == 6  # allowed, but there are none
    edit_log(plain, add={"deletionVector": vector})
    refuse("has deletion vectors: rewrite", plain)


def test_what_would_be_read_wrongly_is_refused(plain):
    for name in ("catalogManaged", "variantType", "not_known_yet"):
        edit_log(plain, protocol=features("timestampNtz", name))
        refuse("Delta table .* export", plain)
    edit_log(
        plain,
        protocol=features("columnMapping"),
        metaData={"configuration": {"delta.columnMapping.mode": "name"}},
    )
    refuse("Delta table .* export", plain)


@pytest.mark.parametrize(
    "path", ["s3://other/x.parquet", "/etc/x.parquet", "../x.parquet", "%2E%2E/x.parquet"]
)
def test_files_that_lie_elsewhere_are_refused(plain, path):
    edit_log(plain, add={"path": path})
    refuse("outside the Delta table|leaves the corpus", plain)


def test_no_name_in_a_log_leads_out_of_the_folder_that_it_is_copied_to(plain):
    store = fsspec.filesystem("memory")
    store.put(str(plain), "/climbing", recursive=True)
    store.pipe("/climbing/_delta_log/../../../climbed.json", b"{}")
    with pytest.raises(UserError, match=r"climbed\.json' leaves the corpus"):
        open_corpus("memory://climbing")


def test_a_file_that_is_a_link_out_of_the_table_is_refused_or_followed(plain, tmp_path):
    (path,) = plain.glob("*.parquet")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    refuse("is a symbolic link that leaves the folder: give --follow-links", plain)
    corpus = open_corpus(str(plain), follow_links=True)
    assert len(corpus.sources()) == 1 and len(rows_of(corpus)) == 6


def test_a_log_that_is_no_log_is_one_sentence(plain):
    (plain / "_delta_log/00000000000000000000.json").write_text("garbage")
    refuse("The log of the Delta table .* cannot be read", plain)


def test_a_run_is_begun_again_with_the_same_files_only(table, tmp_path):
    def start(*settings: str) -> Runner:
        config = load_config(overrides=["encoder.image_size=16", *settings])
        return Runner(str(table), str(tmp_path / "run"), config, [Index()])

    first = start()
    assert set(first.sources) == {source.path for source in open_corpus(str(table)).sources()}
    assert first.identities == start("corpus.version=2").identities
    assert first.identities != start("corpus.version=1").identities
