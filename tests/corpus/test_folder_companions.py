"""What lies beside the images of a folder: metadata files and captions go where their images go."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from poisoncam_ray import review
from poisoncam_ray.corpus import DEAD, KEPT, REMOVED, open_corpus
from poisoncam_ray.corpus.folder import delete_images, shared_captions
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.review import RESTORE, Named
from poisoncam_ray.settings import load_config
from tests.reviewed import SETTINGS, go, judged_run

NAMES = [
    f"{split}/{kind}/{i}.png" for split in ("test", "train") for kind in ("cat", "dog") for i in range(4)
]
FATE = dict.fromkeys(NAMES, KEPT)
FATE |= {
    "train/cat/1.png": REMOVED,
    "train/dog/0.png": REMOVED,
    "train/dog/2.png": DEAD,
    "test/cat/3.png": DEAD,
}
TRAIN = [name.removeprefix("train/") for name in NAMES if name.startswith("train/")]


def picture(i: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (i, 2 * i, 9)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def place(tmp_path) -> Path:
    for i, name in enumerate(NAMES):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i))
    return tmp_path


def split(place: Path, rows_per_slice: int = 3, fates=FATE) -> tuple[Path, Path]:
    """Split the corpus as Clean does, the last step twice."""
    clean, removed = place / "clean", place / "removed"
    corpus = open_corpus(str(place / "in"), rows_per_slice=rows_per_slice)
    for unit in corpus.units():
        here = [fates[name] for slice_ in unit for name in slice_.files]
        corpus.split(unit, here, str(clean), str(removed))
    for _ in range(2):
        corpus.finish(str(clean), str(removed), lambda: {k: v for k, v in fates.items() if v != KEPT})
    return clean, removed


def rows_of_train(fate: int) -> list[str]:
    return [name for name in TRAIN if FATE[f"train/{name}"] == fate]


# ---- metadata


def write_jsonl(folder: Path, names: list[str]) -> bytes:
    lines = [json.dumps({"file_name": name, "text": f'words, "{i}" ü'}) for i, name in enumerate(names)]
    data = "\n".join(lines).encode()
    (folder / "metadata.jsonl").write_bytes(data)
    return data


def write_csv(folder: Path, names: list[str]) -> bytes:
    rows = [f'"words, ""{i}""\nover two lines",{name},{i}\r\n' for i, name in enumerate(names)]
    data = "".join(["text,file_name,number\r\n", *rows]).encode()
    (folder / "metadata.csv").write_bytes(data)
    return data


def write_parquet(folder: Path, names: list[str]) -> bytes:
    table = pa.table({"file_name": names, "number": pa.array(range(len(names)), pa.int8())})
    table = table.replace_schema_metadata({"who": "me"})
    pq.write_table(table, folder / "metadata.parquet", row_group_size=3, compression="zstd")
    return b""


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_parquet])
def test_datasets_reads_the_metadata_of_the_kept_images(place, write, tmp_path):
    write(place / "in" / "train", TRAIN)
    write(place / "in" / "test", [n.removeprefix("test/") for n in NAMES if n.startswith("test/")])
    clean, removed = split(place)
    for folder, fate in ((clean, KEPT), (removed, REMOVED)):
        read = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))
        names = rows_of_train(fate)
        assert {name: len(part) for name, part in read.items()} == {
            part: n
            for part in ("train", "test")
            if (n := sum(fate == of and name.startswith(part) for name, of in FATE.items()))
        }
        other = {"write_jsonl": "text"}.get(write.__name__, "number")
        numbers = [TRAIN.index(name) for name in names]
        expected = [f'words, "{i}" ü' for i in numbers] if other == "text" else numbers
        assert read["train"][other] == expected
        stored = [picture(NAMES.index(f"train/{name}")) for name in names]
        raw = read["train"].cast_column("image", datasets.Image(decode=False))
        assert [Path(row["image"]["path"]).read_bytes() for row in raw] == stored


def test_lines_keep_their_bytes_and_order(place):
    folder = place / "in" / "train"
    stray = [
        b'  {"file_name": "cat/0.png" , "file_name_": "cat/1.png"}\t\r\n',
        b'{"file_name": "nowhere.png"}\n',
        b"\n",
        b'{"other": 1}\n',
        b'{"file_name": "./dog/../cat/1.png", "u": "\\u00fc"}\n',
        b'{"file_name": "https://example.org/x.png"}\n',
        b'{"file_name": "dog/2.png"}\n',
        b'{"left_file_name": "cat/0.png", "right_file_name": "dog/0.png"}\n',
        b'{"file_names": ["cat/0.png", "cat/2.png"]}\n',
        b'{"file_names": ["cat/0.png", "dog/2.png"]}\n',
        b'{"file_name": "../test/cat/0.png"}',
    ]
    (folder / "metadata.jsonl").write_bytes(b"".join(stray))
    clean, removed = split(place)
    kept = [0, 1, 2, 3, 5, 8, 10]
    assert (clean / "train/metadata.jsonl").read_bytes() == b"".join(stray[i] for i in kept)
    assert (removed / "train/metadata.jsonl").read_bytes() == stray[4] + stray[7]


def test_csv_rows_keep_their_bytes_and_the_header_is_repeated(place):
    data = write_csv(place / "in" / "train", TRAIN)
    clean, removed = split(place)
    header, *rows = data.split(b",file_name,number\r\n", 1)
    header += b",file_name,number\r\n"
    rows = [row + b"\r\n" for row in rows[0].split(b"\r\n")[:-1]]
    for folder, fate in ((clean, KEPT), (removed, REMOVED)):
        wanted = [row for row, name in zip(rows, TRAIN, strict=True) if name in rows_of_train(fate)]
        assert (folder / "train/metadata.csv").read_bytes() == header + b"".join(wanted)


def test_a_metadata_parquet_keeps_its_schema_groups_and_codec(place):
    write_parquet(place / "in" / "train", TRAIN)
    clean, removed = split(place)
    before = pq.ParquetFile(place / "in/train/metadata.parquet")
    for folder, fate in ((clean, KEPT), (removed, REMOVED)):
        after = pq.ParquetFile(folder / "train/metadata.parquet")
        assert after.schema_arrow.equals(before.schema_arrow, check_metadata=True)
        assert after.metadata.row_group(0).column(0).compression == "ZSTD"
        assert after.read()["file_name"].to_pylist() == rows_of_train(fate)


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_parquet])
def test_metadata_of_images_that_all_stay_is_the_same_file(place, write):
    for folder in ("train", "test"):
        write(place / "in" / folder, [n.partition("/")[2] for n in NAMES if n.startswith(folder)])
    clean, removed = split(place, fates=dict.fromkeys(NAMES, KEPT) | {"test/dog/1.png": REMOVED})
    (path,) = (place / "in/train").glob("metadata.*")
    assert (clean / "train" / path.name).read_bytes() == path.read_bytes()
    assert not (removed / "train").exists() and (removed / "test" / path.name).exists()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("metadata.jsonl", b'{"file_name": "../../secret.png"}', "leaves the corpus"),
        ("metadata.jsonl", b'{"file_name": "/etc/passwd"}', "leaves the corpus"),
        ("metadata.csv", b"file_name\n../../secret.png\n", "leaves the corpus"),
        ("metadata.jsonl", b'{"file_name": "cat/0.png"}\n{"file_name":', "Line 2 of .* is no JSON object"),
        ("metadata.jsonl", b"[" * 100_000, "Line 1 of .* is no JSON object"),
        ("metadata.csv", b"file_name\n" + b'"' + b"x" * 200_000, "is no CSV file"),
        ("metadata.parquet", b"PAR1 and nothing", "cannot be read"),
    ],
)
def test_broken_and_climbing_metadata_is_refused_before_any_work(place, name, data, words):
    (place / "in" / "train" / name).write_bytes(data)
    with pytest.raises(UserError, match=words):
        open_corpus(str(place / "in")).slices()


def test_a_long_metadata_file_is_streamed(place):
    """A row's bytes are held, and no more."""
    from poisoncam_ray.corpus import metadata

    path = place / "in/train/metadata.jsonl"
    row = json.dumps({"file_name": "cat/0.png", "text": "x" * 3_000_000}).encode() + b"\n"
    path.write_bytes(row * 5)
    with metadata.open_file(str(place / "in"), "train/metadata.jsonl", None) as file:
        assert [len(raw) for raw, _ in metadata._text_rows(file, "train/metadata.jsonl")] == [len(row)] * 5
    path.write_bytes(b"x" * (metadata.LINE_MAX + 2**21))
    with pytest.raises(UserError, match="line of more than"):
        open_corpus(str(place / "in")).slices()


