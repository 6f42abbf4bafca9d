"""Hard clean corpora: which images carry the mark, and that all else stays."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.hard_clean import MARKS, make_hard_clean
from tests.examples import examples


def picture(i: int, side: int = 48) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 250, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """80 PNGs, labels 0–3 in turn; number 5 is broken."""
    cells = []
    for i in range(80):
        sink = io.BytesIO()
        Image.fromarray(picture(i)).save(sink, "PNG")
        cells.append(sink.getvalue() if i != 5 else b"broken")
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"image": cells, "label": [i % 4 for i in range(80)]}), tmp_path / "in/0.parquet")
    return tmp_path / "in"


def cells(folder: Path) -> list[bytes]:
    return pq.read_table(folder / "0.parquet")["image"].to_pylist()


@pytest.mark.parametrize("mark", MARKS)
def test_only_images_in_the_list_change_and_the_seed_decides(mark, source, tmp_path) -> None:
    made = make_hard_clean(str(source), str(tmp_path / "a"), mark, ("1", "2"), 0.6, 3)
    make_hard_clean(str(source), str(tmp_path / "b"), mark, ("1", "2"), 0.6, 3)
    rows = pq.read_table(tmp_path / "a/marked.parquet").to_pylist()
    before, after = cells(source), cells(tmp_path / "a/corpus")
    assert after == cells(tmp_path / "b/corpus")
    assert [a != b for a, b in zip(before, after, strict=True)] == [row["marked"] for row in rows]
    assert {row["label"] for row in rows if row["marked"]} == {"1", "2"} and not rows[5]["marked"]
    assert made["n_marked"] == sum(row["marked"] for row in rows) and 12 <= made["n_marked"] <= 36
    assert made["n_images"] == 80


@pytest.mark.parametrize("mark", MARKS)
@examples(15)
@given(width=st.integers(8, 90), height=st.integers(8, 90), seed=st.integers(0, 99), alpha=st.booleans())
def test_a_mark_keeps_size_and_mode_and_changes_something(mark, width, height, seed, alpha) -> None:
    pixels = np.random.default_rng(seed).integers(1, 250, (height, width, 3 + alpha), dtype=np.uint8)
    image = Image.fromarray(pixels)
    MARKS[mark](image, seed, np.random.default_rng(seed))
    assert image.size == (width, height) and image.mode == ("RGBA" if alpha else "RGB")
    assert (np.asarray(image) != pixels).any()


def test_the_logo_is_the_same_on_all_images_and_in_the_corner() -> None:
    marked = []
    for i in range(3):
        image = Image.fromarray(picture(i, 100))
        MARKS["logo"](image, 7, np.random.default_rng(i))
        marked.append(np.asarray(image))
    assert all((m[:70] == picture(i, 100)[:70]).all() for i, m in enumerate(marked))
    assert (marked[0][82:92, 82:92] == marked[1][82:92, 82:92]).all()


def test_a_burst_is_of_near_duplicates(source, tmp_path) -> None:
    make_hard_clean(str(source), str(tmp_path / "out"), "burst", ("2",))
    images = [
        np.asarray(Image.open(io.BytesIO(cell))).astype(int)
        for i, cell in enumerate(cells(tmp_path / "out/corpus")) if i % 4 == 2
    ]  # fmt: skip
    small = [np.asarray(Image.fromarray(i.astype(np.uint8)).resize((3, 3))).astype(int) for i in images]
    near = [np.abs(a - b).mean() for a, b in itertools.pairwise(small[:8])]
    far = [np.abs(a - b).mean() for a, b in zip(small[:4], small[8:12], strict=True)]
    assert np.median(near) < np.median(far) and len({i.tobytes() for i in images}) == len(images)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mark": "stain"}, "no mark stain: use one of logo"),
        ({"share": 0}, "share is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"labels": ("zebra",)}, "No image is labelled zebra"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(given, words, source, tmp_path) -> None:
    with pytest.raises(UserError, match=words):
        make_hard_clean(str(source), str(tmp_path / "out"), **{"mark": "logo", **given})
    assert not (tmp_path / "out").exists()
