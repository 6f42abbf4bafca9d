"""WebDataset shards: samples found as WebDataset finds them, members copied byte for byte, tricks refused."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import tarfile
import tracemalloc
import uuid
from collections import Counter
from dataclasses import asdict, replace

import fsspec
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poisoncam_ray.corpus import Slice, WebDatasetCorpus, open_corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.research.attacks import poison_corpus
from tests.tars import corpus_of, image, plain_members, raw_members, rows_of, special, tar_bytes

IMAGES = ("jpg", "jpeg", "png", "webp")


def kinds_of(corpus) -> list[str]:
    return [row.error[0] if row.error else "" for row in rows_of(corpus)]


def expected(members: list[tuple[str, bytes]]) -> list[tuple[str, str, bytes | None]]:
    """(key, kind of error or "", image) of each sample, by WebDataset's rule in a few plain lines."""

    def key(name: str) -> str:
        folder, slash, base = name.rpartition("/")
        return folder + slash + base.split(".")[0]

    files = [(name, data) for name, data in members if not name.endswith("/")]
    groups = [(k, list(group)) for k, group in itertools.groupby(files, lambda m: key(m[0]))]
    often = Counter(k for k, _ in groups)
    rows = []
    for k, group in groups:
        images = [data for name, data in group if name.rsplit(".", 1)[-1].lower() in IMAGES]
        twice = often[k] > 1 or len({name for name, _ in group}) < len(group)
        kind = "no_image" if not images else "several_images" if len(images) > 1 else ""
        rows.append((k, "duplicate_key" if twice else kind, None if twice or kind else images[0]))
    return rows


NAMES = st.builds(
    lambda folder, stem, extension: f"{folder}{stem}.{extension}",
    st.sampled_from(["", "a/", "a/b/", "deep/" * 30]),
    st.sampled_from(["0", "1", "2", "ä", "long" * 30]),
    st.sampled_from(["jpg", "PNG", "txt", "json", "cls", "left.webp"]),
)
MEMBERS = st.lists(st.tuples(st.one_of(NAMES, st.just("folder/")), st.binary(max_size=1100)), max_size=14)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    MEMBERS,
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_any_layout_of_members(tmp_path_factory, members, format, step, random):
    folder = tmp_path_factory.mktemp("w")
    listed = [
        (special(n, tarfile.DIRTYPE), b"") if n.endswith("/") else (n, d)
        for n, d in sorted(members, key=lambda m: m[0])  # runs come often
        if random.random() < 0.9
    ]
    random.shuffle(listed) if random.random() < 0.3 else None
    plain = [(getattr(n, "name", n), d) for n, d in listed]
    wanted = expected(plain)
    good = tar_bytes([("good.png", b"good")], format)
    corpus = corpus_of(folder, tar_bytes(listed, format), good, rows_per_slice=step)
    slices = [part for part in corpus.slices() if part.source == "0.tar"]
    assert [row for part in slices for row in range(part.start, part.stop)] == list(range(len(wanted)))
    rows = [row for part in slices for row in corpus.read(part)]
    assert [row.image_id for row in rows] == [f"0.tar#{i}" for i in range(len(wanted))]
    for row, (_, kind, data) in zip(rows, wanted, strict=True):
        assert row.data == data and bool(row.error) == bool(kind)
        if kind:
            assert row.error[0] == kind

    fates = [2 if row.error else random.randint(0, 1) for row in rows]
    n_removed = fates.count(1)
    counts = corpus.split(
        slices, fates, {"_reason": ["r"] * n_removed}, f"{folder}/kept", f"{folder}/removed"
    )
    assert counts == (fates.count(0), n_removed)
    fate_of = {key: fate for (key, _, _), fate in zip(wanted, fates, strict=True)}
    source = raw_members(folder / "in/0.tar")
    for fate, name in ((0, "kept"), (1, "removed")):
        path = folder / name / "0.tar"
        if fate and not n_removed:
            assert not path.exists()
            continue
        own = [
            (n, raw) for n, raw in source if fate_of.get(expected([(n, b"")])[0][0]) == fate or n == "folder"
        ]
        assert raw_members(path) == [m for m in own if fate == 0 or m[0] != "folder"]
        assert path.read_bytes().endswith(bytes(1024))
    if fates.count(0) == len(fates):
        assert (folder / "kept/0.tar").read_bytes() == (folder / "in/0.tar").read_bytes()
    if n_removed:
        table = pq.read_table(folder / "removed/_removed-0.tar.parquet").to_pydict()
        assert table == {"row": [i for i, f in enumerate(fates) if f == 1], "_reason": ["r"] * n_removed}


