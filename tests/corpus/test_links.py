"""Symbolic links: refused by name where they leave the corpus, or followed, each folder once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from poisoncam_ray.commands import defend
from poisoncam_ray.corpus import KEPT, open_corpus
from poisoncam_ray.errors import UserError
from tests.corpus.mistakes import refuse
from tests.corpus.tables import structs
from tests.fuzz import seeds
from tests.tars import image


def parquet(n: int) -> bytes:
    return seeds.parquet(pa.table({"image": structs(n)}))


def tar(n: int) -> bytes:
    return seeds.tar(seeds.samples(n), seeds.tarfile.USTAR_FORMAT)


def hub(folder: Path, files: dict[str, bytes]) -> Path:
    """A dataset as Hugging Face's cache holds it: a snapshot of links to blobs."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "abc123"
    blobs.mkdir(parents=True)
    for name, data in files.items():
        blob = blobs / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        path = snapshot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(Path(*[".."] * (2 + name.count("/")), "blobs", blob.name))
    return snapshot


FILES = {
    "parquet": {"data/a.parquet": parquet(3), "data/b.parquet": parquet(2)},
    "webdataset": {"a.tar": tar(3), "b.tar": tar(2)},
    "folder": {f"cat/{i}.png": image(i) for i in range(5)},
}


@pytest.mark.parametrize("kind", FILES)
def test_a_cache_of_links_is_refused_by_name_or_followed(tmp_path, kind):
    snapshot = hub(tmp_path / "hub", FILES[kind])
    refuse(r"is a symbolic link that leaves the folder: give --follow-links", snapshot)
    corpus = open_corpus(str(snapshot), follow_links=True)
    assert [s.path for s in corpus.sources()] == sorted(FILES[kind])
    for source in corpus.sources():
        target = (snapshot / source.path).resolve().stat()
        assert (source.size, source.tag) == (target.st_size, str(target.st_mtime_ns))
    units = corpus.units()
    rows = [row for unit in units for slice_ in unit for row in corpus.read(slice_)]
    assert len(rows) == 5 and not [row for row in rows if row.error]
    assert corpus.fetch([row.image_id for row in rows]) == [row.data for row in rows]
    for unit in units:
        corpus.split(unit, [KEPT] * unit[-1].stop if corpus.sharded else [KEPT] * 5, *places(tmp_path))
    written = [path for path in (tmp_path / "clean").rglob("*") if path.is_file()]
    assert {str(path.relative_to(tmp_path / "clean")): path.read_bytes() for path in written} == FILES[kind]
    assert not [path for path in written if path.is_symlink()]


def places(folder: Path) -> tuple[str, str]:
    return str(folder / "clean"), str(folder / "removed")


def test_what_datasets_saved_in_the_cache_is_followed_too(tmp_path):
    datasets.Dataset(pa.table({"image": structs(4)})).save_to_disk(str(tmp_path / "saved"))
    files = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    snapshot = hub(tmp_path / "hub", files)
    refuse("is a symbolic link that leaves the folder", snapshot)
    assert open_corpus(str(snapshot), follow_links=True).units()[0][-1].stop == 4


def test_one_file_may_be_a_link(tmp_path):
    snapshot = hub(tmp_path / "hub", FILES["parquet"])
    assert len(open_corpus(str(snapshot / "data/a.parquet")).sources()) == 1


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Two folders of images, and two elsewhere."""
    for i, name in enumerate(("in/a/0.png", "in/b/1.png", "out/2.png", "out/deep/3.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image(i))
    return tmp_path / "in"


def listed(corpus: Path) -> list[str]:
    return [s.path for s in open_corpus(str(corpus), follow_links=True).sources()]


def test_a_linked_folder_is_followed(corpus):
    (corpus / "c").symlink_to(corpus.parent / "out")
    refuse("c is a symbolic link to a folder: give --follow-links", corpus)
    assert listed(corpus) == ["a/0.png", "b/1.png", "c/2.png", "c/deep/3.png"]


def test_no_folder_is_listed_twice(corpus):
    out = corpus.parent / "out"
    for name, target in (("c", out), ("d", out), ("e", out / "deep"), ("a/b", corpus / "b")):
        (corpus / name).symlink_to(target)
    assert listed(corpus) == ["a/0.png", "b/1.png", "c/2.png", "e/3.png"]
    (corpus / "0").symlink_to(out)
    assert listed(corpus) == ["0/2.png", "a/0.png", "b/1.png", "e/3.png"]


def test_circles_end(corpus):
    (corpus / "a/up").symlink_to(corpus)
    (corpus / "self").symlink_to(corpus / "self2")
    (corpus / "self2").symlink_to(corpus.parent / "out")
    (corpus.parent / "out/back").symlink_to(corpus)
    (corpus.parent / "out/round").symlink_to(corpus.parent / "out")
    assert listed(corpus) == ["a/0.png", "b/1.png", "self/2.png", "self/deep/3.png"]
    (corpus / "above").symlink_to(corpus.parent)
    (corpus.parent / "5.png").write_bytes(image(5))
    assert listed(corpus) == ["a/0.png", "above/5.png", "b/1.png", "self/2.png", "self/deep/3.png"]


def test_a_link_to_a_hidden_folder_of_the_corpus_is_followed(corpus):
    (corpus / ".store").mkdir()
    (corpus / ".store/4.png").write_bytes(image(4))
    (corpus / "c").symlink_to(".store")
    assert listed(corpus) == ["a/0.png", "b/1.png", "c/4.png"]


def test_captions_and_metadata_may_be_links(corpus):
    (corpus.parent / "words.txt").write_text("words")
    (corpus / "a/0.txt").symlink_to(corpus.parent / "words.txt")
    with pytest.raises(UserError, match=r"0\.txt is a symbolic link that leaves"):
        open_corpus(str(corpus)).slices()
    (slice_,) = open_corpus(str(corpus), follow_links=True).slices()
    assert slice_.beside == ("a/0.txt",)


def test_a_broken_link_is_named(corpus):
    (corpus / "c.png").symlink_to("gone.png")
    with pytest.raises(UserError, match=r"c\.png is a broken symbolic link"):
        listed(corpus)


def test_the_option_sets_the_key(corpus, monkeypatch):
    seen = []

    def stop(place, output, config, *_):
        seen.append(config.corpus.follow_links)
        raise UserError("enough")

    monkeypatch.setattr(defend, "run_defence", stop)
    for given in (True, False):
        with pytest.raises(UserError, match="enough"):
            defend.defend([str(corpus)], output="out", follow_links=given)
    assert seen == [True, False]


def test_a_shard_replaced_behind_its_link_has_changed(tmp_path):
    snapshot = hub(tmp_path / "hub", {"a.parquet": parquet(3)})
    corpus = open_corpus(str(snapshot), follow_links=True)
    slices = corpus.slices()
    pq.write_table(pa.table({"image": structs(4)}), (snapshot / "a.parquet").resolve())
    with pytest.raises(UserError, match="changed since it was indexed"):
        list(corpus.read(slices[0]))
