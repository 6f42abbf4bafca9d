"""Wide pictures from squares: each image once, labels and order kept."""

from __future__ import annotations

import io
import runpy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.abreast import set_abreast, side_by_side
from tests.small import ROOT


def png(shade: int, width: int = 24, height: int = 24) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), shade, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def corpus(folder: Path, labels: list) -> Path:
    """Image i is 10·i bright; number 1 is broken."""
    cells = [png(10 * i) if i != 1 else b"\x89PNG broken" for i in range(len(labels))]
    folder.mkdir()
    pq.write_table(pa.table({"image": cells, "kind": labels}), folder / "0.parquet", row_group_size=3)
    return folder


def test_images_of_one_label_stand_side_by_side_each_once(tmp_path):
    source = corpus(tmp_path / "in", [7, 7, 3, 7, 3, 3, 7, 7, 3, 3, 3])
    made = set_abreast(str(source), str(tmp_path / "out"), (2,), "kind")
    table = pq.read_table(tmp_path / "out")
    assert table.schema.field("label").type == pa.int64()
    shades = []
    for data in table["image"].to_pylist():
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (48, 24)
            shades.append([round(image.getpixel((x, 12))[0] / 10) for x in (8, 40)])
    # Label 3: images 2, 4, 5, 8, 9, 10. Label 7: 0, 3, 6, 7, since 1 is broken.
    assert list(zip(table["label"].to_pylist(), shades, strict=True)) == [
        (7, [0, 3]), (3, [2, 4]), (7, [6, 7]), (3, [5, 8]), (3, [9, 10]),
    ]  # fmt: skip
    assert made == {"n_images": 5, "n_left_out": 1}


def test_three_abreast_leave_the_rest_out_and_other_labels_stay_words(tmp_path):
    source = corpus(tmp_path / "in", ["cat", "cat", "cat", "cat", "7", "cat"])
    made = set_abreast(str(source), str(tmp_path / "out"), (3,), "kind")
    table = pq.read_table(tmp_path / "out")
    assert table["label"].to_pylist() == ["cat"] and made == {"n_images": 1, "n_left_out": 3}


def test_several_counts_take_turns_within_each_label(tmp_path):
    source = corpus(tmp_path / "in", [7, 7, 3, 7, 3, 3, 7, 7, 3, 3, 3, 7])
    made = set_abreast(str(source), str(tmp_path / "out"), (1, 2), "kind")
    table = pq.read_table(tmp_path / "out")
    shades = []
    for data in table["image"].to_pylist():
        with Image.open(io.BytesIO(data)) as image:
            middles = [24 * i + 12 for i in range(image.width // 24)]
            shades.append([round(image.getpixel((x, 12))[0] / 10) for x in middles])
    # Label 7: images 0, 3, 6, 7, 11, since 1 is broken. Label 3: 2, 4, 5, 8, 9, 10.
    assert list(zip(table["label"].to_pylist(), shades, strict=True)) == [
        (7, [0]), (3, [2]), (3, [4, 5]), (7, [3, 6]), (7, [7]), (3, [8]), (3, [9, 10]),
    ]  # fmt: skip
    assert made == {"n_images": 7, "n_left_out": 2}


def test_some_labels_and_so_many_pictures_of_each(tmp_path):
    source = corpus(tmp_path / "in", ["7", "7", "a", "7", "a", "a", "7", "b", "a", "a", "a", "7", "7"])
    made = set_abreast(str(source), str(tmp_path / "out"), (1, 2), "kind", ["7", "b"], 2)
    table = pq.read_table(tmp_path / "out")
    # Of 7: 0, then 3 and 6, then no more.
    assert table["label"].to_pylist() == ["7", "7", "b"] and made == {"n_images": 3, "n_left_out": 9}
    with pytest.raises(UserError, match="No image is labelled c"):
        set_abreast(str(source), str(tmp_path / "none"), (2,), "kind", ["7", "c"])


def test_the_job_takes_counts_labels_and_a_bound(tmp_path, capsys):
    source = corpus(tmp_path / "in", ["7", "7", "a", "7", "a", "a", "7", "7", "7"])
    job = runpy.run_path(str(ROOT / "jobs" / "abreast.py"))["abreast"]
    job(str(source), str(tmp_path / "out"), count=[1, 2], label_column="kind", label=["7"], most=2)
    assert pq.read_table(tmp_path / "out")["label"].to_pylist() == [7, 7]
    assert "2 images in" in capsys.readouterr().out


def test_images_of_other_heights_are_shrunk_to_the_least_one():
    row = side_by_side([Image.new("RGB", (40, 80), "red"), Image.new("RGB", (30, 20), "blue")])
    assert row.size == (40, 20)
    assert row.getpixel((5, 10)) == (255, 0, 0) and row.getpixel((15, 10)) == (0, 0, 255)


def test_mistakes_are_named(tmp_path):
    source = str(corpus(tmp_path / "in", ["a", "b", "c"]))
    with pytest.raises(UserError, match="0 images make no picture"):
        set_abreast(source, str(tmp_path / "out"), (2, 0))
    with pytest.raises(UserError, match=r"No label of .* has 2 images"):
        set_abreast(source, str(tmp_path / "out"), (2,), "kind")
    with pytest.raises(UserError, match="not empty"):
        set_abreast(source, source)