def test_slices_units_fetch_and_pickling(tmp_path):
    corpus = corpus_of(tmp_path, tar_bytes(plain_members(5)), tar_bytes([]), rows_per_slice=2)
    assert pickle.loads(pickle.dumps(corpus)) == corpus and isinstance(corpus, WebDatasetCorpus)
    slices = corpus.slices()
    assert [(s.index, s.source, s.start, s.stop) for s in slices] == [
        (0, "0.tar", 0, 2),
        (1, "0.tar", 2, 4),
        (2, "0.tar", 4, 5),
        (3, "1.tar", 0, 0),
    ]
    assert [len(unit) for unit in corpus.units(slices)] == [3, 1]
    # Slices travel as JSON.
    again = [Slice(**json.loads(json.dumps(asdict(part)))) for part in slices]
    assert [row.data for part in again for row in corpus.read(part)] == [image(i) for i in range(5)]
    assert corpus.fetch(["0.tar#4", "0.tar#0", "0.tar#4"]) == [image(4), image(0), image(4)]
    with pytest.raises(UserError, match=r"0\.tar#5 cannot be read"):
        corpus.fetch(["0.tar#5"])
    one = open_corpus(f"{tmp_path}/in/0.tar")
    assert [s.path for s in one.sources()] == ["0.tar"] and len(rows_of(one)) == 5


def test_labels(tmp_path):
    corpus = corpus_of(tmp_path, tar_bytes(plain_members(4)))
    (part,) = corpus.slices()
    assert corpus.labels(part, "cls") == corpus.labels(part, "label") == ["0", "1", "2", "0"]
    assert corpus.labels(part, "colour") == ["c0", "c1", "c2", "c3"]
    assert corpus.labels(part, "none") == [""] * 4
    with pytest.raises(UserError, match=r"member shape or a JSON field .*cls, json, png"):
        corpus.labels(part, "shape")
    odd = [b"[" * 5000, b"[1]", b'{"x": 1}', b"\xff", b"1" * 5000]
    members = [m for i, d in enumerate(odd) for m in ((f"{i}.json", d), (f"{i}.jpg", b""))]
    corpus = corpus_of(tmp_path, tar_bytes(members))
    assert corpus.labels(corpus.slices()[0], "x") == ["", "", "1", "", ""]


def test_image_column_chooses_among_several_images(tmp_path):
    members = [("0.png", image(0)), ("0.mask.png", b"mask"), ("1.mask.png", b"mask")]
    corpus = corpus_of(tmp_path, tar_bytes(members))
    assert kinds_of(corpus) == ["several_images", ""]
    assert "set image_column to one of mask.png, png" in rows_of(corpus)[0].error[1]
    corpus = open_corpus(str(tmp_path / "in"), image_column=".PNG")
    assert kinds_of(corpus) == ["", "no_image"] and rows_of(corpus)[0].data == image(0)


def test_what_macos_writes_beside_a_file_goes_with_its_sample(tmp_path):
    double = bytes.fromhex("00051607") + bytes(80)
    members = [
        twin
        for name, data in plain_members(3)
        for twin in ((name.replace("set/", "set/._"), double), (name, data))
    ]
    members += [("._alone.png", double), ("._3.png", image(9)), ("3.png", image(3)), (".4.png", image(4))]
    corpus = corpus_of(tmp_path, tar_bytes(members))
    assert kinds_of(corpus) == ["", "", "", "no_image", "unsafe_member", "no_image"]
    assert [row.data for row in rows_of(corpus)][:3] == [image(i) for i in range(3)]
    (part,) = corpus.slices()
    assert corpus.labels(part, "cls")[:3] == ["0", "1", "2"]
    corpus.split([part], [0, 1, 0, 2, 2, 2], {}, str(tmp_path / "kept"), str(tmp_path / "removed"))
    kept, removed = ({n for n, _ in raw_members(tmp_path / to / "0.tar")} for to in ("kept", "removed"))
    assert kept == {n for n, _ in members if "0000" in n or "0002" in n}
    assert removed == {n for n, _ in members if "0001" in n}


def test_rewrite_replaces_only_the_image(tmp_path):
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
    corpus.rewrite(unit, {"0.tar#1": b"new" * 300}, str(tmp_path / "out"))
    before, after = (raw_members(tmp_path / name / "0.tar") for name in ("in", "out"))
    assert [m for m in before if m[0] != f"{long}.png"] == [m for m in after if m[0] != f"{long}.png"]
    again = open_corpus(str(tmp_path / "out"))
    assert [r.data for r in rows_of(again)] == [image(1), b"new" * 300, None, None]
    # What cannot be read is the attack's to keep, not to mend.
    assert (tmp_path / "out/0.tar").read_bytes().endswith(b"!" * 512)
    corpus.rewrite(unit, {}, str(tmp_path / "same"))
    assert (tmp_path / "same/0.tar").read_bytes() == (tmp_path / "in/0.tar").read_bytes()
    for wrong in ("0.tar#9", "1.tar#0", "0.tar#2"):
        with pytest.raises(ValueError, match=r"no rows of|no image to replace"):
            corpus.rewrite(unit, {wrong: b""}, str(tmp_path / "wrong"))
    with pytest.raises(UserError, match="is the corpus itself"):
        corpus.rewrite(unit, {}, str(tmp_path / "in"))


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
    assert new.labels(new.slices()[0], "colour") == [f"c{i}" for i in range(9)]


