"""Labels and rewritten copies of corpora of every format, as attacks and evaluation use them."""

from __future__ import annotations

import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.research.attacks import poison_corpus
from poisoncam_ray.research.corpora import labels, rewrite
from tests.corpus.tables import structs, write_rich
from tests.ledger import write_parquet
from tests.tars import corpus_of, image, plain_members, raw_members, rows_of, tar_bytes


@pytest.fixture
def rich(tmp_path) -> Path:
    """`in/` with three Parquet shards, the second of them empty."""
    write_rich(tmp_path / "in")
    return tmp_path


@pytest.fixture
def pictures(tmp_path) -> Path:
    """`in/` with images at three depths."""
    for i, name in enumerate(["cat/1.png", "cat/x/[2]*.PNG", "dog/3 ä#.png", "top.png", "dog/4.png"]):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(i))
    return tmp_path


# ---------------------------------------------------------------- labels


def test_labels_of_a_column(rich):
    corpus = open_corpus(str(rich / "in"), rows_per_slice=10)
    slices = corpus.slices()
    assert labels(corpus, slices[1], "label") == [str(i) for i in range(10, 20)]
    assert labels(corpus, slices[3], "label") == []
    assert labels(corpus, slices[4], "nothing") == [""] * 7
    with pytest.raises(UserError, match=r"no column classs .*label"):
        labels(corpus, slices[0], "classs")


def test_labels_of_samples(tmp_path):
    corpus = corpus_of(tmp_path, tar_bytes(plain_members(4)))
    (slice_,) = corpus.slices()
    assert labels(corpus, slice_, "cls") == labels(corpus, slice_, "label") == ["0", "1", "2", "0"]
    assert labels(corpus, slice_, "colour") == ["c0", "c1", "c2", "c3"]
    assert labels(corpus, slice_, "none") == [""] * 4
    with pytest.raises(UserError, match=r"member shape or a JSON field .*cls, json, png"):
        labels(corpus, slice_, "shape")
    odd = [b"[" * 5000, b"[1]", b'{"x": 1}', b"\xff", b"1" * 5000]
    members = [m for i, d in enumerate(odd) for m in ((f"{i}.json", d), (f"{i}.jpg", b""))]
    corpus = corpus_of(tmp_path, tar_bytes(members))
    assert labels(corpus, corpus.slices()[0], "x") == ["", "", "1", "", ""]


def test_what_macos_writes_beside_a_label_is_none(tmp_path):
    beside = bytes.fromhex("00051607") + bytes(80)
    members = [
        twin
        for name, data in plain_members(3)
        for twin in ((name.replace("set/", "set/._"), beside), (name, data))
    ]
    corpus = corpus_of(tmp_path, tar_bytes(members))
    assert labels(corpus, corpus.slices()[0], "cls") == ["0", "1", "2"]


def test_the_label_of_a_file_is_its_folder(pictures):
    corpus = open_corpus(str(pictures / "in"), rows_per_slice=2)
    assert [x for s in corpus.slices() for x in labels(corpus, s, "")] == ["cat", "x", "dog", "dog", ""]


def test_dead_rows_have_no_label(tmp_path):
    pq.write_table(pa.table({"image": structs(2)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"img": structs(7), "n": list("abcdefg")}), tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"broken")
    corpus = open_corpus(str(tmp_path), rows_per_slice=3)
    assert [labels(corpus, s, "n") for s in corpus.slices()[1:]] == [[""] * 3, [""] * 3, [""], [""]]


# ---------------------------------------------------------------- rewritten copies


def test_rewriting_parquet_replaces_the_images_alone(rich):
    corpus = open_corpus(str(rich / "in"), rows_per_slice=4)
    new = {f"train/a.parquet#{i}": image(900 + i) for i in (0, 2, 3, 11, 22)}
    for unit in corpus.units():
        here = {i: d for i, d in new.items() if i.startswith(unit[0].source)}
        rewrite(corpus, unit, here, str(rich / "out"))
    again = open_corpus(str(rich / "out"), rows_per_slice=4)
    cuts = [[(s.source, s.start, s.stop) for s in c.slices()] for c in (corpus, again)]
    assert cuts[0] == cuts[1]
    for old, row in zip(rows_of(corpus), rows_of(again), strict=True):
        assert row.data == new.get(row.image_id, old.data)
    table, written = (pq.read_table(rich / d / "train/a.parquet") for d in ("in", "out"))
    assert written.schema.equals(table.schema, check_metadata=True)
    assert written.drop_columns("image").equals(table.drop_columns("image"))
    paths = [pa.compute.struct_field(t["image"], "path").to_pylist() for t in (table, written)]
    assert paths[0] == paths[1]
    for wrong in ("train/a.parquet#23", "train/c.parquet#0"):
        with pytest.raises(ValueError, match="no rows of"):
            rewrite(corpus, corpus.units()[0], {wrong: b""}, str(rich / "out2"))


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())])
def test_rewriting_other_binary_types(tmp_path, kind):
    values = pa.array([image(1), None, image(1)], pa.binary())
    values = values.dictionary_encode() if pa.types.is_dictionary(kind) else values.cast(kind)
    pq.write_table(pa.table({"a.b": values, "n": [1, 2, 3]}), tmp_path / "x.parquet")
    corpus = open_corpus(str(tmp_path))
    rewrite(corpus, corpus.units()[0], {"x.parquet#1": b"new"}, str(tmp_path / "out"))
    assert [row.data for row in rows_of(open_corpus(str(tmp_path / "out")))] == [image(1), b"new", image(1)]


