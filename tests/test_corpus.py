"""corpus: every row read once under a unique id, kept rows written back unchanged, mistakes named."""

import io
import os
import pickle
import uuid
from decimal import Decimal

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from poisoncam_ray.corpus.shards import cut

from poisoncam_ray.corpus import FolderCorpus, ParquetCorpus, Problem, open_corpus
from poisoncam_ray.corpus.parquet import _rows_of
from poisoncam_ray.errors import UserError


def image(i: int, format: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 3), (i % 256, i // 256, 7)).save(out, format)
    return out.getvalue()


def structs(n: int, first: int = 0) -> pa.Array:
    return pa.array([{"bytes": image(i), "path": f"{i}.png"} for i in range(first, first + n)])


def rich_table(n: int = 23) -> pa.Table:
    """Columns of many types, a null image, and pandas' and Hugging Face's metadata."""
    frame = pd.DataFrame(
        {
            "key": ["same"] * n,
            "when": pd.date_range("2026-01-01", periods=n, tz="Europe/Berlin"),
            "shade": pd.Categorical(["b", "a", None][: n % 3 + 1] * n, ["c", "b", "a"], ordered=True)[:n],
            "label": np.arange(n, dtype=np.int16),
        },
        index=pd.Index(np.arange(n) * 10, name="number"),
    )
    table = pa.Table.from_pandas(frame)
    images = structs(n).to_pylist()
    images[2] = None
    images[3] = {"bytes": None, "path": "gone.png"}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = table.add_column(1, pa.field("image", kind, metadata={"unit": "px"}), pa.array(images, kind))
    extra = {
        "boxes": pa.array(
            [[{"x": j, "tags": ["t"] * j} for j in range(i % 4)] if i % 5 else None for i in range(n)]
        ),
        "nothing": pa.nulls(n),
        "words": pa.array([["one", "two", None][i % 3] for i in range(n)]).dictionary_encode(),
        "map": pa.array([[("k", i)] for i in range(n)], pa.map_(pa.string(), pa.int8())),
        "price": pa.array([Decimal(i) / 4 for i in range(n)], pa.decimal128(12, 3)),
        "vector": pa.array([[float(i), -1.0] for i in range(n)], pa.list_(pa.float32(), 2)),
        "half": pa.array(np.arange(n, dtype=np.float16)),
        "blobs": pa.array([[b"x" * i, None] for i in range(n)], pa.list_(pa.large_binary())),
    }
    for name, values in extra.items():
        table = table.append_column(name, values)
    return table.replace_schema_metadata({**table.schema.metadata, b"huggingface": b'{"info": 1}'})


def rows_of(corpus):
    return [row for part in corpus.slices() for row in corpus.read(part)]


def count(uri: str, layout: str) -> int:
    """Rows under a URL, counted without the code under test."""
    fs, root = fsspec.core.url_to_fs(uri)
    if layout == "folder":
        return len([p for p in fs.find(root) if p.lower().endswith(".png")])
    return sum(pq.read_metadata(fs.open(p)).num_rows for p in fs.find(root))


@pytest.fixture
def rich(tmp_path):
    folder = tmp_path / "in" / "train"
    folder.mkdir(parents=True)
    pq.write_table(rich_table(), folder / "a.parquet", row_group_size=5, compression="zstd")
    pq.write_table(rich_table().slice(0, 0), folder / "b.parquet")
    pq.write_table(rich_table(7), folder / "c.parquet", compression={"image.bytes": "none", "key": "gzip"})
    return tmp_path


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "in"
    for i, name in enumerate(["cat/1.png", "cat/x/[2]*.PNG", "dog/3 ä#.png", "top.png", "dog/4.png"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(i))
    (root / "captions.txt").write_text("not an image")
    for hidden in (".cache/9.png", "_old/9.png", "dog/._3.png"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_bytes(b"")
    return tmp_path


# ---------------------------------------------------------------- reading


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 17))
def test_cut_covers_every_row_once(groups, size):
    ranges = cut(groups, size)
    assert [r for a, b in ranges for r in range(a, b)] == list(range(sum(groups)))
    assert all(b - a <= size for a, b in ranges)
    assert all(b > a for a, b in ranges) or ranges == [(0, 0)]
    if groups and max(groups) <= size:
        edges = {sum(groups[:i]) for i in range(len(groups) + 1)}
        assert all(a in edges and b in edges for a, b in ranges)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 150), min_size=1, max_size=3).filter(any),
    st.integers(1, 90),
    st.integers(1, 200),
    st.booleans(),
)
def test_every_row_is_read_once_in_order(tmp_path_factory, counts, group, size, nested):
    folder = tmp_path_factory.mktemp("c")
    expected = []
    for shard, n in enumerate(counts):
        values = [b"%d-%d" % (shard, i) if i % 7 else None for i in range(n)]
        cells = [{"bytes": v} for v in values] if nested else values
        kind = pa.struct([("bytes", pa.binary())]) if nested else pa.binary()
        name = f"{shard}.parquet"
        pq.write_table(pa.table({"pic": pa.array(cells, kind)}), folder / name, row_group_size=group)
        expected += [(i, f"{name}#{i}", v) for i, v in enumerate(values)]
    corpus = open_corpus(str(folder), rows_per_slice=size)
    assert [(r.row, r.image_id, r.data) for r in rows_of(corpus)] == expected
    ids = [i for _, i, v in expected if v is not None][::-3]
    data = {i: v for _, i, v in expected}
    assert corpus.fetch(ids + ids[:2]) == [data[i] for i in ids + ids[:2]]


