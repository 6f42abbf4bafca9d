"""Opening a corpus: the format is recognised, and mistakes are named in one sentence."""

from __future__ import annotations

import uuid

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.errors import UserError
from tests.corpus.mistakes import refuse
from tests.corpus.tables import structs
from tests.tars import image, rows_of


def test_mistakes_of_place_and_format(tmp_path):
    refuse("does not exist", tmp_path / "nowhere")
    refuse("does not exist", "memory://nowhere-at-all")
    refuse("cannot be used", "nope://bucket/x")
    refuse("is empty", tmp_path)
    refuse("format zip is not known", tmp_path, format="zip")
    refuse("rows_per_slice", tmp_path, rows_per_slice=0)
    (tmp_path / "_SUCCESS").touch()
    refuse("is empty", tmp_path)
    (tmp_path / "train.zip").touch()
    refuse(r"not recognised .*train\.zip", tmp_path)
    refuse("no images", tmp_path, format="folder")
    refuse(r"no \.parquet files", tmp_path, format="parquet")
    refuse(r"no \.tar files", tmp_path, format="webdataset")
    (tmp_path / "train.tar.gz").touch()
    refuse(r"train\.tar\.gz is compressed: unpack", tmp_path)
    (tmp_path / "train.tar.gz").unlink()
    (tmp_path / "a.jpg").write_bytes(image(0))
    assert len(rows_of(open_corpus(str(tmp_path)))) == 1
    refuse("single file", tmp_path / "a.jpg")
    pq.write_table(pa.table({"image": structs(2)}), tmp_path / "b.parquet")
    refuse("mixes 1 Parquet files and 1 images", tmp_path)
    (tmp_path / "c.tar").touch()
    refuse("mixes 1 Parquet files and 1 tar files and 1 images.*parquet or webdataset or folder", tmp_path)
    (tmp_path / "c.tar").unlink()
    assert len(rows_of(open_corpus(str(tmp_path), format="parquet"))) == 2
    assert len(rows_of(open_corpus(str(tmp_path), format="folder"))) == 1


@pytest.mark.parametrize("key", ["a//b.png", "/b.png", "b.png?versionId=x.png"])
def test_keys_that_would_be_read_as_other_files_are_refused(key, monkeypatch):
    root = f"memory://{uuid.uuid4().hex}"
    fs = fsspec.filesystem("memory")
    fs.pipe_file(f"{root}/b.png", image(0))
    path = fs._strip_protocol(root)
    listed = {f"{path}/{name}": {"name": f"{path}/{name}", "type": "file"} for name in ("b.png", key)}
    monkeypatch.setattr(type(fs), "find", lambda *_, **__: listed)
    with pytest.raises(UserError, match="is no path of a file: rename"):
        open_corpus(root)