def test_any_fsspec_url(tmp_path):
    root = f"memory://{uuid.uuid4().hex}"
    fs = fsspec.filesystem("memory")
    fs.pipe_file(f"{root}/in/a/0.tar", tar_bytes(plain_members(7)))
    corpus = open_corpus(f"{root}/in", rows_per_slice=3)
    before = corpus.sources()
    assert [r.data for r in rows_of(corpus)] == [image(i) for i in range(7)]
    assert corpus.fetch(["a/0.tar#6", "a/0.tar#1"]) == [image(6), image(1)]
    (unit,) = corpus.units()
    columns = {"_reason": ["r"] * 3}
    assert corpus.split(unit, [0, 1] * 3 + [2], columns, f"{root}/kept", f"{root}/removed") == (3, 3)
    kept = fs.cat_file(f"{root}/kept/a/0.tar")
    with tarfile.open(fileobj=io.BytesIO(kept)) as archive:
        assert archive.getnames() == [n for n, _ in plain_members(7) if int(n[4:8]) in (0, 2, 4)]
    assert fs.exists(f"{root}/removed/a/_removed-0.tar.parquet")
    # Another verdict leaves nothing of the first.
    assert corpus.split(unit, [0] * 7, {}, f"{root}/kept", f"{root}/removed") == (7, 0)
    assert fs.find(f"{root}/removed") == []
    assert fs.cat_file(f"{root}/kept/a/0.tar") == fs.cat_file(f"{root}/in/a/0.tar")
    assert corpus.sources() == before
    fs.pipe_file(f"{root}/in/a/0.tar", tar_bytes(plain_members(8)))
    with pytest.raises(UserError, match="changed since it was indexed"):
        list(corpus.read(unit[0]))


def test_a_wrong_ledger_writes_nothing(tmp_path):
    corpus = corpus_of(tmp_path, tar_bytes(plain_members(3)))
    (unit,) = corpus.units()
    with pytest.raises(ValueError, match="fates for 3"):
        corpus.split(unit, [0] * 4, {}, f"{tmp_path}/kept", f"{tmp_path}/removed")
    longer = [replace(unit[0], stop=4)]
    with pytest.raises(UserError, match="changed since it was indexed"):
        corpus.split(longer, [0, 0, 2, 0], {}, f"{tmp_path}/kept", f"{tmp_path}/removed")
    assert not list(tmp_path.rglob("kept/*"))


def test_no_more_than_a_sample_is_held(tmp_path):
    """A shard of 40 MB passes through reading and splitting in a few MB."""
    corpus = corpus_of(tmp_path, tar_bytes([(f"{i}.png", bytes(500_000)) for i in range(80)]))
    tracemalloc.start()
    try:
        (unit,) = corpus.units()
        assert sum(len(row.data) for part in unit for row in corpus.read(part)) == 40_000_000
        columns = {"_reason": ["r"] * 40}
        counts = corpus.split(unit, [0, 1] * 40, columns, f"{tmp_path}/kept", f"{tmp_path}/removed")
        assert counts == (40, 40)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_a_check_reads_the_first_sample_and_says_why_nothing_can_be_read(tmp_path):
    whole = tar_bytes(plain_members())
    damaged = bytearray(whole)
    damaged[0:100] = b"\xff" * 100
    no_image = tar_bytes([("0.txt", b"text"), ("1.png", image(1))])
    archives = [whole, bytes(damaged), whole[: len(whole) // 2], bytes(1024), b"", no_image, whole[:700]]
    corpus = corpus_of(tmp_path, *archives)
    problems = [corpus.check(source) for source in corpus.sources()]
    assert [i for i, problem in enumerate(problems) if problem] == [1, 4, 6]
    assert {problem.rows for problem in problems if problem} == {None}
    assert {problem.kind for problem in problems if problem} == {"unreadable_shard"}
    assert problems[1].reason == "no tar header at byte 0"
    # As the slices say it.
    broken = {part.source for part in corpus.slices() if part.error is not None}
    assert broken == {problem.source for problem in problems if problem}