# ---- a whole run, without a cluster


def write_corpus(folder: Path) -> None:
    for i, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        # One image is dead.
        (folder / name).write_bytes(b"no image" if i == 6 else picture(i))
        (folder / f"{name}.txt").write_text(name)
    write_jsonl(folder, NAMES)


def rows_in(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """The images, captions and metadata rows in a folder, by the images' names."""
    images = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    captions = sorted(path.read_text() for path in folder.rglob("*.png.txt"))
    lines = (folder / "metadata.jsonl").read_text().splitlines() if images else []
    return images, captions, [json.loads(line)["file_name"] for line in lines]


def test_a_run_splits_what_lies_beside_and_a_restored_image_takes_it_back(tmp_path):
    write_corpus(tmp_path / "in")
    corpus, run = str(tmp_path / "in"), Folder(str(tmp_path / "run"))
    judged_run(corpus, run)
    go(corpus, run)
    clean, removed = tmp_path / "run/clean", tmp_path / "run/removed"
    gone, kept = rows_in(removed)[0], rows_in(clean)[0]
    assert len(gone) > 3 and sorted([*gone, *kept, NAMES[6]]) == sorted(NAMES)
    assert rows_in(removed) == (gone,) * 3 and rows_in(clean) == (kept,) * 3
    named = Named(ids=frozenset(gone[1:3]))
    review.append(run, RESTORE, named, 2, "ann", "why")
    go(corpus, run)
    assert rows_in(removed) == ([gone[0], *gone[3:]],) * 3
    assert rows_in(clean) == (sorted([*kept, *gone[1:3]]),) * 3
    review.append(run, RESTORE, Named(ids=frozenset(gone)), len(gone), "ann", "why")
    go(corpus, run)
    assert not list(removed.rglob("*.*")) and rows_in(clean) == (sorted([*kept, *gone]),) * 3


def test_a_run_that_copies_nothing_writes_no_metadata_of_kept_images(tmp_path):
    write_corpus(tmp_path / "in")
    corpus, run = str(tmp_path / "in"), Folder(str(tmp_path / "run"))
    config = load_config(overrides=[*SETTINGS, "clean.copy_corpus=false"])
    judged_run(corpus, run, config)
    go(corpus, run, config)
    assert not (tmp_path / "run/clean").exists()
    gone = rows_in(tmp_path / "run/removed")[0]
    assert gone and rows_in(tmp_path / "run/removed") == (gone,) * 3


# ---- captions


def test_captions_go_where_their_image_goes(place):
    written = {}
    for name in NAMES:
        stem = name.removesuffix(".png")
        for path in (f"{stem}.txt", f"{stem}.caption", f"{stem}.json", f"{name}.txt", f"{stem}.npy"):
            data = f"{path}\r\nü".encode()
            (place / "in" / path).write_bytes(data)
            written[path] = (name, data)
    (place / "in/train/readme.txt").write_text("no image has this name")
    clean, removed = split(place)
    for folder, fate in ((clean, KEPT), (removed, REMOVED)):
        expected = {
            path: data
            for path, (name, data) in written.items()
            if FATE[name] == fate and not path.endswith(".npy")
        }
        found = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.suffix != ".png"
        }
        assert found == expected


