"""Hostile, damaged and cut tars: only their own samples die, and nothing is written outside the output."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.corpus import DEAD, KEPT, REMOVED
from poisoncam_ray.errors import UserError
from tests.examples import examples
from tests.tars import (
    corpus_of,
    image,
    one,
    pax,
    plain_members,
    raw_members,
    record,
    rows_of,
    special,
    tar_bytes,
)

UNSAFE = [
    ("../climbs.png", None),
    ("a/../../climbs.png", None),
    ("/absolute.png", None),
    ("..\\climbs.png", None),
    ("C:\\absolute.png", None),
    ("link.png", special("link.png", tarfile.SYMTYPE, "/etc/passwd")),
    ("hard.png", special("hard.png", tarfile.LNKTYPE, "0.png")),
    ("device.png", special("device.png", tarfile.CHRTYPE)),
    ("pipe.png", special("pipe.png", tarfile.FIFOTYPE)),
    ("../folder", special("../folder", tarfile.DIRTYPE)),
]


@pytest.mark.parametrize(("name", "info"), UNSAFE, ids=[n for n, _ in UNSAFE])
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_unsafe_members_cost_their_sample(tmp_path, name, info, format):
    stem = name.rpartition(".png")[0] or name
    caption = (f"{stem}.txt", b"caption")
    members = [
        ("0.png", image(0)),
        (info or name, image(1) if info is None else b""),
        caption,
        ("2.png", image(2)),
    ]
    corpus = corpus_of(tmp_path, tar_bytes(members, format))
    rows = rows_of(corpus)
    assert (rows[0].data, rows[-1].data) == (image(0), image(2))
    assert {r.error[0] for r in rows[1:-1]} == {"unsafe_member"}
    fates = [KEPT, *[DEAD] * (len(rows) - 2), KEPT]
    corpus.split(corpus.units()[0], fates, str(tmp_path / "kept"), str(tmp_path / "removed"))
    assert [n for n, _ in raw_members(tmp_path / "kept/0.tar")] == ["0.png", "2.png"]


END = bytes(1024)
LONG = pax(b"two.png\0", tarfile.GNUTYPE_LONGNAME)
HOSTILE = {
    "negative size": one("x.png", size=-1024) + END,
    "size beyond the file": one("x.png", size=8 * 2**60) + END,
    "pax size beyond the file": pax(record("size", str(2**50))) + one("x.png") + END,
    "pax size no number": pax(record("size", "1e3")) + one("x.png") + END,
    "pax size huge number": pax(record("size", "9" * 5000)) + one("x.png") + END,
    "pax header of terabytes": pax(b"", size=2**40) + END,
    "pax header of zero-length records": pax(b"0 a=b\n" * 50) + one("x.png") + END,
    "pax chain": pax(record("path", "y.png")) * 2000 + one("x.png") + END,
    "long names in a chain": LONG * 2000 + one("x.png") + END,
    "pax header alone": pax(record("path", "y.png")) + END,
    "global header renames": pax(record("path", "../y.png"), tarfile.XGLTYPE) + one("x.png") + END,
    "endless name": pax(record("path", "x" * 5000 + ".png")) + one("x.png") + END,
    "large global header": pax(record("comment", "x" * 2**21), tarfile.XGLTYPE) + one("x.png") + END,
    "two names": LONG + pax(record("path", "three.png")) + one("x.png") + END,
    "folder that hides a member": one("d", one("x.png"), type=tarfile.DIRTYPE) + END,
    "second archive after the end mark": END + one("x.png") + END,
    "no tar": b"PK\x03\x04" + bytes(600),
    "compressed": b"\x1f\x8b\x08" + bytes(600),
    "one byte": b"\0",
    "nothing": b"",
}


@pytest.mark.parametrize("trick", HOSTILE, ids=list(HOSTILE))
@pytest.mark.parametrize("before", [0, 2])
def test_hostile_headers_cost_the_rest_of_their_shard(tmp_path, trick, before):
    """The samples before it live, one row stands for all that follows, and the other shard is whole."""
    start = b"".join(one(f"{i}.png", image(i)) for i in range(before))
    corpus = corpus_of(tmp_path, start + HOSTILE[trick], tar_bytes(plain_members(2)))
    rows = rows_of(corpus)
    assert [r.error[0] if r.error else "" for r in rows[-3:]] == ["unreadable_shard", "", ""]
    alive = [r.data for r in rows[:-3]]
    # The last sample may lack members, unless the header that is cut names another.
    assert alive in ([image(i) for i in range(before)], [image(i) for i in range(before)][:-1])
    first, _ = corpus.units()
    fates = [KEPT] * len(alive) + [DEAD]
    assert corpus.split(first, fates, f"{tmp_path}/kept", f"{tmp_path}/removed") == (len(alive), 0)
    kept = tmp_path / "kept/0.tar"
    assert kept.exists() == bool(alive)
    if alive:
        assert [n for n, _ in raw_members(kept)] == [f"{i}.png" for i in range(len(alive))]


def test_a_corpus_of_broken_or_empty_shards_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match=r"Tar shard 0\.tar cannot be read \(.*compressed archive"):
        corpus_of(tmp_path, HOSTILE["compressed"], b"").slices()
    with pytest.raises(UserError, match="hold no rows"):
        corpus_of(tmp_path, tar_bytes([]), tar_bytes([])).slices()


def test_harmless_oddities_pass(tmp_path):
    shared = pax(record("comment", "made by hand"), tarfile.XGLTYPE)
    renamed = pax(record("path", "y.png") + record("mtime", "1.5")) + one("x.png", image(1))
    archive = shared + one("./a.b.png", image(0)) + renamed + LONG + one("z", image(2)) + bytes(512)
    corpus = corpus_of(tmp_path, archive)
    assert [r.data for r in rows_of(corpus)] == [image(0), image(1), image(2)]
    corpus.split(corpus.units()[0], [REMOVED, KEPT, KEPT], f"{tmp_path}/kept", f"{tmp_path}/removed")
    start = len(shared)
    first = start + len(one("./a.b.png", image(0)))
    assert (tmp_path / "kept/0.tar").read_bytes() == shared + archive[first:-512] + END
    assert (tmp_path / "removed/0.tar").read_bytes() == archive[:first] + END


@examples(80)
@given(st.integers(0, 10**6), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_cut_shards(tmp_path_factory, where, format):
    folder = tmp_path_factory.mktemp("c")
    members = [
        (f"{'n' * 120}{i}.{e}", bytes([65 + i]) * (300 * i + 1)) for i in range(4) for e in ("png", "txt")
    ]
    whole = tar_bytes(members, format)
    end = len(whole.rstrip(b"\0"))
    cut = whole[: where % end]
    corpus = corpus_of(folder, cut, tar_bytes(plain_members(1)), rows_per_slice=2)
    rows = [row for row in rows_of(corpus) if row.image_id.startswith("0.tar")]
    (folder / "whole.tar").write_bytes(whole)
    stops, at = [], 0
    for _, raw in raw_members(folder / "whole.tar"):
        at += len(raw)
        stops.append(at)
    complete = sum(stop <= len(cut) for stop in stops[1::2])
    assert [row.error and row.error[0] for row in rows][-1] == "unreadable_shard"
    assert all(row.error is None for row in rows[:-1])
    assert complete - 1 <= len(rows) - 1 <= complete
    unit = corpus.units()[0]
    fates = np.array([KEPT] * (len(rows) - 1) + [DEAD])
    assert corpus.split(unit, fates, f"{folder}/kept", f"{folder}/removed") == (len(rows) - 1, 0)
    if len(rows) > 1:
        assert raw_members(folder / "kept/0.tar") == raw_members(folder / "whole.tar")[: 2 * (len(rows) - 1)]
