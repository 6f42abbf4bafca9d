"""Files that lose no row are copied by the store or the kernel: whole, equal, apart from the input, and never
another version of it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from poisoncam_ray import s3 as patient
from poisoncam_ray import store
from poisoncam_ray.corpus import KEPT, REMOVED, Corpus, open_corpus
from poisoncam_ray.corpus.shardfile import copy_whole
from poisoncam_ray.errors import StoreAwayError, UserError
from tests.tars import image, plain_members, tar_bytes

N = 6


def write_shard(folder: Path, format: str) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / f"a.{format}"
    if format == "tar":
        path.write_bytes(tar_bytes(plain_members(N)))
    else:
        table = pa.table({"image": [image(i) for i in range(N)]})
        # Pages and footers that our own writer does not make.
        pq.write_table(table, path, data_page_size=100, write_statistics=False, compression="gzip")
    return path.name


def keep_all(corpus: Corpus, kept: str, removed: str) -> None:
    (unit,) = corpus.units()
    assert corpus.split(unit, np.full(N, KEPT), kept, removed) == (N, 0)


@pytest.fixture
def no_bytes_here(monkeypatch):
    def refuse(*_):
        raise AssertionError("the bytes pass through this process")

    monkeypatch.setattr("poisoncam_ray.corpus.shardfile.copy_range", refuse)
    monkeypatch.setattr("poisoncam_ray.corpus.parquet.open_writer", refuse)


@pytest.mark.parametrize("format", ["parquet", "tar"])
def test_a_shard_that_keeps_every_row_stays_as_it_is(tmp_path, format, no_bytes_here):
    name = write_shard(tmp_path / "in", format)
    keep_all(open_corpus(str(tmp_path / "in")), str(tmp_path / "kept"), str(tmp_path / "removed"))
    whole = (tmp_path / "in" / name).read_bytes()
    assert (tmp_path / "kept" / name).read_bytes() == whole
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [name]


def test_images_of_a_folder_are_copied_by_the_kernel_and_checked(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for i in range(N):
        (tmp_path / "in" / f"{i}.png").write_bytes(image(i))
    copied, copy = [], store._copy_in_kernel
    monkeypatch.setattr(store, "_copy_in_kernel", lambda *fds: (copied.append(1), copy(*fds)))
    corpus = open_corpus(str(tmp_path / "in"))
    keep_all(corpus, str(tmp_path / "kept"), str(tmp_path / "removed"))
    assert len(copied) == N
    assert [(tmp_path / "kept" / f"{i}.png").read_bytes() for i in range(N)] == [image(i) for i in range(N)]
    with pytest.raises(UserError, match=r"The image 3\.png changed since it was indexed"):
        others = {f"{i}.png": hashlib.sha256(image(i + (i == 3))).hexdigest() for i in range(N)}
        corpus.split(corpus.units()[0], np.full(N, KEPT), str(tmp_path / "k"), str(tmp_path / "r"), others)
    assert not (tmp_path / "k").exists()


@pytest.mark.parametrize("format", ["parquet", "tar"])
def test_a_program_that_writes_into_the_output_leaves_the_input_alone(tmp_path, format):
    name = write_shard(tmp_path / "in", format)
    before = (tmp_path / "in" / name).read_bytes()
    keep_all(open_corpus(str(tmp_path / "in")), str(tmp_path / "kept"), str(tmp_path / "removed"))
    with (tmp_path / "kept" / name).open("r+b") as file:
        file.write(b"spoilt")
        file.truncate(100)
    assert (tmp_path / "in" / name).read_bytes() == before


def test_a_shard_that_was_removed_from_and_is_whole_again_leaves_no_removed_rows(tmp_path):
    write_shard(tmp_path / "in", "parquet")
    corpus = open_corpus(str(tmp_path / "in"))
    (unit,) = corpus.units()
    fates = np.array([REMOVED] + [KEPT] * (N - 1))
    corpus.split(unit, fates, str(tmp_path / "kept"), str(tmp_path / "removed"))
    keep_all(corpus, str(tmp_path / "kept"), str(tmp_path / "removed"))
    assert not any((tmp_path / "removed").iterdir())


@pytest.mark.parametrize("moment", ["before", "while"])
def test_a_shard_that_changed_is_refused_and_nothing_is_left(tmp_path, monkeypatch, moment):
    name = write_shard(tmp_path / "in", "tar")
    corpus = open_corpus(str(tmp_path / "in"))
    (unit,) = corpus.units()
    copy = store._copy_in_kernel

    def touch(*_):
        os.utime(tmp_path / "in" / name, ns=(1, 1))

    def copy_and_touch(*descriptors):
        copy(*descriptors)
        touch()

    if moment == "before":
        touch()
    else:
        monkeypatch.setattr(store, "_copy_in_kernel", copy_and_touch)
    with pytest.raises(UserError, match=r"a\.tar changed since it was indexed"):
        copy_whole(corpus.uri, unit[0], str(tmp_path / "kept"))
    assert not any((tmp_path / "kept").glob("*"))


def test_where_the_kernel_cannot_copy_the_bytes_are_read_and_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "another device")

    name = write_shard(tmp_path / "in", "tar")
    monkeypatch.setattr("os.copy_file_range", refuse)
    keep_all(open_corpus(str(tmp_path / "in")), str(tmp_path / "kept"), str(tmp_path / "removed"))
    assert (tmp_path / "kept" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    monkeypatch.setattr("os.copy_file_range", lambda *_: 0)
    assert not store.copy_file(str(tmp_path / "in"), name, str(tmp_path / "other"))
    assert not any((tmp_path / "other").iterdir())


def test_other_stores_read_and_write(tmp_path):
    name = write_shard(tmp_path / "in", "tar")
    assert not store.copy_file(str(tmp_path / "in"), name, "memory://copies")
    keep_all(open_corpus(str(tmp_path / "in")), "memory://copies/kept", "memory://copies/removed")
    assert store.read_bytes("memory://copies/kept", name) == (tmp_path / "in" / name).read_bytes()


@pytest.fixture
def counted(monkeypatch) -> Counter[str]:
    """How often each S3 method was called."""
    calls: Counter[str] = Counter()
    attempt = patient.PatientS3._attempt

    async def count(self, method, *parameters, **arguments):
        calls[method] += 1
        return await attempt(self, method, *parameters, **arguments)

    monkeypatch.setattr(patient.PatientS3, "_attempt", count)
    return calls


@pytest.mark.parametrize("pieces", [False, True], ids=["at once", "in pieces"])
def test_the_server_copies_and_no_byte_comes_here(s3, use_s3, tmp_path, monkeypatch, counted, pieces):
    use_s3(s3.environment())
    if pieces:
        monkeypatch.setattr(patient, "COPY_PIECE", 5 * 2**20)
    data = tar_bytes([*plain_members(N), ("big.bin", os.urandom(12 * 2**20))])
    root = s3.uri(f"copies-{pieces}")
    store.write_bytes(f"{root}/in", "deep/a b+ü.tar", data)
    (unit,) = open_corpus(f"{root}/in").units()
    counted.clear()
    copy_whole(f"{root}/in", unit[0], f"{root}/kept")
    methods = set(counted)
    assert store.read_bytes(f"{root}/kept", "deep/a b+ü.tar") == data
    assert not methods & {"get_object", "put_object", "upload_part"}
    assert methods & {"copy_object", "upload_part_copy"} == {"upload_part_copy" if pieces else "copy_object"}
    assert not pieces or counted["upload_part_copy"] == 3
    # Written again after it was listed: not copied.
    store.write_bytes(f"{root}/in", "deep/a b+ü.tar", data[::-1])
    with pytest.raises(UserError, match="changed since it was indexed"):
        store.copy_file(f"{root}/in", "deep/a b+ü.tar", f"{root}/other", unit[0].version.split()[1])
    assert not store.exists(f"{root}/other")


def test_a_server_that_refuses_to_copy_is_read_from(s3, use_s3, monkeypatch, counted):
    use_s3(s3.environment())
    attempt = patient.PatientS3._attempt

    async def refuse(self, method, *parameters, **arguments):
        if method == "copy_object":
            raise PermissionError("not here")
        return await attempt(self, method, *parameters, **arguments)

    data, root = tar_bytes(plain_members(N)), s3.uri("refused")
    store.write_bytes(f"{root}/in", "a.tar", data)
    (unit,) = open_corpus(f"{root}/in").units()
    monkeypatch.setattr(patient.PatientS3, "_attempt", refuse)
    copy_whole(f"{root}/in", unit[0], f"{root}/kept")
    assert store.read_bytes(f"{root}/kept", "a.tar") == data


@pytest.mark.parametrize("fault", ["503", "reset", "lost_ack"])
def test_a_copy_outlasts_faults_of_the_store(s3, chaos, use_s3, monkeypatch, fault):
    use_s3(s3.environment(chaos.endpoint))
    monkeypatch.setattr(patient, "COPY_PIECE", 5 * 2**20)
    data, root = os.urandom(6 * 2**20), s3.uri(f"faulty-{fault}")
    store.write_bytes(f"{root}/in", "a.tar", data)
    chaos.inject(fault, 3, methods={"PUT", "POST"})
    copied = store.copy_file(f"{root}/in", "a.tar", f"{root}/kept")
    assert chaos.left < 3 and (copied or fault == "lost_ack")
    if not copied:
        (unit,) = open_corpus(f"{root}/in").units()
        copy_whole(f"{root}/in", unit[0], f"{root}/kept")
    assert store.read_bytes(f"{root}/kept", "a.tar") == data


def test_a_store_that_is_away_is_not_taken_for_one_that_refuses(s3, chaos, use_s3, monkeypatch):
    use_s3(s3.environment(chaos.endpoint))
    monkeypatch.setattr(patient, "PATIENCE_S", 1.0)
    store.write_bytes(s3.uri("away"), "a.tar", b"data")
    chaos.inject("503", 100, methods={"PUT"})
    with pytest.raises(StoreAwayError):
        store.copy_file(s3.uri("away"), "a.tar", s3.uri("kept"))


class KilledError(Exception):
    """As if the process had ended here. No BaseException: the thread that speaks to S3 would swallow it."""


def test_a_copy_that_is_killed_leaves_nothing_and_is_made_again(tmp_path, monkeypatch):
    name = write_shard(tmp_path / "in", "tar")
    corpus, kept = open_corpus(str(tmp_path / "in")), str(tmp_path / "kept")

    def half(source: int, sink: int) -> None:
        os.copy_file_range(source, sink, 1000)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(store, "_copy_in_kernel", half)
        with pytest.raises(KilledError):
            keep_all(corpus, kept, str(tmp_path / "removed"))
    assert not store.exists(kept, name)
    keep_all(corpus, kept, str(tmp_path / "removed"))
    assert store.read_bytes(kept, name) == store.read_bytes(corpus.uri, name)


def test_a_copy_by_the_server_that_is_killed_leaves_nothing_and_is_made_again(s3, use_s3, monkeypatch):
    use_s3(s3.environment())
    monkeypatch.setattr(patient, "COPY_PIECE", 5 * 2**20)
    data, root = os.urandom(12 * 2**20), s3.uri("killed")
    store.write_bytes(f"{root}/in", "a.tar", data)
    attempt = patient.PatientS3._attempt
    for method in ("create_multipart_upload", "upload_part_copy", "complete_multipart_upload"):

        async def kill(self, called, *parameters, method=method, **arguments):
            if called == method and arguments.get("PartNumber", 2) == 2:
                raise KilledError
            return await attempt(self, called, *parameters, **arguments)

        with monkeypatch.context() as patch:
            patch.setattr(patient.PatientS3, "_attempt", kill)
            with pytest.raises(KilledError):
                store.copy_file(f"{root}/in", "a.tar", f"{root}/kept")
        assert not store.exists(f"{root}/kept", "a.tar")
    assert store.copy_file(f"{root}/in", "a.tar", f"{root}/kept")
    assert store.read_bytes(f"{root}/kept", "a.tar") == data
