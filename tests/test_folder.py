"""The run folder: files are whole or absent, on a disk and on an object store."""

from __future__ import annotations

import pickle
import uuid

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray import artifact
from poisoncam_ray.folder import (
    MANIFEST,
    STARTED,
    Folder,
    Ledger,
    Manifest,
    absolute,
    part_index,
    part_name,
)

STAMP = Manifest({"stage": artifact.FEATURES, "seed": 3}, {artifact.INDEX: "ab"}, "cd")


@pytest.fixture(params=["local", "file", "memory"])
def folder(request, tmp_path) -> Folder:
    """The same folder named by path, by URI, and on an object store (fsspec's in memory)."""
    return Folder(
        {
            "local": str(tmp_path / "run"),
            "file": (tmp_path / "run").as_uri(),
            "memory": f"memory://{uuid.uuid4().hex}/run",
        }[request.param]
    )


def test_a_folder_that_is_not_there_is_empty(folder):
    assert folder.names() == [] and folder.parts() == []
    assert not folder.exists() and not folder.exists(MANIFEST)
    assert Manifest.read(folder) is None
    folder.delete("nothing")
    folder.delete()


def test_what_is_written_is_read(folder):
    folder.write_bytes("deep/er/a.bin", b"\0\1")
    folder.write_json("b.json", {"z": 1, "a": [None, "ü"]})
    folder.write_table("c.parquet", pa.table({"x": [1, 2], "y": ["a", None]}))
    tensors = {"t_KD": torch.rand(3, 4).T, "n": torch.tensor(7)}
    folder.write_tensors("d.safetensors", tensors)
    assert folder.read_bytes("deep/er/a.bin") == (folder / "deep" / "er").read_bytes("a.bin") == b"\0\1"
    assert folder.read_json("b.json") == {"a": [None, "ü"], "z": 1}
    assert folder.read_table("c.parquet").to_pydict() == {"x": [1, 2], "y": ["a", None]}
    assert folder.read_table("c.parquet", ["y"]).column_names == ["y"]
    assert folder.rows("c.parquet") == 2
    read = folder.read_tensors("d.safetensors")
    assert read.keys() == tensors.keys() and all(torch.equal(read[key], tensors[key]) for key in read)
    assert folder.names() == ["b.json", "c.parquet", "d.safetensors", "deep"]
    folder.delete("deep")
    assert "deep" not in folder.names()


def test_a_file_is_replaced_as_a_whole(folder):
    folder.write_bytes("a", b"a long first version")
    folder.write_bytes("a", b"short")
    assert folder.read_bytes("a") == b"short"
    assert folder.names() == ["a"]


def test_a_write_that_fails_leaves_the_old_file_and_no_visible_rest(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    folder.write_bytes("part-000000.parquet", b"old")

    def cut_off(scratch, target):
        raise OSError("killed here")

    monkeypatch.setattr("os.replace", cut_off)
    with pytest.raises(OSError, match="killed here"):
        folder.write_bytes("part-000000.parquet", b"new bytes")
    with pytest.raises(OSError, match="killed here"):
        folder.write_bytes("part-000001.parquet", b"new bytes")
    assert folder.read_bytes("part-000000.parquet") == b"old"
    assert folder.names() == folder.parts() == ["part-000000.parquet"]


def test_only_parts_are_parts(folder):
    for name in (
        "part-000001.parquet",
        "part-000000.parquet",
        "part-000002.parquet.tmp",
        "sizes.json",
        MANIFEST,
    ):
        folder.write_bytes(name, b"")
    assert folder.parts() == ["part-000000.parquet", "part-000001.parquet"]


def test_a_folder_travels_to_another_process(folder):
    folder.write_bytes("a", b"here")
    assert pickle.loads(pickle.dumps(folder)).read_bytes("a") == b"here"


def test_manifests_keep_every_field(folder):
    whole = Manifest(STAMP.identity, STAMP.inputs, "cd", Ledger(5, 2, 2, 1), 1.5, {"summary": "x"})
    STAMP.write(folder, STARTED)
    assert Manifest.read(folder) is None
    assert Manifest.read(folder, STARTED) == STAMP
    whole.write(folder)
    assert Manifest.read(folder) == whole


@given(st.integers(0, 999_999), st.integers(0, 999_999))
def test_parts_are_named_in_the_order_of_their_slices(a, b):
    assert part_index(part_name(a)) == a
    assert (part_name(a) < part_name(b)) == (a < b)


@pytest.mark.parametrize(
    ("counts", "balanced"),
    [((0, 0), True), ((5, 5), True), ((5, 3, 1, 1), True), ((5, 4), False), ((5, 5, 1), False)],
)
def test_a_ledger_balances_when_every_row_ended_in_one_place(counts, balanced):
    assert Ledger(*counts).balanced is balanced


def test_a_place_has_one_name(tmp_path):
    """`apply` puts the earlier run's name into its fingerprint: a slash more must not make it another run."""
    assert absolute("s3://bucket/run/") == absolute("s3://bucket/run") == "s3://bucket/run"
    assert absolute(f"{tmp_path}/") == absolute(str(tmp_path))
