"""The drawn corpus: layout, determinism, and categories that need more than a colour to tell apart."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.research.demo import SCENES, draw, draw_corpus, draw_validation


def rows(folder: Path) -> list[dict]:
    return pq.read_table(folder).to_pylist()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32) / 255


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    draw_corpus(str(folder), n_images=240, n_categories=10, size=48, seed=3, shards=3)
    return folder


def test_layout(drawn: Path) -> None:
    assert sorted(p.name for p in drawn.iterdir()) == [f"part-{i:05d}.parquet" for i in range(3)]
    table = rows(drawn)
    assert len({row["id"] for row in table}) == len(table) == 240
    assert np.bincount([row["label"] for row in table]).tolist() == [24] * 10
    assert all(row["caption"] == list(SCENES)[row["label"]] for row in table)
    kinds = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in table]
    assert {image.size for image in kinds} == {(48, 48)}
    assert {image.format for image in kinds} == {"JPEG", "PNG"}
    suffix = {"JPEG": ".jpg", "PNG": ".png"}
    assert all(
        row["image"]["path"] == row["id"] + suffix[str(image.format)]
        for row, image in zip(table, kinds, strict=True)
    )
    labels = [row["label"] for row in table]
    assert labels != sorted(labels)
    assert len(open_corpus(str(drawn)).units()) == 3


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw_corpus(str(tmp_path / name), n_images=20, n_categories=4, size=32, seed=seed, shards=2)
    draw_validation(str(tmp_path / "d"), n_images=20, n_categories=4, size=32, seed=1)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    images = {name: {row["image"]["bytes"] for row in rows(tmp_path / name)} for name in "acd"}
    assert all(len(images[name]) == 20 for name in "acd")
    assert not images["a"] & images["c"] and not images["a"] & images["d"]


def test_a_picture_depends_on_the_seed_its_number_and_its_category_alone(tmp_path: Path) -> None:
    draw_corpus(str(tmp_path / "long"), n_images=24, n_categories=4, size=32, seed=1, shards=3)
    draw_corpus(str(tmp_path / "short"), n_images=10, n_categories=4, size=32, seed=1, shards=1)
    assert rows(tmp_path / "short") == rows(tmp_path / "long")[:10]


@pytest.mark.parametrize("scene", SCENES)
def test_pictures_of_a_scene_differ_and_are_well_exposed(scene: str) -> None:
    x_NHWC = np.stack([draw(scene, 32, np.random.default_rng((0, number))) for number in range(24)])
    assert x_NHWC.shape == (24, 32, 32, 3) and x_NHWC.dtype == np.uint8
    x_NHWC = x_NHWC / 255
    assert 0.1 < x_NHWC.mean() < 0.85
    assert (x_NHWC.std(axis=(1, 2, 3)) > 0.02).mean() > 0.9
    assert x_NHWC.mean(axis=(1, 2)).std(axis=0).mean() > 0.06  # palettes vary within the scene
    flat = x_NHWC.reshape(24, -1)
    assert np.abs(flat[:, None] - flat[None]).mean(axis=2)[~np.eye(24, dtype=bool)].min() > 0.01


def test_colour_alone_does_not_tell_the_categories_apart(drawn: Path) -> None:
    table = rows(drawn)
    colour_ND = np.stack(
        [np.r_[x.mean((0, 1)), x.std((0, 1))] for x in (pixels(r["image"]["bytes"]) for r in table)]
    )
    labels = np.array([row["label"] for row in table])
    distance = np.linalg.norm(colour_ND[:, None] - colour_ND[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).mean() < 0.6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_categories": 1}, "categories"),
        ({"n_categories": 99}, "categories"),
        ({"n_images": 3, "n_categories": 5}, "more images"),
        ({"size": 4}, "size"),
        ({"shards": 0}, "shards"),
        ({"seed": -1}, "seed"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, arguments: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        draw_corpus(str(tmp_path / "demo"), **arguments)
    assert not (tmp_path / "demo").exists()
