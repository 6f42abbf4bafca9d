"""Folders that `datasets.save_to_disk` wrote are read, and written so that `load_from_disk` opens them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from poisoncam_ray.corpus import DEAD, KEPT, REMOVED, Corpus, open_corpus
from poisoncam_ray.errors import UserError
from tests.corpus.mistakes import refuse
from tests.tars import image, rows_of

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "boxes": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
        "depth": datasets.Array2D((2, 3), "int32"),
    }
)
N, TEST = 25, 7


def saved(numbers: range) -> datasets.Dataset:
    columns = {
        "image": [{"bytes": image(i), "path": f"{i}.png"} for i in numbers],
        "label": [i % 2 for i in numbers],
        "boxes": [[[i, 0, 1, 2.5]] * (i % 3) for i in numbers],
        "depth": [[[i, 1, 2], [3, 4, 5]] for i in numbers],
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A DatasetDict: train in two shards of several record batches, test in one."""
    datasets.disable_progress_bars()
    both = datasets.DatasetDict(train=saved(range(N)), test=saved(range(100, 100 + TEST)))
    both.save_to_disk(tmp_path / "in", num_shards={"train": 2, "test": 1})
    return tmp_path / "in"


def split(corpus: Corpus, fates: list[int], folder: Path) -> None:
    left = list(fates)
    for unit in corpus.units():
        n = unit[-1].stop
        corpus.split(unit, left[:n], str(folder / "clean"), str(folder / "removed"))
        left = left[n:]
    corpus.finish(str(folder / "clean"), str(folder / "removed"), dict)


def plain(dataset: datasets.Dataset) -> list[dict]:
    return dataset.cast_column("image", datasets.Image(decode=False)).to_list()


@pytest.mark.parametrize("format", ["auto", "arrow"])
def test_a_saved_dataset_is_read(folder, format):
    corpus = open_corpus(str(folder), format=format, rows_per_slice=4)
    expected = [image(i) for i in (*range(100, 100 + TEST), *range(N))]
    assert [row.data for row in rows_of(corpus)] == expected
    assert [len(unit) for unit in corpus.units()] == [2, 4, 3]
    # A run folder is compared by the JSON files as well.
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {source.path for source in corpus.sources()} == files
    assert {corpus.check(source) for source in corpus.sources()} == {None}
    assert corpus.slices(corpus.sources()) == corpus.slices()
    one = open_corpus(str(folder / "test"))
    assert [row.data for row in rows_of(one)] == expected[:TEST]


def test_both_outputs_open_with_load_from_disk(folder, tmp_path):
    fates = [KEPT, REMOVED, DEAD, KEPT] * 8
    split(open_corpus(str(folder)), fates, tmp_path)
    whole = datasets.load_from_disk(folder)
    rows = [*plain(whole["test"]), *plain(whole["train"])]
    for name, fate in (("clean", KEPT), ("removed", REMOVED)):
        out = datasets.load_from_disk(tmp_path / name)
        assert list(out) == list(whole) and out["train"].features == FEATURES
        wanted = [row for row, f in zip(rows, fates, strict=True) if f == fate]
        assert [*plain(out["test"]), *plain(out["train"])] == wanted
        assert out["train"][0]["image"].size == (4, 4)
        info = Path("train/dataset_info.json")
        assert (tmp_path / name / info).read_bytes() == (folder / info).read_bytes()
        # datasets keys its caches by the fingerprint: a result for all rows is none for these.
        assert out["train"]._fingerprint != whole["train"]._fingerprint


def test_removed_names_only_what_was_removed_and_an_earlier_try_leaves_nothing(folder, tmp_path):
    corpus = open_corpus(str(folder))
    split(corpus, [REMOVED] * (TEST + N), tmp_path)
    assert [len(part) for part in datasets.load_from_disk(tmp_path / "clean").values()] == [0, 0]
    split(corpus, [KEPT] * (TEST + N - 1) + [REMOVED], tmp_path)
    out = datasets.load_from_disk(tmp_path / "removed")
    assert {name: len(part) for name, part in out.items()} == {"train": 1}
    assert plain(datasets.load_from_disk(tmp_path / "clean")["test"]) == plain(saved(range(100, 100 + TEST)))
    split(corpus, [KEPT] * (TEST + N), tmp_path)
    assert not [path for path in (tmp_path / "removed").rglob("*") if path.is_file()]


def test_a_dead_shard_is_left_out_and_the_others_open(folder, tmp_path):
    shard = folder / "train/data-00001-of-00002.arrow"
    shard.write_bytes(shard.read_bytes()[:-900])
    corpus = open_corpus(str(folder))
    (problem,) = [p for p in map(corpus.check, corpus.sources()) if p]
    assert (problem.source, problem.kind) == ("train/data-00001-of-00002.arrow", "unreadable_shard")
    assert problem.rows is None
    rows = rows_of(corpus)
    assert [row.error and row.error[0] for row in rows] == [None] * (TEST + 13) + ["unreadable_shard"]
    split(corpus, [DEAD if row.error else KEPT for row in rows], tmp_path)
    assert plain(datasets.load_from_disk(tmp_path / "clean")["train"]) == plain(saved(range(13)))