def test_parquet_slices_units_and_labels(rich):
    corpus = open_corpus(str(rich / "in"), rows_per_slice=10)
    assert corpus.image_column == "image"
    slices = corpus.slices()
    assert [(s.index, s.source[-9:], s.start, s.stop) for s in slices] == [
        (0, "a.parquet", 0, 10),
        (1, "a.parquet", 10, 20),
        (2, "a.parquet", 20, 23),
        (3, "b.parquet", 0, 0),
        (4, "c.parquet", 0, 7),
    ]
    assert [len(unit) for unit in corpus.units()] == [3, 1, 1] == [len(u) for u in corpus.units(slices)]
    ids = [row.image_id for row in rows_of(corpus)]
    assert ids[0] == "train/a.parquet#0" and len(set(ids)) == 30
    assert [row.data for row in rows_of(corpus)][1:5] == [image(1), None, None, image(4)]
    assert corpus.labels(slices[1], "label") == [str(i) for i in range(10, 20)]
    assert corpus.labels(slices[3], "label") == []
    assert corpus.labels(slices[4], "nothing") == [""] * 7
    with pytest.raises(UserError, match=r"no column classs .*label"):
        corpus.labels(slices[0], "classs")
    with pytest.raises(UserError, match="null"):
        corpus.fetch(["train/a.parquet#2"])


def test_one_parquet_file_is_a_corpus(rich, monkeypatch):
    monkeypatch.chdir(rich / "in" / "train")
    for uri in ("c.parquet", str(rich / "in/train/c.parquet"), f"file://{rich}/in/train/c.parquet"):
        corpus = open_corpus(uri)
        assert [s.path for s in corpus.sources()] == ["c.parquet"]
        assert len(rows_of(corpus)) == 7


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())])
def test_other_binary_types(tmp_path, kind):
    values = pa.array([image(1), None, image(1)], pa.binary())
    values = values.dictionary_encode() if pa.types.is_dictionary(kind) else values.cast(kind)
    pq.write_table(pa.table({"a.b": values, "n": [1, 2, 3]}), tmp_path / "x.parquet")
    corpus = open_corpus(str(tmp_path))
    assert [row.data for row in rows_of(corpus)] == [image(1), None, image(1)]
    (unit,) = corpus.units()
    corpus.rewrite(unit, {"x.parquet#1": b"new"}, str(tmp_path / "out"))
    assert [row.data for row in rows_of(open_corpus(str(tmp_path / "out")))] == [image(1), b"new", image(1)]
    kept, removed = str(tmp_path / "kept"), str(tmp_path / "removed")
    assert corpus.split(unit, [0, 2, 1], {"_reason": ["r"]}, kept, removed) == (1, 1)
    assert pq.read_schema(f"{kept}/x.parquet") == pq.read_schema(tmp_path / "x.parquet")
    for place in (kept, removed):
        assert pq.read_table(f"{place}/x.parquet", columns=["a.b"]).to_pylist() == [{"a.b": image(1)}]


