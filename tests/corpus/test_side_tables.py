"""Tables beside tars, as img2dataset and NeMo Curator write them: a row follows the sample of its key."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from poisoncam_ray.corpus import DEAD, KEPT, REMOVED, Corpus, open_corpus
from poisoncam_ray.corpus.webdataset import WebDatasetCorpus
from poisoncam_ray.errors import UserError
from tests.corpus.mistakes import refuse
from tests.tars import image, rows_of, tar_bytes

# What img2dataset saves of a list of URLs with captions: its columns follow those of the list.
SCHEMA = pa.schema(
    [
        ("caption", pa.string()),
        ("url", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
    ]
)
N, FAILED = 20, (3, 7, 19)
"""Rows of a shard, and those whose download failed."""


def key_of(shard: int, i: int) -> str:
    return f"{shard:05d}{i:04d}"


def write_shard(folder: Path, shard: int) -> None:
    """One shard as img2dataset writes it, in its order: the order in which downloads end."""
    order = sorted(range(N), key=lambda i: i * 7 % N)
    members, rows = [], []
    for i in order:
        key, failed = key_of(shard, i), i in FAILED
        rows.append(
            {
                "caption": f"picture {i}",
                "url": f"https://host/{i}.jpg",
                "key": key,
                "status": "failed_to_download" if failed else "success",
                "error_message": "HTTP Error 404: Not Found" if failed else None,
                "width": None if failed else 4,
                "exif": None if failed else "{}",
            }
        )
        if not failed:
            members += [(f"{key}.jpg", image(100 * shard + i)), (f"{key}.txt", b"picture")]
            members += [(f"{key}.json", json.dumps(rows[-1], indent=4).encode())]
    (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(members, tarfile.USTAR_FORMAT))
    with pq.ParquetWriter(folder / f"{shard:05d}.parquet", SCHEMA) as writer:
        for first in range(0, N, 8):  # img2dataset: a hundred
            writer.write_table(pa.Table.from_pylist(rows[first : first + 8], SCHEMA))
    stats = {"count": N, "successes": N - len(FAILED), "status_dict": {"success": N - len(FAILED)}}
    (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats, indent=4))


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    for shard in range(3):
        write_shard(tmp_path / "in", shard)
    return tmp_path / "in"


def keys_in(tar: Path) -> list[str]:
    with tarfile.open(tar, "r:") as archive:
        return [name.removesuffix(".jpg") for name in archive.getnames() if name.endswith(".jpg")]


def split(corpus: Corpus, fates: list[list[int]], folder: Path) -> None:
    for unit, fate in zip(corpus.units(), fates, strict=True):
        kept, removed = corpus.split(unit, fate, str(folder / "clean"), str(folder / "removed"))
        assert (kept, removed) == (fate.count(KEPT), fate.count(REMOVED))
    corpus.finish(str(folder / "clean"), str(folder / "removed"), dict)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*")}


ALIVE = N - len(FAILED)
MIXED = [KEPT, REMOVED, DEAD, KEPT] * 4 + [KEPT]


def test_the_tars_are_the_corpus_and_the_tables_belong_to_it(folder):
    corpus = open_corpus(str(folder), rows_per_slice=6)
    assert isinstance(corpus, WebDatasetCorpus)
    assert corpus == open_corpus(str(folder), format="webdataset", rows_per_slice=6)
    expected = [key for shard in range(3) for key in keys_in(folder / f"{shard:05d}.tar")]
    assert [row.data for row in rows_of(corpus)] == [image(100 * int(k[:5]) + int(k[5:])) for k in expected]
    # A run folder is compared by what lies beside the tars as well.
    files = {f"{shard:05d}{end}" for shard in range(3) for end in (".parquet", ".tar", "_stats.json")}
    assert {source.path for source in corpus.sources()} == files
    assert [corpus.check(source) for source in corpus.sources()] == [None] * 9
    assert corpus.slices(corpus.sources()) == corpus.slices()
    # As before: a mixture of shards is none of tables.
    (folder / "00003.parquet").write_bytes((folder / "00000.parquet").read_bytes())
    refuse("mixes 4 Parquet files and 3 tar files", folder)


def test_a_row_follows_its_image_and_a_failed_download_stays(folder, tmp_path):
    corpus = open_corpus(str(folder), rows_per_slice=6)
    for _ in range(2):
        split(corpus, [MIXED, [KEPT] * ALIVE, [REMOVED] * ALIVE], tmp_path)
        clean, removed = tmp_path / "clean", tmp_path / "removed"
        assert names(clean) == {
            f"0000{i}{end}" for i in (0, 1) for end in (".tar", ".parquet", "_stats.json")
        }
        assert names(removed) == {f"0000{i}{end}" for i in (0, 2) for end in (".tar", ".parquet")}
        for name in names(clean):
            if name.startswith("00001") or name.endswith(".json"):
                assert (clean / name).read_bytes() == (folder / name).read_bytes()
        whole = pq.read_table(folder / "00000.parquet")
        fates = dict(zip(keys_in(folder / "00000.tar"), MIXED, strict=True))
        for place, fate in ((clean, KEPT), (removed, REMOVED)):
            table = pq.read_table(place / "00000.parquet")
            wanted = [row for row in whole.to_pylist() if fates.get(row["key"], KEPT) == fate]
            assert table.to_pylist() == wanted and table.schema.equals(SCHEMA)
            succeeded = [row["key"] for row in wanted if row["status"] == "success"]
            assert succeeded == keys_in(place / "00000.tar")
        failed = [row["key"] for row in wanted if row["status"] != "success"]
        # Of a shard without kept samples they go with the removed ones: no row of the table is lost.
        assert failed == [] and pq.read_table(removed / "00002.parquet").num_rows == N
        kept = pq.read_table(clean / "00000.parquet").to_pylist()
        assert sorted(row["key"] for row in kept if row["error_message"]) == [key_of(0, i) for i in FAILED]
        # Both folders are of the same layout again.
        assert len(rows_of(open_corpus(str(clean)))) == MIXED.count(KEPT) + ALIVE
        assert len(rows_of(open_corpus(str(removed)))) == MIXED.count(REMOVED) + ALIVE


def test_another_verdict_leaves_nothing_of_the_first(folder, tmp_path):
    corpus = open_corpus(str(folder))
    split(corpus, [[REMOVED] * ALIVE] * 3, tmp_path)
    assert names(tmp_path / "clean") == set()
    split(corpus, [[KEPT] * ALIVE] * 3, tmp_path)
    assert names(tmp_path / "removed") == set() and names(tmp_path / "clean") == names(folder)


def rewrite(path: Path, change) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def test_the_samples_decide_where_the_table_has_other_keys(folder, tmp_path):
    first, second = keys_in(folder / "00000.tar")[:2]

    def change(table: pa.Table) -> pa.Table:
        """Without the first sample, with the second twice, and with a key that is null."""
        rows = [row for row in table.to_pylist() if row["key"] != first]
        rows += [row | {"caption": "again"} for row in rows if row["key"] == second]
        return pa.Table.from_pylist([*rows, rows[0] | {"key": None}], SCHEMA)

    rewrite(folder / "00000.parquet", change)
    corpus = open_corpus(str(folder))
    split(corpus, [[REMOVED, REMOVED] + [KEPT] * (ALIVE - 2)] + [[KEPT] * ALIVE] * 2, tmp_path)
    removed = pq.read_table(tmp_path / "removed/00000.parquet")
    assert removed["key"].to_pylist() == [second] * 2
    kept = pq.read_table(tmp_path / "clean/00000.parquet")
    assert len(kept) == N + 1 - 2 and kept["key"].null_count == 1
    assert keys_in(tmp_path / "removed/00000.tar") == [first, second]


@pytest.mark.parametrize("kind", ["key", "id"])
def test_a_table_with_the_key_of_no_sample_is_refused(folder, kind):
    """`tar cf x.tar .` writes names that begin with "./": rows of removed images would all stay."""
    path = folder / "00001.tar"
    with tarfile.open(path) as archive:
        members = [(f"./{m.name}", archive.extractfile(m).read()) for m in archive.getmembers()]
    path.write_bytes(tar_bytes(members, tarfile.USTAR_FORMAT))
    if kind == "id":
        rewrite(folder / "00001.parquet", renamed("id"))
    with pytest.raises(UserError, match=r"None of the 17 samples of 00001\.tar has a row"):
        open_corpus(str(folder)).slices()


def test_a_table_of_endless_rows_is_not_read(folder):
    path = folder / "00001.parquet"
    rewrite(path, lambda table: pa.concat_tables([table, *[table.slice(0, 1)] * 5000]))
    corpus = open_corpus(str(folder))
    assert {corpus.check(source) for source in corpus.sources()} == {None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("poisoncam_ray.corpus.side.ROWS_MAX", 5000)
        (problem,) = [p for p in map(corpus.check, corpus.sources()) if p]
    assert problem.source == "00001.tar" and problem.reason == "5,020 rows, more than the limit of 5,000"


def test_what_was_counted_is_no_way_out_of_the_folder(folder, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (folder / "00001_stats.json").unlink()
    (folder / "00001_stats.json").symlink_to(tmp_path / "secret")
    corpus = open_corpus(str(folder))
    with pytest.raises(UserError, match=r"00001_stats\.json is a symbolic link that leaves"):
        corpus.sources()


def damage(path: Path) -> None:
    """Within a row group, behind a whole footer."""
    data = bytearray(path.read_bytes())
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + 30] = b"\xff" * 30
    path.write_bytes(data)


@pytest.mark.parametrize("broken", [lambda path: path.write_bytes(b"no table"), damage])
def test_a_table_that_cannot_be_read_is_a_problem_of_its_shard(folder, tmp_path, broken):
    broken(folder / "00001.parquet")
    corpus = open_corpus(str(folder))
    (problem,) = [p for p in map(corpus.check, corpus.sources()) if p]
    assert (problem.source, problem.kind) == ("00001.tar", "unreadable_shard")
    rows = rows_of(corpus)
    assert [(r.image_id, r.error[0]) for r in rows if r.error] == [("00001.tar#0", "unreadable_shard")]
    split(corpus, [[KEPT] * ALIVE, [DEAD], [KEPT] * ALIVE], tmp_path)
    assert not [name for name in names(tmp_path / "clean") if name.startswith("00001")]


def renamed(name: str):
    return lambda table: table.rename_columns([name if n == "key" else n for n in table.column_names])


@pytest.mark.parametrize("name", ["id", "image_id"])
def test_other_names_of_the_key_column_count_when_every_sample_is_in_it(folder, tmp_path, name):
    """NeMo Curator writes image_id."""
    for shard in range(3):
        rewrite(folder / f"{shard:05d}.parquet", renamed(name))
    corpus = open_corpus(str(folder))
    split(corpus, [MIXED, [KEPT] * ALIVE, [KEPT] * ALIVE], tmp_path)
    table = pq.read_table(tmp_path / "removed/00000.parquet")
    assert table[name].to_pylist() == keys_in(tmp_path / "removed/00000.tar")
    # A damaged tar has a last row without a known key.
    tar = folder / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:4500])
    assert rows_of(open_corpus(str(folder)))
    rewrite(folder / "00002.parquet", lambda table: table.slice(0, 5))
    refuse(f"samples of 00002.tar have no row in 00002.parquet, whose column {name}.* to key", folder)
    rewrite(folder / "00000.parquet", lambda table: table.drop_columns([name]))
    refuse(
        "table 00000.parquet beside the tar .* no text column with the samples' keys .*caption, url", folder
    )


def test_a_removed_list_alone_and_a_shard_without_a_table(folder, tmp_path):
    (folder / "00001.parquet").unlink()
    corpus = open_corpus(str(folder))
    for unit in corpus.units():
        assert corpus.split(unit, MIXED, None, str(tmp_path / "removed")) == (9, 4)
    assert names(tmp_path / "removed") == {
        "00000.tar",
        "00000.parquet",
        "00001.tar",
        "00002.tar",
        "00002.parquet",
    }