def test_json_files_that_datasets_did_not_write_are_one_sentence(folder):
    state = json.loads((folder / "test/state.json").read_text())

    def refused(match: str, **changes) -> None:
        (folder / "test/state.json").write_text(json.dumps(state | changes))
        refuse(match, folder)

    refused("names a selection of rows.*flatten_indices", _indices_data_files=[{"filename": "indices.arrow"}])
    refused("shard test/other.arrow is gone", _data_files=[{"filename": "other.arrow"}])
    for files in (
        [{"filename": "../x.arrow"}],
        [{"filename": "x.txt"}],
        {"a": 1},
        [1],
        [{"filename": "x.arrow"}] * 2,
    ):
        refused("test/state.json is not what datasets.save_to_disk writes", _data_files=files)
    for text in ("[]", "{", "[" * 99_999):
        (folder / "test/state.json").write_text(text)
        refuse("test/state.json is not what", folder)
    for path in folder.rglob("state.json"):
        path.unlink()
    refuse("no state.json", folder)
    refuse("single Arrow file", folder / "test/data-00000-of-00001.arrow")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dataset_dict.json", '{"splits": 5}'),
        ("dataset_dict.json", '{"splits": [1]}'),
        ("dataset_dict.json", "{"),
        ("train/dataset_info.json", "["),
    ],
)
def test_every_json_file_is_read_before_any_work(folder, name, text):
    (folder / name).write_text(text)
    refuse(f"{name} is not what datasets.save_to_disk writes", folder)


def test_a_json_file_without_end_is_not_read(folder):
    with (folder / "dataset_dict.json").open("ab") as file:
        file.truncate(2**40)
    refuse("dataset_dict.json is not what datasets.save_to_disk writes", folder)


@pytest.mark.parametrize("name", ["train/dataset_info.json", "train/state.json", "dataset_dict.json"])
def test_no_json_file_is_a_way_out_of_the_folder(folder, tmp_path, name):
    (folder / name).rename(tmp_path / "secret")
    (folder / name).symlink_to(tmp_path / "secret")
    refuse(f"{name} is a symbolic link that leaves", folder)


# ---------------------------------------------------------------- one shard


def stream(table: pa.Table, batch: int = 6, **options) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=batch)
    return sink.getvalue().to_pybytes()


def one(folder: Path, data: bytes) -> Corpus:
    """A saved dataset of this shard and a whole one."""
    (folder / "one").mkdir(exist_ok=True)
    files = {"a.arrow": data, "b.arrow": stream(pa.table({"image": [image(1)]}))}
    for name, content in files.items():
        (folder / "one" / name).write_bytes(content)
    (folder / "one/state.json").write_text(
        json.dumps({"_data_files": [{"filename": name} for name in files]})
    )
    return open_corpus(str(folder / "one"), rows_per_slice=4)


def fault(corpus: Corpus) -> str:
    problem = corpus.check(corpus.sources()[0])
    assert problem and problem.source == "a.arrow" and problem.reason.isprintable()
    (dead, alive) = rows_of(corpus)
    assert dead.error == (problem.kind, problem.reason) and alive.data == image(1)
    return problem.reason


IMAGES = pa.table({"image": [image(i) for i in range(20)], "n": range(20)})


def test_what_datasets_does_not_write_is_a_dead_shard(tmp_path):
    coded = IMAGES.append_column("c", pa.array(["x"] * 20).dictionary_encode())
    assert "by a dictionary" in fault(one(tmp_path, stream(coded)))
    assert "compressed" in fault(one(tmp_path, stream(IMAGES, compression="zstd")))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, IMAGES.schema) as writer:
        writer.write_table(IMAGES)
    assert "no Arrow stream at byte 0" in fault(one(tmp_path, sink.getvalue().to_pybytes()))
    assert fault(one(tmp_path, b"neither this nor that" * 99)) and fault(one(tmp_path, b"\xff" * 6))
    assert "no schema" in fault(one(tmp_path, b""))


def test_a_header_is_believed_no_further_than_the_file_reaches(tmp_path):
    data = stream(IMAGES)
    head = 8 + struct.unpack_from("<I", data, 4)[0]
    for place in (4, head + 4):
        long = bytearray(data)
        struct.pack_into("<I", long, place, 2**31 - 8)
        assert "a header of" in fault(one(tmp_path, bytes(long)))
    assert "ends early" in fault(one(tmp_path, data[:-200]))


def test_a_damaged_record_batch_costs_its_own_rows(tmp_path):
    data = stream(IMAGES)
    place = data.index(image(7)) - 40
    at = data.rindex(struct.pack("<I", len(image(6))), 0, place + 40)
    broken = bytearray(data)
    struct.pack_into("<i", broken, at, -5)
    corpus = one(tmp_path, bytes(broken))
    rows = rows_of(corpus)
    assert [row.row for row in rows if row.error] == list(range(6, 12))
    assert {row.error[0] for row in rows if row.error} == {"unreadable"}
    unit = corpus.units()[0]
    fates = [DEAD if row.error else KEPT for row in rows[:20]]
    assert corpus.split(unit, fates, str(tmp_path / "k"), str(tmp_path / "r")) == (14, 0)
    with pytest.raises(UserError, match=r"a\.arrow cannot be read"):
        corpus.split(unit, [KEPT] * 19 + [REMOVED], str(tmp_path / "k2"), str(tmp_path / "r2"))
    assert not list((tmp_path / "k2").glob("*"))
