"""WebDataset shards: samples are found as WebDataset finds them, and members are copied byte for byte."""

from __future__ import annotations

import itertools
import tarfile
import tracemalloc
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poisoncam_ray.corpus import DEAD, KEPT, REMOVED, open_corpus
from poisoncam_ray.errors import UserError
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
    slices = [s for s in corpus.slices() if s.source == "0.tar"]
    assert [row for s in slices for row in range(s.start, s.stop)] == list(range(len(wanted)))
    rows = [row for s in slices for row in corpus.read(s)]
    assert [row.image_id for row in rows] == [f"0.tar#{i}" for i in range(len(wanted))]
    for row, (_, kind, data) in zip(rows, wanted, strict=True):
        assert row.data == data and bool(row.error) == bool(kind)
        if kind:
            assert row.error[0] == kind

    fates = [DEAD if row.error else random.randint(KEPT, REMOVED) for row in rows]
    n_removed = fates.count(REMOVED)
    counts = corpus.split(slices, fates, f"{folder}/kept", f"{folder}/removed")
    assert counts == (fates.count(KEPT), n_removed)
    fate_of = {key: fate for (key, _, _), fate in zip(wanted, fates, strict=True)}
    source = raw_members(folder / "in/0.tar")
    for fate, name in ((KEPT, "kept"), (REMOVED, "removed")):
        path = folder / name / "0.tar"
        if fate not in fates and (fate == REMOVED or fates):
            assert not path.exists()
            continue
        own = [
            (n, raw) for n, raw in source if fate_of.get(expected([(n, b"")])[0][0]) == fate or n == "folder"
        ]
        assert raw_members(path) == [m for m in own if fate == KEPT or m[0] != "folder"]
        assert path.read_bytes().endswith(bytes(1024))
    if fates.count(KEPT) == len(fates):
        assert (folder / "kept/0.tar").read_bytes() == (folder / "in/0.tar").read_bytes()
    assert {path.name for path in (folder / "removed").glob("*")} == ({"0.tar"} if n_removed else set())


def test_slices_are_runs_of_samples(tmp_path):
    corpus = corpus_of(tmp_path, tar_bytes(plain_members(5)), tar_bytes([]), rows_per_slice=2)
    slices = corpus.slices()
    assert [(s.index, s.source, s.start, s.stop) for s in slices] == [
        (0, "0.tar", 0, 2),
        (1, "0.tar", 2, 4),
        (2, "0.tar", 4, 5),
        (3, "1.tar", 0, 0),
    ]
    assert [len(unit) for unit in corpus.units(slices)] == [3, 1]
    with pytest.raises(UserError, match=r"0\.tar#5 cannot be read"):
        corpus.fetch(["0.tar#5"])
    one = open_corpus(f"{tmp_path}/in/0.tar")
    assert [s.path for s in one.sources()] == ["0.tar"] and len(rows_of(one)) == 5


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
    fates = [KEPT, REMOVED, KEPT, DEAD, DEAD, DEAD]
    corpus.split(corpus.units()[0], fates, str(tmp_path / "kept"), str(tmp_path / "removed"))
    kept, removed = ({n for n, _ in raw_members(tmp_path / to / "0.tar")} for to in ("kept", "removed"))
    assert kept == {n for n, _ in members if "0000" in n or "0002" in n}
    assert removed == {n for n, _ in members if "0001" in n}


def test_a_shard_with_fewer_samples_than_fates_writes_nothing(tmp_path):
    corpus = corpus_of(tmp_path, tar_bytes(plain_members(3)))
    (unit,) = corpus.units()
    longer = [replace(unit[0], stop=4)]
    with pytest.raises(UserError, match="changed since it was indexed"):
        corpus.split(longer, [KEPT, KEPT, DEAD, KEPT], f"{tmp_path}/kept", f"{tmp_path}/removed")
    assert not list(tmp_path.rglob("kept/*"))


def test_no_more_than_a_sample_is_held(tmp_path):
    """A shard of 40 MB passes through reading and splitting in a few MB."""
    corpus = corpus_of(tmp_path, tar_bytes([(f"{i}.png", bytes(500_000)) for i in range(80)]))
    tracemalloc.start()
    try:
        (unit,) = corpus.units()
        assert sum(len(row.data) for slice_ in unit for row in corpus.read(slice_)) == 40_000_000
        counts = corpus.split(unit, [KEPT, REMOVED] * 40, f"{tmp_path}/kept", f"{tmp_path}/removed")
        assert counts == (40, 40)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_another_verdict_leaves_nothing_of_the_first(tmp_path):
    corpus = corpus_of(tmp_path, tar_bytes(plain_members(7)))
    (unit,) = corpus.units()
    kept, removed = tmp_path / "kept", tmp_path / "removed"
    corpus.split(unit, [KEPT, REMOVED] * 3 + [DEAD], str(kept), str(removed))
    assert raw_members(kept / "0.tar") and raw_members(removed / "0.tar")
    assert corpus.split(unit, [KEPT] * 7, str(kept), str(removed)) == (7, 0)
    assert not list(removed.rglob("*.tar"))
    assert (kept / "0.tar").read_bytes() == (tmp_path / "in/0.tar").read_bytes()


def test_a_shard_that_changed_is_not_read(tmp_path):
    corpus = corpus_of(tmp_path, tar_bytes(plain_members(7)))
    (slice_,) = corpus.slices()
    (tmp_path / "in/0.tar").write_bytes(tar_bytes(plain_members(8)))
    with pytest.raises(UserError, match="changed since it was indexed"):
        list(corpus.read(slice_))


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
    broken = {s.source for s in corpus.slices() if s.error is not None}
    assert broken == {problem.source for problem in problems if problem}