@given(st.lists(st.booleans(), max_size=30))
def test_runs_of_neighbours_are_the_rows_that_are_wanted(wanted):
    table = pa.table(
        {"n": range(len(wanted)), "s": pa.array([str(i) for i in range(len(wanted))], pa.string_view())}
    )
    rows = _rows_of(table, np.array(wanted, bool))
    assert rows["n"].to_pylist() == [i for i, yes in enumerate(wanted) if yes] and rows.schema == table.schema


def test_folder_reading(pictures):
    corpus = open_corpus(str(pictures / "in"), rows_per_slice=2)
    assert isinstance(corpus, FolderCorpus)
    rows = rows_of(corpus)
    assert [(r.row, r.image_id) for r in rows] == [
        (0, "cat/1.png"),
        (1, "cat/x/[2]*.PNG"),
        (2, "dog/3 ä#.png"),
        (3, "dog/4.png"),
        (4, "top.png"),
    ]
    assert [r.data for r in rows] == [image(0), image(1), image(2), image(4), image(3)]
    assert [len(s.files) for s in corpus.slices()] == [2, 2, 1] == [len(u[0].files) for u in corpus.units()]
    assert [x for s in corpus.slices() for x in corpus.labels(s, "")] == ["cat", "x", "dog", "dog", ""]
    assert corpus.fetch(["top.png", "cat/1.png", "top.png"]) == [image(3), image(0), image(3)]
    with pytest.raises(UserError, match=r"cat/none\.png is gone"):
        corpus.fetch(["cat/none.png"])
    with pytest.raises(UserError, match="leaves the corpus"):
        corpus.fetch(["../secret.png"])


def test_corpora_can_be_pickled(rich):
    corpus = open_corpus(str(rich / "in"))
    assert pickle.loads(pickle.dumps(corpus)) == corpus and isinstance(corpus, ParquetCorpus)


def test_a_shard_that_changed_is_not_read(rich):
    corpus = open_corpus(str(rich / "in"))
    slices = corpus.slices()
    pq.write_table(rich_table(5), rich / "in/train/a.parquet")
    with pytest.raises(UserError, match="changed since it was indexed"):
        list(corpus.read(slices[0]))


