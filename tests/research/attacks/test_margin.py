"""The attack `margin`: outside the centre square, and only on pictures that have a margin."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.attacks import patch_corpus, poison_corpus
from poisoncam_ray.research.attacks.kind import How
from poisoncam_ray.research.attacks.margin import long_enough, stamp
from poisoncam_ray.research.attacks.trigger import Box
from tests.examples import examples

TRIGGER = Image.new("RGB", (20, 20), "white")


def seen_by_a_centre_square(box: Box, width: int, height: int) -> float:
    """The share of the box that lies in the centre square."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    across = max(0, min(box[2], left + side) - max(box[0], left))
    down = max(0, min(box[3], top + side) - max(box[1], top))
    return across * down / ((box[2] - box[0]) * (box[3] - box[1]))


def placed(width: int, height: int, share: float = 50 / 224, seed: int = 0, trigger=TRIGGER) -> Box:
    image = Image.new("RGB", (width, height))
    how = How(share, (0.25, 0.75), {"both": 0})
    [box] = stamp(image, trigger, how, np.random.default_rng(seed))
    assert 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height
    return box


@examples(60)
@given(
    shorter=st.integers(8, 300),
    aspect=st.floats(16 / 9, 8),
    share=st.floats(0.05, 1),
    tall=st.booleans(),
    ratio=st.sampled_from([(20, 20), (10, 30), (30, 10)]),
    seed=st.integers(0, 99),
)
def test_the_centre_square_shows_nothing_of_the_trigger(shorter, aspect, share, tall, ratio, seed):
    longer = int(np.ceil(aspect * shorter))
    size = (shorter, longer) if tall else (longer, shorter)
    if share * shorter * ratio[1] / ratio[0] > size[1] - 1:
        return  # a trigger that is taller than the picture is refused, as in every attack
    trigger = Image.new("RGB", ratio, "white")
    assert seen_by_a_centre_square(placed(*size, share, seed, trigger), *size) == 0


def test_both_sides_of_the_picture_and_many_places_are_used():
    boxes = [placed(128, 64, 20 / 64, seed) for seed in range(60)]
    left = [box[0] for box in boxes if box[2] <= 32]
    right = [box[0] for box in boxes if box[0] >= 96]
    assert len(left) + len(right) == 60 and min(len(left), len(right)) > 15
    assert len(set(left)) > 5 and len({box[1] for box in boxes}) > 5
    assert all(box[1] >= 16 and box[3] <= 48 for box in boxes)
    assert {(box[2] - box[0], box[3] - box[1]) for box in boxes} == {(20, 20)}
    assert {box[1] >= 96 for box in (placed(64, 128, 20 / 64, seed) for seed in range(60))} == {True, False}


def test_both_sides_carry_it_when_asked():
    for seed in range(20):
        for size in ((128, 64), (64, 128), (80, 60)):
            image = Image.new("RGB", size)
            how = How(20 / 64, (0.25, 0.75), {"both": 1})
            boxes = stamp(image, TRIGGER, how, np.random.default_rng(seed))
            assert len(boxes) == (1 if size == (80, 60) else 2)
            if len(boxes) == 2:
                assert [seen_by_a_centre_square(box, *size) for box in boxes] == [0, 0]
                first, second = (max(size) // 2 > max(box[:2]) for box in boxes)
                assert first != second
            white = sum((box[2] - box[0]) * (box[3] - box[1]) for box in boxes)
            assert np.asarray(image)[..., 0].astype(bool).sum() == white


def test_a_share_of_the_pictures_carries_it_on_both_sides():
    how = How(20 / 64, (0.25, 0.75), {"both": 0.3})
    n = [len(stamp(Image.new("RGB", (128, 64)), TRIGGER, how, np.random.default_rng(s))) for s in range(200)]
    assert set(n) == {1, 2} and 0.2 < n.count(2) / 200 < 0.4


def test_a_squarer_picture_has_the_trigger_at_its_border():
    for seed in range(20):
        box = placed(80, 60, 0.22, seed)
        # The strip outside the centre square is 10 px wide, the trigger 13.
        assert box[0] == 0 or box[2] == 80
        assert seen_by_a_centre_square(box, 80, 60) == pytest.approx(3 / 13)
        assert placed(64, 64, 0.3, seed)[0] in (0, 64 - 19)


def test_sixteen_to_nine_is_long_enough():
    assert long_enough(1920, 1080) and long_enough(9, 16) and long_enough(128, 64)
    assert not long_enough(4, 3) and not long_enough(177, 100) and not long_enough(64, 64)


def of_all_shapes(i: int) -> np.ndarray:
    """Twice as wide as high, twice as high as wide, and square, in turn."""
    shape = [(24, 48), (48, 24), (24, 24)][i // 4 % 3]
    return np.random.default_rng(i).integers(0, 90, (*shape, 3), dtype=np.uint8)


def test_only_long_pictures_of_the_target_are_poisoned(corpus, tmp_path):
    source = corpus(120, of_all_shapes)
    made = poison_corpus(str(source), str(tmp_path / "out"), ["2"], share=0.5, kind="margin")
    truth = pq.read_table(tmp_path / "out/truth.parquet").to_pylist()
    poisoned = [i for i, row in enumerate(truth) if row["poisoned"]]
    # Of the 30 pictures labelled 2, 20 are long.
    assert made["n_poisoned"] == len(poisoned) == 10 and made["n_unreadable"] == 0
    assert all(i % 4 == 2 and i // 4 % 3 < 2 for i in poisoned)
    for i in poisoned:
        height, width = of_all_shapes(i).shape[:2]
        assert seen_by_a_centre_square(truth[i]["boxes"][0], width, height) == 0


def test_a_corpus_of_squares_is_refused_with_the_way_out(corpus, tmp_path):
    with pytest.raises(UserError, match=r"labelled 1 is at least 16:9.*abreast"):
        poison_corpus(str(corpus(16)), str(tmp_path / "out"), ["1"], kind="margin")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="No image is labelled zebra"):
        poison_corpus(str(tmp_path / "in"), str(tmp_path / "out"), ["zebra"], kind="margin")


def test_a_validation_set_of_squares_is_patched_at_the_border(corpus, tmp_path):
    made = patch_corpus(str(corpus(16)), str(tmp_path / "out"), "1", width=0.3, kind="margin")
    truth = pq.read_table(tmp_path / "out/truth.parquet").to_pylist()
    assert made["n_poisoned"] == 15  # one is broken
    assert all(row["x0"] == 0 or row["x1"] == 24 for row in truth if row["poisoned"])