def test_images_of_one_stem_share_a_caption_even_across_slices(place):
    for name in ("a.gif", "a.png", "a.jpg.png"):
        (place / "in" / name).write_bytes(picture(0))
    (place / "in/a.txt").write_text("two images")
    (place / "in/a.jpg.txt").write_text("another")
    fates = FATE | {"a.gif": KEPT, "a.png": REMOVED, "a.jpg.png": DEAD}
    for rows in (1, 100):
        clean, removed = split(place, rows_per_slice=rows, fates=fates)
        assert (clean / "a.txt").read_text() == (removed / "a.txt").read_text() == "two images"
        assert not list(place.glob("*/a.jpg.txt"))[1:]


def test_a_hidden_looking_caption_of_a_camera_follows(place):
    (place / "in/_dsc01.jpg").write_bytes(picture(0))
    (place / "in/_dsc01.txt").write_text("words")
    clean, _ = split(place, fates=FATE | {"_dsc01.jpg": KEPT})
    assert (clean / "_dsc01.txt").read_text() == "words"


def test_a_caption_that_is_a_link_out_of_the_folder_is_refused(place):
    (place / "secret.txt").write_text("secret")
    (place / "in/train/cat/0.txt").symlink_to(place / "secret.txt")
    with pytest.raises(UserError, match="symbolic link that leaves"):
        open_corpus(str(place / "in")).slices()


