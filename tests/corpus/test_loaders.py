"""What Clean writes opens, unchanged, with the tools that people open corpora with.

The corpora are written by those tools too. Pictures are 8 px wide; the number of a row is their colour.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pyarrow as pa
import pyarrow.dataset
import pytest
import torchvision
import webdataset
from PIL import Image

from poisoncam_ray import artifact
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.folder import Folder
from poisoncam_ray.stages.clean import write_unit
from poisoncam_ray.stages.index import index_slice

N, SHARDS = 24, 4
NAMES = ["cat", "dog", "emu", "fox"]
"""The class of a row is its shard: row 0 … 5 are cats."""
REMOVED = {*range(6), 7, 8, 23}
"""All of the first shard: some tools look there alone for what the columns are."""
NONE: set[int] = set()
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=NAMES),
        "number": datasets.Value("int32"),
        "boxes": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
    }
)
Write = Callable[[Path], None]


def picture(number: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 100, 200)).save(sink, "PNG")
    return sink.getvalue()


def number_of(image: Image.Image) -> int:
    red, green, blue = image.convert("RGB").getpixel((0, 0))
    assert (green, blue) == (100, 200)
    return red


def shards() -> list[range]:
    step = N // SHARDS
    return [range(first, first + step) for first in range(0, N, step)]


def boxes(number: int) -> list[list[int]]:
    return [[0, 0, number, number]] * (number % 3)


def write_parquet(folder: Path) -> None:
    """Shards as `datasets` pushes them to a hub."""
    for i, numbers in enumerate(shards()):
        rows = {
            "image": [{"bytes": picture(n), "path": f"{n}.png"} for n in numbers],
            "label": [i] * len(numbers),
            "number": list(numbers),
            "boxes": [boxes(n) for n in numbers],
        }
        path = folder / "data" / f"train-{i:05}-of-{SHARDS:05}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=FEATURES).to_parquet(path)


def write_nested(folder: Path) -> None:
    """Shards in a folder for each split."""
    write_parquet(folder)
    for i, path in enumerate(sorted((folder / "data").iterdir())):
        place = folder / ("train", "train", "train", "test")[i] / f"{i:04}.parquet"
        place.parent.mkdir(exist_ok=True)
        path.rename(place)
    (folder / "data").rmdir()


def write_tars(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i, numbers in enumerate(shards()):
        with webdataset.TarWriter(str(folder / f"{i:05}.tar")) as sink:
            for n in numbers:
                sink.write({"__key__": f"{n:06}", "png": picture(n), "cls": i, "json": {"number": n}})


def write_classes(folder: Path) -> None:
    for name, numbers in zip(NAMES, shards(), strict=True):
        (folder / name).mkdir(parents=True)
        for n in numbers:
            (folder / name / f"{n:02}.png").write_bytes(picture(n))


def split(folder: Path, write: Write, removed: set[int]) -> tuple[Path, Path]:
    """A corpus as Index and Clean leave it, without the rows in `removed`.

    Returns:
        The folders of the clean corpus and of the removed rows. The second is missing where nothing was
        removed.
    """
    write(folder / "in")
    corpus = open_corpus(str(folder / "in"), rows_per_slice=4)
    run = Folder(str(folder / "out"))
    for slice_ in corpus.slices():
        found = index_slice(slice_, corpus, Config(), run / artifact.INDEX, run / artifact.DEAD_ROWS)
        assert not found["dead"]
        ids = [row.image_id for row in corpus.read(slice_)]
        seen = [number_of(Image.open(io.BytesIO(data))) for data in corpus.fetch(ids)]
        fates = [artifact.REMOVE if n in removed else artifact.KEEP for n in seen]
        table = {"image_id": ids, "p_poison": [0.5] * len(ids), "fate": fates, "family": [1] * len(ids)}
        table |= {side: [-1] * len(ids) for side in SIDES}
        name = f"part-{slice_.index:06d}.parquet"
        (run / artifact.SCORES).write_table(name, pa.table(table, schema=artifact.SCORE_SCHEMA))
    for i, unit in enumerate(corpus.units()):
        write_unit(i, unit, corpus, run)
    return folder / "out" / artifact.CLEAN_ROWS, folder / "out" / artifact.REMOVED_ROWS


def load(folder: Path, *arguments: str, **options: Any) -> datasets.DatasetDict:
    return datasets.load_dataset(*arguments, cache_dir=str(folder / "cache"), **options)


def numbers(loaded: datasets.DatasetDict) -> list[int]:
    """The numbers of all rows, by their pictures; `number`, where there is one, says the same."""
    found = [row for part in loaded.values() for row in part]
    seen = [number_of(row["image"] if "image" in row else row["png"]) for row in found]
    for row, n in zip(found, seen, strict=True):
        assert row.get("number", n) == n
    return sorted(seen)


KEPT = sorted(set(range(N)) - REMOVED)


@pytest.mark.parametrize("write", [write_parquet, write_nested])
@pytest.mark.parametrize("named", [False, True], ids=["by_path", "by_format"])
def test_datasets_loads_parquet_with_its_features(tmp_path, write, named):
    clean, removed = split(tmp_path, write, REMOVED)
    for place, expected in ((clean, KEPT), (removed, sorted(REMOVED))):
        how = {"path": "parquet", "data_dir": str(place)} if named else {"path": str(place)}
        loaded = load(tmp_path / place.name, **how)
        assert numbers(loaded) == expected
        assert set(loaded) == set(load(tmp_path / "before", str(tmp_path / "in")))
        for part in loaded.values():
            assert part.features == FEATURES
            assert all(row["label"] == row["number"] * SHARDS // N for row in part)
            assert all(row["boxes"] == boxes(row["number"]) for row in part)


@pytest.mark.parametrize("named", [False, True], ids=["by_path", "by_format"])
def test_datasets_loads_tars(tmp_path, named):
    clean, removed = split(tmp_path, write_tars, REMOVED)
    for place, expected in ((clean, KEPT), (removed, sorted(REMOVED))):
        how = {"path": "webdataset", "data_dir": str(place)} if named else {"path": str(place)}
        loaded = load(tmp_path / place.name, **how)
        assert numbers(loaded) == expected
        assert [row["json"]["number"] for row in loaded["train"]] == expected
        assert [row["__key__"] for row in loaded["train"]] == [f"{n:06}" for n in expected]


def test_datasets_loads_class_folders_with_their_labels(tmp_path):
    clean, removed = split(tmp_path, write_classes, REMOVED)
    for place, expected in ((clean, KEPT), (removed, sorted(REMOVED))):
        loaded = load(tmp_path / place.name, "imagefolder", data_dir=str(place))
        assert numbers(loaded) == expected
        names = loaded["train"].features["label"].names
        assert [names[row["label"]] for row in loaded["train"]] == [NAMES[n * SHARDS // N] for n in expected]
        assert numbers(load(tmp_path / f"{place.name}_by_path", str(place))) == expected


def test_torchvision_s_classes_are_the_class_folders(tmp_path):
    """A class that lost every image has no folder: ImageFolder refuses an empty one."""
    clean, removed = split(tmp_path, write_classes, REMOVED)
    for place, expected in ((clean, KEPT), (removed, sorted(REMOVED))):
        loaded = torchvision.datasets.ImageFolder(str(place))
        left = Counter(NAMES[n * SHARDS // N] for n in expected)
        assert loaded.classes == sorted(left)
        assert sorted(number_of(image) for image, _ in loaded) == expected
        assert Counter(loaded.classes[label] for _, label in loaded) == left
    assert not (clean / "cat").exists()


def test_webdataset_reads_every_shard(tmp_path):
    clean, removed = split(tmp_path, write_tars, REMOVED)
    for place, expected in ((clean, KEPT), (removed, sorted(REMOVED))):
        shards = sorted(str(path) for path in place.glob("*.tar"))
        rows = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
        assert [number_of(row["png"]) for row in rows] == expected
        assert [row["json"] for row in rows] == [{"number": n} for n in expected]
        assert [row["cls"] for row in rows] == [n * SHARDS // N for n in expected]


def test_pyarrow_and_duckdb_read_the_folder(tmp_path):
    clean, removed = split(tmp_path, write_parquet, REMOVED)
    schema = pyarrow.dataset.dataset(tmp_path / "in").schema
    for place, expected in ((clean, KEPT), (removed, sorted(REMOVED))):
        table = pyarrow.dataset.dataset(place, format="parquet").to_table()
        assert table.schema.equals(schema, check_metadata=True)
        assert table["number"].to_pylist() == expected
        rows = duckdb.sql(
            f"SELECT number, image.bytes FROM '{place}/**/*.parquet' ORDER BY number"
        ).fetchall()
        assert rows == [(n, picture(n)) for n in expected]


@pytest.mark.parametrize("write", [write_parquet, write_tars, write_classes])
def test_where_nothing_was_removed_the_clean_corpus_is_the_corpus(tmp_path, write):
    clean, removed = split(tmp_path, write, NONE)
    assert numbers(load(tmp_path, str(clean))) == list(range(N))
    assert not removed.exists()


@pytest.mark.cluster
def test_ray_data_reads_all_three(tmp_path, ray_cluster):
    import ray

    parquet, _ = split(tmp_path / "parquet", write_nested, REMOVED)
    assert sorted(row["number"] for row in ray.data.read_parquet(str(parquet)).take_all()) == KEPT
    tars, _ = split(tmp_path / "tars", write_tars, REMOVED)
    rows = ray.data.read_webdataset(str(tars)).take_all()
    assert sorted(row["json"]["number"] for row in rows) == KEPT
    classes, _ = split(tmp_path / "classes", write_classes, REMOVED)
    images = ray.data.read_images(str(classes), mode="RGB").take_all()
    assert sorted(int(row["image"][0, 0, 0]) for row in images) == KEPT