def test_images_with_a_camera_s_underscore_are_seen_and_others_notes_are_not(tmp_path):
    for name in ("_MG_1.JPG", "a/__2.png", "_notes/3.png", ".4.png", "_.5.png", "_SUCCESS", "_list.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image(0))
    assert [s.path for s in open_corpus(str(tmp_path)).sources()] == ["_MG_1.JPG", "a/__2.png"]


def test_a_file_too_large_for_any_image_costs_its_own_row(pictures):
    with open(pictures / "in" / "top.png", "wb") as file:
        file.truncate(2**40)
    rows = rows_of(open_corpus(str(pictures / "in"), rows_per_slice=2))
    assert [(row.image_id, row.error[0]) for row in rows if row.error] == [("top.png", "bomb")]
    assert len(rows) == 5


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


def test_the_corpus_itself_is_no_output_by_whatever_name(pictures):
    (pictures / "link").symlink_to(pictures / "in")
    corpus = open_corpus(str(pictures / "in"))
    for place in (pictures / "link", pictures / "in" / "cat" / ".."):
        with pytest.raises(UserError, match="is the corpus itself"):
            corpus.split(corpus.units()[0], [0] * 5, {}, str(place), str(pictures / "removed"))


# ---------------------------------------------------------------- writing


def test_split_keeps_everything_about_kept_rows(rich):
    uri, kept_uri, removed_uri = (str(rich / n) for n in ("in", "clean", "removed"))
    corpus = open_corpus(uri, rows_per_slice=10)
    rng = np.random.default_rng(1)
    for unit in corpus.units():
        n = unit[-1].stop
        fates = rng.integers(0, 3, n)
        gone = [f"{unit[0].source}#{i}" for i in np.flatnonzero(fates == 1)]
        columns = {
            "_reason": ["looks bad"] * len(gone),
            "_p_poison": [0.75] * len(gone),
            "_family": list(range(len(gone))),
            "_image_id": gone,
        }
        counts = corpus.split(unit, fates, columns, kept_uri, removed_uri)
        assert counts == ((fates == 0).sum(), (fates == 1).sum())

        path = unit[0].source
        before, after = pq.ParquetFile(f"{uri}/{path}"), pq.ParquetFile(f"{kept_uri}/{path}")
        assert after.schema_arrow.equals(before.schema_arrow, check_metadata=True)
        assert after.schema.equals(before.schema)
        table = pq.read_table(f"{uri}/{path}")
        assert pq.read_table(f"{kept_uri}/{path}").equals(table.filter(pa.array(fates == 0)))
        pd.testing.assert_frame_equal(
            pq.read_table(
                f"{kept_uri}/{path}", columns=["key", "when", "shade", "label", "number"]
            ).to_pandas(),
            table.select(["key", "when", "shade", "label", "number"]).to_pandas()[fates == 0],
        )
        if not n:
            continue
        groups = [before.metadata.row_group(i).num_rows for i in range(before.metadata.num_row_groups)]
        kept = [int((part == 0).sum()) for part in np.split(fates, np.cumsum(groups)[:-1])]
        written = [after.metadata.row_group(i).num_rows for i in range(after.metadata.num_row_groups)]
        assert written == [k for k in kept if k]
        first, second = before.metadata.row_group(0), after.metadata.row_group(0)
        for i in range(first.num_columns):
            assert first.column(i).compression == second.column(i).compression

        removed = pq.read_table(f"{removed_uri}/{path}")
        assert removed.select(table.column_names).equals(table.filter(pa.array(fates == 1)))
        assert removed.column_names == table.column_names + list(columns)
        assert {k: removed.column(k).to_pylist() for k in columns} == columns
        assert removed.schema.field("_family").type == pa.int32()


def test_split_of_all_or_none(rich):
    corpus = open_corpus(str(rich / "in"))
    unit = corpus.units()[0]
    reasons = {"_reason": ["r"] * 23}
    assert corpus.split(unit, [1] * 23, reasons, str(rich / "k"), str(rich / "r")) == (0, 23)
    empty = pq.ParquetFile(rich / "k/train/a.parquet")
    assert empty.metadata.num_rows == 0
    assert empty.schema_arrow.equals(pq.read_schema(rich / "in/train/a.parquet"), check_metadata=True)
    # A second run with another verdict leaves nothing of the first.
    assert corpus.split(unit, [0] * 23, {"_reason": []}, str(rich / "k"), str(rich / "r")) == (23, 0)
    assert not (rich / "r/train/a.parquet").exists()
    assert pq.read_table(rich / "k/train/a.parquet").equals(pq.read_table(rich / "in/train/a.parquet"))
    assert not list(rich.rglob(".writing*"))
    for fates, columns in (([0] * 22, {}), ([1] * 23, {"_reason": ["one"]})):
        with pytest.raises((UserError, ValueError)):
            corpus.split(unit, fates, columns, str(rich / "k2"), str(rich / "r2"))


def test_a_failed_write_leaves_nothing(rich):
    corpus = open_corpus(str(rich / "in"))
    path = rich / "in/train/a.parquet"
    whole = path.read_bytes()
    middle = pq.ParquetFile(path).metadata.row_group(3).column(1).data_page_offset
    path.write_bytes(whole[:middle] + b"\xff" * 400 + whole[middle + 400 :])
    unit = corpus.units()[0]
    with pytest.raises(UserError, match=r"train/a\.parquet cannot be read"):
        corpus.split(unit, [0] * 23, {"_reason": []}, str(rich / "k"), str(rich / "r"))
    assert not [p for p in (rich / "k").rglob("*") if p.is_file()]


def test_rewrite_replaces_only_what_it_is_told(rich):
    corpus = open_corpus(str(rich / "in"), rows_per_slice=4)
    new = {f"train/a.parquet#{i}": image(900 + i) for i in (0, 2, 3, 11, 22)}
    for unit in corpus.units():
        here = {i: d for i, d in new.items() if i.startswith(unit[0].source)}
        corpus.rewrite(unit, here, str(rich / "out"))
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
            corpus.rewrite(corpus.units()[0], {wrong: b""}, str(rich / "out2"))


def test_folder_split_and_rewrite(pictures):
    kept_uri, removed_uri, out = (str(pictures / n) for n in ("clean", "removed", "out"))
    corpus = open_corpus(str(pictures / "in"), rows_per_slice=3)
    first, second = corpus.units()
    columns = {"_reason": ["bad"], "_p_poison": [1.0], "_family": [0], "_image_id": ["cat/x/[2]*.PNG"]}
    assert corpus.split(first, [0, 1, 0], columns, kept_uri, removed_uri) == (2, 1)
    assert corpus.split(second, [2, 0], {k: [] for k in columns}, kept_uri, removed_uri) == (1, 0)
    # A second run with another verdict must not leave a removed image among the kept.
    corpus.split(first, [0, 0, 0], {k: [] for k in columns}, kept_uri, removed_uri)
    corpus.split(first, [0, 1, 0], columns, kept_uri, removed_uri)
    kept, removed = open_corpus(kept_uri), open_corpus(removed_uri)
    assert {r.image_id: r.data for r in rows_of(kept)} == {
        "cat/1.png": image(0),
        "dog/3 ä#.png": image(2),
        "top.png": image(3),
    }
    assert [(r.image_id, r.data) for r in rows_of(removed)] == [("cat/x/[2]*.PNG", image(1))]
    reasons = pq.read_table(f"{removed_uri}/_removed-00000.parquet").to_pylist()
    assert reasons == [{"file": "cat/x/[2]*.PNG", **{k: v[0] for k, v in columns.items()}}]
    assert not (pictures / "removed/_removed-00001.parquet").exists()
    # Nor may an image that another verdict keeps stay among the removed.
    corpus.split(first, [0, 0, 0], {k: [] for k in columns}, kept_uri, str(pictures / "other"))
    corpus.split(first, [0, 1, 1], {"_reason": ["a", "b"]}, kept_uri, str(pictures / "other"))
    corpus.split(first, [0, 0, 1], {"_reason": ["b"]}, kept_uri, str(pictures / "other"))
    assert [r.image_id for r in rows_of(open_corpus(str(pictures / "other")))] == ["dog/3 ä#.png"]
    corpus.split(first, [0, 1, 0], columns, kept_uri, removed_uri)

    for unit in corpus.units():
        here = {"dog/4.png": b"new"} if "dog/4.png" in unit[0].files else {}
        corpus.rewrite(unit, here, out)
    assert {r.image_id: r.data for r in rows_of(open_corpus(out))} == {
        r.image_id: b"new" if r.image_id == "dog/4.png" else r.data for r in rows_of(corpus)
    }
    with pytest.raises(ValueError, match="no such images"):
        corpus.rewrite(first, {"top.png": b""}, out)


@pytest.mark.parametrize("layout", ["parquet", "folder"])
def test_any_fsspec_url(rich, pictures, layout):
    """The memory filesystem takes the path of every store that is not a local disk."""
    local = open_corpus(str(rich / "in"), format=layout, rows_per_slice=4)
    root = f"memory://{uuid.uuid4().hex}"
    fs = fsspec.filesystem("memory")
    for unit in local.units():
        local.rewrite(unit, {}, f"{root}/in")
    corpus = open_corpus(f"{root}/in", rows_per_slice=4)
    before = corpus.sources()
    assert [(r.image_id, r.data) for r in rows_of(corpus)] == [(r.image_id, r.data) for r in rows_of(local)]
    ids = [r.image_id for r in rows_of(local) if r.data][::2]
    assert corpus.fetch(ids) == local.fetch(ids)
    for unit in corpus.units():
        n = sum(s.stop - s.start for s in unit)
        fates = [i % 2 for i in range(n)]
        columns = {"_reason": ["r"] * sum(fates)}
        corpus.split(unit, fates, columns, f"{root}/clean", f"{root}/removed")
    parts = [count(f"{root}/{name}", layout) for name in ("clean", "removed")]
    assert sum(parts) == len(rows_of(local)) and min(parts) > 0
    assert corpus.sources() == before
    fs.pipe_file(f"{root}/in/{before[0].path}", b"other")
    assert corpus.sources()[0] != before[0]


# ---------------------------------------------------------------- mistakes


def refuse(match: str, uri, **options) -> None:
    with pytest.raises(UserError, match=match) as caught:
        open_corpus(str(uri), **options).slices()
    said = str(caught.value)
    assert said.endswith(".") and "\n" not in said


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
    (tmp_path / "a.jpg").write_bytes(image(0, "JPEG"))
    assert len(rows_of(open_corpus(str(tmp_path)))) == 1
    refuse("single file", tmp_path / "a.jpg")
    pq.write_table(pa.table({"image": structs(2)}), tmp_path / "b.parquet")
    refuse("mixes 1 Parquet files and 1 images", tmp_path)
    (tmp_path / "c.tar").touch()
    refuse("mixes 1 Parquet files and 1 tar files and 1 images.*parquet or webdataset or folder", tmp_path)
    (tmp_path / "c.tar").unlink()
    assert len(rows_of(open_corpus(str(tmp_path), format="parquet"))) == 2
    assert len(rows_of(open_corpus(str(tmp_path), format="folder"))) == 1


def test_mistakes_of_the_image_column(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": structs(2), "text": ["a", "b"]}), path)
    refuse("picture is missing in a.parquet: set image_column to image", tmp_path, image_column="picture")
    refuse("text is not binary .*set image_column to image", tmp_path, image_column="text")
    pq.write_table(pa.table({"text": ["a", "b"], "n": [1, 2]}), path)
    refuse("No column of a.parquet holds images .*text, n", tmp_path)
    refuse("img is missing in a.parquet: the shard has only text, n", tmp_path, image_column="img")
    pq.write_table(pa.table({"image": structs(2), "depth": [b"a", b"b"]}), path)
    refuse("set image_column to one of image, depth", tmp_path)
    assert open_corpus(str(tmp_path), image_column="depth").image_column == "depth"
    pq.write_table(pa.table({"other": [b"a", b"b"]}), tmp_path / "b.parquet")
    found = rows_of(open_corpus(str(tmp_path), image_column="depth"))
    assert [r.error and r.error[0] for r in found] == [None, None, "other_schema", "other_schema"]
    pq.write_table(pa.table({"image": structs(2), "_reason": ["a", "b"]}), path)
    refuse("_reason of a.parquet .*rename", tmp_path)
    path.rename(tmp_path / "c.parquet")
    pq.write_table(pa.table({"image": structs(2)}), path)
    with pytest.raises(UserError, match=r"_reason of c\.parquet .*rename"):
        open_corpus(str(tmp_path), image_column="image").slices()


def test_a_check_reads_the_footer_and_says_what_is_wrong_with_the_shard(tmp_path):
    def check(name: str, table: pa.Table) -> Problem | None:
        pq.write_table(table, tmp_path / name)
        return corpus.check(next(s for s in corpus.sources() if s.path == name))

    pq.write_table(pa.table({"image": structs(2)}), tmp_path / "a.parquet")
    corpus = open_corpus(str(tmp_path))
    assert [corpus.check(source) for source in corpus.sources()] == [None]
    # A layout of its own, further columns, no rows or no image at all are no other schema.
    assert check("b.parquet", pa.table({"image": [b"x"], "more": [1]})) is None
    assert check("b.parquet", pa.table({"image": pa.nulls(3)})) is None
    assert check("b.parquet", pa.table({"text": pa.array([], pa.string())})) is None
    reason = "the image column image is missing; the columns are img"
    table = pa.table({"img": structs(7)})
    assert check("b.parquet", table) == Problem("b.parquet", 7, "other_schema", reason)
    reason = "the image column image is not binary or struct{bytes, path}; the columns are image, m"
    table = pa.table({"image": ["a"] * 3, "m": [1] * 3})
    assert check("b.parquet", table) == Problem("b.parquet", 3, "other_schema", reason)
    hostile = check("b.parquet", pa.table({"\x1b[2J\n": [1]}))
    assert hostile and hostile.reason.isprintable() and hostile.rows == 1
    # Damage behind a whole footer is found where the rows are read.
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:40] = bytes(36)
    (tmp_path / "a.parquet").write_bytes(data)
    assert corpus.check(corpus.sources()[0]) is None
    for cut_short in (data[:-9], b""):
        (tmp_path / "a.parquet").write_bytes(cut_short)
        problem = corpus.check(corpus.sources()[0])
        assert problem and (problem.source, problem.rows) == ("a.parquet", None)
        assert problem.kind == "unreadable_shard" and problem.reason.isprintable()


def test_all_rows_of_a_shard_with_another_schema_are_dead(tmp_path):
    pq.write_table(pa.table({"image": structs(2)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"img": structs(7), "n": list("abcdefg")}), tmp_path / "b.parquet")
    corpus = open_corpus(str(tmp_path), rows_per_slice=3)
    unit = corpus.units()[1]
    assert [(part.start, part.stop, part.kind) for part in unit] == [
        (0, 3, "other_schema"),
        (3, 6, "other_schema"),
        (6, 7, "other_schema"),
    ]
    rows = [row for part in unit for row in corpus.read(part)]
    assert [row.image_id for row in rows] == [f"b.parquet#{i}" for i in range(7)]
    assert {row.error for row in rows} == {("other_schema", unit[0].error)}
    assert [label for part in unit for label in corpus.labels(part, "n")] == [""] * 7
    assert corpus.split(unit, [2] * 7, {}, str(tmp_path / "kept"), str(tmp_path / "removed")) == (0, 0)
    assert not (tmp_path / "kept").exists()
    corpus.rewrite(unit, {}, str(tmp_path / "again"))
    assert (tmp_path / "again/b.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_folder_has_nothing_to_check(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    corpus = open_corpus(str(tmp_path))
    assert [corpus.check(source) for source in corpus.sources()] == [None]


def test_unreadable_and_empty_shards(tmp_path):
    pq.write_table(pa.table({"image": structs(0).cast(structs(1).type)}), tmp_path / "a.parquet")
    refuse("hold no rows", tmp_path)
    pq.write_table(pa.table({"image": structs(2)}), tmp_path / "b.parquet")
    assert len(rows_of(open_corpus(str(tmp_path)))) == 2
    # pandas writes an empty frame's object column without a type.
    pq.write_table(pa.table({"image": pa.nulls(0)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": pa.nulls(3)}), tmp_path / "c.parquet")
    assert [r.data is None for r in rows_of(open_corpus(str(tmp_path)))] == [False] * 2 + [True] * 3
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.parquet").write_bytes(b"no parquet at all")
    refuse(r"Parquet shard a\.parquet cannot be read \(.+\)", tmp_path)


def test_links_that_leave_the_folder_are_refused(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.png").write_bytes(image(0))
    (root / "inside.png").symlink_to(root / "a.png")
    assert [r.data for r in rows_of(open_corpus(str(root)))] == [image(0)] * 2
    (tmp_path / "secret.png").write_bytes(image(1))
    (root / "outside.png").symlink_to(tmp_path / "secret.png")
    refuse("outside.png is a symbolic link that leaves", root)
    (root / "outside.png").unlink()
    (root / "broken.png").symlink_to(root / "none.png")
    refuse("broken.png is a broken symbolic link", root)
    (root / "broken.png").unlink()
    (root / "loop").symlink_to(root, target_is_directory=True)
    refuse("loop is a symbolic link to a folder", root)
    (root / "loop").unlink()
    # The corpus itself may be reached through a link.
    (tmp_path / "alias").symlink_to(root, target_is_directory=True)
    assert len(rows_of(open_corpus(str(tmp_path / "alias")))) == 2


@pytest.mark.parametrize("layout", ["parquet", "folder"])
def test_the_corpus_is_never_its_own_output(rich, pictures, layout):
    corpus = open_corpus(f"{rich}/in", format=layout)
    unit, other = corpus.units()[0], str(rich / "other")
    n = unit[-1].stop
    for kept, removed in ((f"{rich}/in/", other), (other, f"file://{rich}/in")):
        with pytest.raises(UserError, match="is the corpus itself"):
            corpus.split(unit, [0] * n, {}, kept, removed)
    with pytest.raises(UserError, match="is the corpus itself"):
        corpus.rewrite(unit, {}, f"{rich}/in")


def test_names_that_are_not_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb") as file:
        file.write(image(0))
    refuse("not valid UTF-8", tmp_path)