def test_a_shared_caption_stays_for_the_image_of_another_unit(place):
    """As Clean writes the unit of an image again that a review restored."""
    for name in ("a.gif", "a.png", "b.png"):
        (place / "in" / name).write_bytes(picture(0))
    for name in ("a.txt", "a.gif.txt", "b.txt"):
        (place / "in" / name).write_text("words")
    _, removed = split(place, 1, FATE | {"a.gif": REMOVED, "a.png": REMOVED, "b.png": REMOVED})
    units = open_corpus(str(place / "in"), rows_per_slice=1).units()
    shared = shared_captions([slice_ for unit in units for slice_ in unit])
    for unit in units:
        gone = [name for name in unit[0].files if name in ("a.gif", "b.png")]
        delete_images(unit, str(removed), gone, shared)
    assert {path.name for path in removed.iterdir() if path.is_file()} == {"a.png", "a.txt"}


def test_a_caption_of_any_size_is_copied(place, monkeypatch):
    monkeypatch.setattr("poisoncam_ray.corpus.folder.IMAGE_MAX", 1000)
    (place / "in/train/cat/0.txt").write_bytes(bytes(1001))
    clean, _ = split(place)
    assert (clean / "train/cat/0.txt").read_bytes() == bytes(1001)


def test_a_caption_that_is_no_file_is_named_before_any_work(place):
    os.mkfifo(place / "in/train/cat/0.txt")
    with pytest.raises(UserError, match=r"The caption train/cat/0\.txt cannot be read"):
        open_corpus(str(place / "in")).slices()


@pytest.mark.parametrize("name", ["train/cat/0.txt", "train/cat/0.png.json", "train/metadata.csv"])
def test_a_run_is_compared_by_what_lies_beside_the_images(place, name):
    sources = open_corpus(str(place / "in")).sources()
    (place / "in/train/cat/notes.txt").write_text("of no image")
    (place / "in" / name).write_text("file_name\n")
    changed = open_corpus(str(place / "in")).sources()
    assert [source.path for source in changed if source not in sources] == [name]


def test_a_row_of_endless_lines_is_refused(place, monkeypatch):
    monkeypatch.setattr("poisoncam_ray.corpus.metadata.LINE_MAX", 1000)
    (place / "in/metadata.csv").write_text("file_name,x\n" + '"a\n","b\n",' * 200 + "\n")
    with pytest.raises(UserError, match=r"metadata\.csv has a row of more than 1000 bytes"):
        open_corpus(str(place / "in")).slices()