def test_shards_that_cannot_be_read_are_copied_as_they_are(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_parquet(folder / "a.parquet")
    (folder / "b.parquet").write_bytes(b"broken")
    pq.write_table(pa.table({"img": structs(7)}), folder / "c.parquet")
    corpus = open_corpus(str(folder))
    for unit in corpus.units():
        rewrite(corpus, unit, {}, str(tmp_path / "out"))
    for name in ("b", "c"):
        assert (tmp_path / f"out/{name}.parquet").read_bytes() == (folder / f"{name}.parquet").read_bytes()


def test_rewriting_a_tar_replaces_the_image_alone(tmp_path):
    long = "x" * 150
    members = [
        ("a.png", image(1)),
        ("a.txt", b"one"),
        (f"{long}.png", image(2)),
        ("bad", b""),
        ("c.png", b"3"),
    ]
    corpus = corpus_of(tmp_path, tar_bytes(members)[:-512] + b"!" * 512)
    (unit,) = corpus.units()
    rewrite(corpus, unit, {"0.tar#1": b"new" * 300}, str(tmp_path / "out"))
    before, after = (raw_members(tmp_path / name / "0.tar") for name in ("in", "out"))
    assert [m for m in before if m[0] != f"{long}.png"] == [m for m in after if m[0] != f"{long}.png"]
    again = open_corpus(str(tmp_path / "out"))
    assert [r.data for r in rows_of(again)] == [image(1), b"new" * 300, None, None]
    # Damage is copied, too.
    assert (tmp_path / "out/0.tar").read_bytes().endswith(b"!" * 512)
    rewrite(corpus, unit, {}, str(tmp_path / "same"))
    assert (tmp_path / "same/0.tar").read_bytes() == (tmp_path / "in/0.tar").read_bytes()
    for wrong in ("0.tar#9", "1.tar#0", "0.tar#2"):
        with pytest.raises(ValueError, match=r"no rows of|no image to replace"):
            rewrite(corpus, unit, {wrong: b""}, str(tmp_path / "wrong"))


def test_rewriting_a_folder_replaces_the_files(pictures):
    corpus, out = open_corpus(str(pictures / "in"), rows_per_slice=3), str(pictures / "out")
    for unit in corpus.units():
        here = {"dog/4.png": b"new"} if "dog/4.png" in unit[0].files else {}
        rewrite(corpus, unit, here, out)
    assert {r.image_id: r.data for r in rows_of(open_corpus(out))} == {
        r.image_id: b"new" if r.image_id == "dog/4.png" else r.data for r in rows_of(corpus)
    }
    with pytest.raises(ValueError, match="no such images"):
        rewrite(corpus, corpus.units()[0], {"top.png": b""}, out)


@pytest.mark.parametrize("layout", ["parquet", "webdataset", "folder"])
def test_a_copy_goes_to_any_store_but_never_to_the_corpus_itself(rich, pictures, layout):
    (rich / "in/0.tar").write_bytes(tar_bytes(plain_members(4)))
    corpus = open_corpus(str(rich / "in"), format=layout, rows_per_slice=4)
    root = f"memory://{uuid.uuid4().hex}"
    for unit in corpus.units():
        rewrite(corpus, unit, {}, root)
        with pytest.raises(UserError, match="is the corpus itself"):
            rewrite(corpus, unit, {}, f"{rich}/in/")
    assert rows_of(open_corpus(root, rows_per_slice=4)) == rows_of(corpus)


def test_attack_on_a_webdataset(tmp_path):
    members = [
        m if not m[0].endswith("png") else (m[0], image(i, 40)) for i, m in enumerate(plain_members(9))
    ]
    corpus_of(tmp_path, tar_bytes(members))
    result = poison_corpus(str(tmp_path / "in"), str(tmp_path / "out"), ["1"], share=1.0, label_column="cls")
    assert (result["n_images"], result["n_poisoned"]) == (9, 3)
    truth = pq.read_table(tmp_path / "out/truth.parquet").to_pylist()
    assert [row["poisoned"] for row in truth] == [i % 3 == 1 for i in range(9)]
    old, new = open_corpus(str(tmp_path / "in")), open_corpus(str(tmp_path / "out/corpus"))
    changed = [a.data != b.data for a, b in zip(rows_of(old), rows_of(new), strict=True)]
    assert changed == [row["poisoned"] for row in truth]
    assert labels(new, new.slices()[0], "colour") == [f"c{i}" for i in range(9)]
