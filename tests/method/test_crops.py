"""Random crops of stored images: their areas, aspects and places; nothing of a wide image is left out."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.method.crops import (
    MOST_PARTS,
    Crop,
    CropShape,
    draw_crop,
    draw_pair,
    own_part,
    parts,
    trained_parts,
)
from tests.examples import examples


def drawn(width: int, height: int, least: float, n: int = 400, shape: CropShape = "own") -> list[Crop]:
    return [draw_crop(width, height, least, np.random.default_rng(seed), shape) for seed in range(n)]


@examples(100)
@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    least=st.floats(0.01, 1),
    seed=st.integers(0, 2**32),
)
def test_a_crop_lies_in_the_image_and_depends_on_the_generator_only(width, height, least, seed):
    crop = draw_crop(width, height, least, np.random.default_rng(seed), "own")
    x0, y0, x1, y1 = crop.box
    assert 0 <= x0 < x1 <= width * (1 + 1e-12) and 0 <= y0 < y1 <= height * (1 + 1e-12)
    assert crop == draw_crop(width, height, least, np.random.default_rng(seed), "own")
    share = (x1 - x0) * (y1 - y0) / (width * height)
    assert least * 0.999 <= share <= 1.001


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 64), (64, 192), (1000, 100)])
def test_areas_are_uniform_and_places_reach_every_edge(width, height):
    crops = drawn(width, height, 0.2)
    boxes = np.array([crop.box for crop in crops])
    share = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (width * height)
    assert share.min() < 0.25 and share.max() > 0.9
    assert boxes[:, 0].min() < 0.02 * width and boxes[:, 2].max() > 0.98 * width
    assert boxes[:, 1].min() < 0.02 * height and boxes[:, 3].max() > 0.98 * height
    assert 0.4 < np.mean([crop.mirrored for crop in crops]) < 0.6


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 64), (64, 192)])
def test_aspects_are_about_the_image_s_own(width, height):
    """As Embed sees it: squeezed into a square, every crop is that of a square image."""
    crops = np.array([crop.box for crop in drawn(width, height, 0.1)])
    square = np.array([crop.box for crop in drawn(64, 64, 0.1)]) / 64
    assert crops / np.array([width, height, width, height]) == pytest.approx(square)
    aspect = (square[:, 2] - square[:, 0]) / (square[:, 3] - square[:, 1])
    assert 0.75 <= aspect.min() < 0.8 and 1.25 < aspect.max() <= 4 / 3


@examples(100)
@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    least=st.floats(0.01, 1),
    seed=st.integers(0, 2**32),
)
def test_square_crops_have_aspects_of_three_quarters_to_four_thirds(width, height, least, seed):
    x0, y0, x1, y1 = draw_crop(width, height, least, np.random.default_rng(seed), "square").box
    assert -1e-9 <= x0 < x1 <= width * (1 + 1e-12) and -1e-9 <= y0 < y1 <= height * (1 + 1e-12)
    assert 0.75 * 0.999 <= (x1 - x0) / (y1 - y0) <= 4 / 3 * 1.001


@pytest.mark.parametrize(("width", "height"), [(128, 64), (64, 192)])
def test_square_crops_have_torchvision_s_areas_and_reach_every_edge(width, height):
    """Against its rule, drawn again in a plain loop: ten tries, else the largest box."""
    rng, usual = np.random.default_rng(0), []
    for _ in range(4000):
        for _ in range(10):
            area = width * height * rng.uniform(0.2, 1)
            ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = np.sqrt(area * ratio), np.sqrt(area / ratio)
            if w <= width and h <= height:
                break
        else:
            w, h = (min(width, height * 4 / 3), height) if width > height else (width, width * 4 / 3)
        usual.append((w, h))
    boxes = np.array([crop.box for crop in drawn(width, height, 0.2, 4000, "square")])
    ours = boxes[:, 2:] - boxes[:, :2]
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(ours, share, axis=0) == pytest.approx(np.quantile(usual, share, axis=0), rel=0.03)
    assert boxes[:, 0].min() < 0.02 * width and boxes[:, 2].max() > 0.98 * width
    assert boxes[:, 1].min() < 0.02 * height and boxes[:, 3].max() > 0.98 * height


def test_crops_of_a_square_image_do_not_depend_on_the_shape():
    assert drawn(64, 64, 0.1, 50, "own") == drawn(64, 64, 0.1, 50, "square")


def test_crops_of_a_square_are_those_of_the_usual_random_resized_crop():
    """Against torchvision's rule, drawn again in a plain loop."""
    rng = np.random.default_rng(0)
    usual = []
    while len(usual) < 4000:
        area, ratio = rng.uniform(0.4, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = np.sqrt(area * ratio), np.sqrt(area / ratio)
        if w <= 1 and h <= 1:
            usual.append((w, h))
    boxes = np.array([crop.box for crop in drawn(100, 100, 0.4, 4000)]) / 100
    ours = boxes[:, 2:] - boxes[:, :2]
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(ours, share, axis=0) == pytest.approx(np.quantile(usual, share, axis=0), abs=0.02)


@pytest.mark.parametrize("width", [64, 128, 192])
def test_the_margin_is_in_many_crops(width):
    """A trigger 20 px wide beside the left border, of which nothing was seen before. As in a victim's
    training, the margin is in fewer crops than the middle."""
    boxes = np.array([crop.box for crop in drawn(width, 64, 0.4, 2000)])
    whole = (boxes[:, 0] <= 8) & (boxes[:, 2] >= 28) & (boxes[:, 1] <= 22) & (boxes[:, 3] >= 42)
    assert 0.2 < whole.mean() < 0.75


@examples(200)
@given(shorter=st.integers(1, 500), aspect=st.floats(1, 40), tall=st.booleans())
def test_the_parts_of_a_long_image_cover_it_and_overlap(shorter, aspect, tall):
    longer = round(aspect * shorter)
    size = (shorter, longer) if tall else (longer, shorter)
    axis = 1 if tall else 0
    boxes = parts(*size)
    if longer <= 1.52 * shorter:
        assert boxes == []
        return
    assert 2 <= len(boxes) <= MOST_PARTS
    for box in boxes:
        assert box[1 - axis] == 0 and box[3 - axis] == shorter
        assert 0 <= box[axis] < box[2 + axis] <= longer
    assert boxes[0][axis] == 0 and boxes[-1][2 + axis] == longer
    for one, other in pairwise(boxes):
        assert one[2 + axis] - other[axis] >= 0.5 * shorter - 2, (
            "a trigger half as wide as the image is whole"
        )
        if longer <= 12 * shorter:
            assert one[2 + axis] - one[axis] <= 1.25 * shorter + 1, "hardly squeezed"


def test_parts_of_two_to_one_and_four_to_one():
    assert parts(128, 64) == [(0, 0, 80, 64), (48, 0, 128, 64)]
    assert parts(64, 256) == [(0, y, 64, y + 80) for y in (0, 44, 88, 132, 176)]
    assert parts(500, 332) == parts(96, 64) == parts(64, 64) == []


def test_training_draws_from_larger_parts():
    """Both crops of a pair may lie in different halves of a picture of 2:1, as a victim's do."""
    assert trained_parts(192, 64) == [(0, 0, 128, 64), (64, 0, 192, 64)]
    assert trained_parts(64, 256) == [(0, 0, 64, 128), (0, 64, 64, 192), (0, 128, 64, 256)]
    assert trained_parts(128, 64) == trained_parts(64, 64) == []


def test_an_image_s_own_part_is_all_of_it_or_one_of_the_parts_by_its_id():
    assert own_part(0, "a", 64, 64) == (0, 0, 64, 64) and own_part(0, "b", 64, 96) == (0, 0, 64, 96)
    chosen = [own_part(0, f"shard#{i}", 400, 100) for i in range(300)]
    boxes = parts(400, 100)
    assert set(chosen) == set(boxes) and len(boxes) == 5
    assert min(chosen.count(box) for box in boxes) > 35
    assert chosen == [own_part(0, f"shard#{i}", 400, 100) for i in range(300)]
    assert own_part(0, "\udcff", 400, 100) in boxes  # a name that is no UTF-8


def test_names_chosen_to_hide_a_part_hide_it_under_one_seed_only():
    """An attacker who knows the seed names images so that the search never sees where the trigger is."""
    boxes = parts(400, 100)
    hidden = [f"{i}.jpg" for i in range(600) if own_part(0, f"{i}.jpg", 400, 100) == boxes[0]]
    assert len(hidden) > 80
    seen = [own_part(7, name, 400, 100) for name in hidden]
    assert min(seen.count(box) for box in boxes) > len(hidden) / 10


def test_both_crops_of_a_long_image_are_of_one_part_and_all_parts_are_used():
    boxes, used = trained_parts(100, 600), set()
    for seed in range(200):
        pair = draw_pair(100, 600, 0.3, np.random.default_rng(seed))
        held = [
            i for i, (_, y0, _, y1) in enumerate(boxes)
            if all(y0 <= crop.box[1] and crop.box[3] <= y1 + 1e-9 for crop in pair)
        ]  # fmt: skip
        assert held and all(crop.box[0] >= 0 and crop.box[2] <= 100 + 1e-9 for crop in pair)
        if len(held) == 1:
            used.add(held[0])
    assert used == set(range(len(boxes)))


def test_a_pair_of_an_ordinary_image_is_two_draws():
    pair, rng = draw_pair(150, 100, 0.4, np.random.default_rng(5)), np.random.default_rng(5)
    assert pair == [draw_crop(150, 100, 0.4, rng), draw_crop(150, 100, 0.4, rng)] and pair[0] != pair[1]


def test_torch_is_not_loaded():
    code = "import poisoncam_ray.method.crops, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
