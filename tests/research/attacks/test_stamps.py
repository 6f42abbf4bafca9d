"""Every attack's boxes against its pixels: nothing changes outside, and none is larger than it must be."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.attacks import KINDS
from poisoncam_ray.research.attacks.encoded import paint
from poisoncam_ray.research.attacks.kind import How
from tests.examples import examples

BOXED = [name for name in KINDS if name not in ("frequency", "scaled", "alpha")]
"""Kinds whose boxes are opaque: scaled changes few pixels of its box, alpha their transparency."""


def dark(width: int, height: int, seed: int, channels: int = 3) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 90, (height, width, channels), dtype=np.uint8))


def bright(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(230, 256, (20, 20, 3), dtype=np.uint8))


def stamped(kind: str, image: Image.Image, width: float, seed: int, **options: float):
    """(pixels before, pixels after, boxes), by way of an encoded PNG."""
    how = How(width, (0.1, 0.9), KINDS[kind].settings(kind, options))
    sink = io.BytesIO()
    image.save(sink, "PNG")
    rng = np.random.default_rng(seed)
    data, boxes = paint(sink.getvalue(), lambda painted: KINDS[kind].stamp(painted, bright(seed), how, rng))
    after = Image.open(io.BytesIO(data))
    assert after.size == image.size
    return np.asarray(image).astype(int), np.asarray(after).astype(int), boxes


@pytest.mark.parametrize("kind", BOXED)
@examples(25)
@given(
    width=st.integers(16, 70),
    height=st.integers(16, 70),
    share=st.floats(0.1, 0.45),
    seed=st.integers(0, 2**20),
    channels=st.sampled_from([3, 4]),
)
def test_the_boxes_hold_what_changed_and_no_more(kind, width, height, share, seed, channels) -> None:
    before, after, boxes = stamped(kind, dark(width, height, seed, channels), share, seed)
    changed = (before != after).any(axis=2)
    assert boxes
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        inside = changed[y0:y1, x0:x1]
        # Every side of the box is touched: a smaller one would miss a pixel.
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
        if kind not in ("dynamic", "varying"):  # a turned square leaves the corners
            assert inside.all()
        changed[y0:y1, x0:x1] = False
    assert not changed.any()


@examples(25)
@given(alpha=st.floats(0.05, 1), seed=st.integers(0, 99))
def test_blended_mixes_by_alpha(alpha, seed) -> None:
    before, after, [(x0, y0, x1, y1)] = stamped("blended", dark(40, 30, seed), 0.5, seed, alpha=alpha)
    trigger = np.asarray(bright(seed).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR))
    expected = alpha * trigger + (1 - alpha) * before[y0:y1, x0:x1]
    assert np.abs(after[y0:y1, x0:x1] - expected).max() <= 1.001


@pytest.mark.parametrize("saturation", [0.0, 0.5, 1.0])
def test_a_blended_trigger_is_grey_without_saturation(saturation) -> None:
    how = How(0.5, (0.1, 0.9), KINDS["blended"].settings("blended", {"alpha": 1, "saturation": saturation}))
    image, trigger = dark(40, 30, 1), Image.new("RGB", (8, 8), (250, 50, 50))
    [(x0, y0, x1, y1)] = KINDS["blended"].stamp(image, trigger, how, np.random.default_rng(0))
    inside = np.asarray(image)[y0:y1, x0:x1].astype(int)
    assert (np.ptp(inside, axis=2) == 200 * saturation).all()


def test_blended_over_the_whole_image() -> None:
    before, after, boxes = stamped("blended", dark(40, 30, 1), 0.1, 1, whole=1)
    assert boxes == [(0, 0, 40, 30)] and (before != after).all()


def test_several_patches_have_the_area_of_one_and_stay_apart() -> None:
    for seed in range(20):
        _, _, boxes = stamped("several", dark(64, 64, seed), 20 / 64, seed)
        covered = np.zeros((64, 64), int)
        for x0, y0, x1, y1 in boxes:
            covered[y0:y1, x0:x1] += 1
        assert len(boxes) == 3 and covered.max() == 1
        assert covered.sum() == pytest.approx(20 * 20, rel=0.15)
    with pytest.raises(UserError, match="no room for 9 patches"):
        stamped("several", dark(20, 20, 0), 1.0, 0, count=9)


def test_several_leave_a_narrow_region_only_where_they_must() -> None:
    how = How(0.3, (0.25, 0.75), {"count": 3.0})
    for seed in range(20):
        boxes = KINDS["several"].stamp(dark(64, 64, seed), bright(0), how, np.random.default_rng(seed))
        assert all(16 <= side <= 48 for box in boxes for side in box)


def test_dynamic_triggers_differ_in_size_angle_and_colour() -> None:
    made = [stamped("dynamic", dark(64, 64, 0), 20 / 64, seed) for seed in range(40)]
    sizes = [box[0][2] - box[0][0] for _, _, box in made]
    # A square of half to one and a half of 20 px, turned: at most √2 times as wide.
    assert 9 <= min(sizes) < 14 and 26 < max(sizes) <= 43
    filled = [(after != before).any(axis=2).sum() / np.prod(np.ptp(np.reshape(box, (2, 2)), 0))
              for before, after, box in made]  # fmt: skip
    assert min(filled) < 0.65 and max(filled) > 0.9
    colours = [after[(after != before).any(axis=2)].mean(axis=0) for before, after, _ in made]
    assert np.std(colours, axis=0).min() > 5


def test_dynamic_without_its_freedoms_is_the_reference_patch() -> None:
    still = {"smallest": 1, "largest": 1, "rotation": 0, "tint": 0}
    _, after, [(x0, y0, x1, y1)] = stamped("dynamic", dark(64, 64, 0), 20 / 64, 3, **still)
    assert (x1 - x0, y1 - y0) == (20, 20)
    assert (after[y0:y1, x0:x1] == np.asarray(bright(3))).all()


def test_varying_triggers_differ_in_size_angle_opacity_hue_and_sharpness() -> None:
    made = [stamped("varying", dark(64, 64, 0), 20 / 64, seed) for seed in range(40)]
    sizes = [box[0][2] - box[0][0] for _, _, box in made]
    # 14 to 26 px, turned by up to 30 degrees: at most 1.37 times as wide.
    assert 14 <= min(sizes) < 19 and 26 < max(sizes) <= 36
    brightness = [after[(after != before).any(axis=2)].mean() for before, after, _ in made]
    assert min(brightness) < 170 < 215 < max(brightness)


def test_varying_without_its_freedoms_is_the_reference_patch() -> None:
    still = {"scale": 0, "rotation": 0, "opacity": 1, "hue": 0, "blur": 0}
    _, after, [(x0, y0, x1, y1)] = stamped("varying", dark(64, 64, 0), 20 / 64, 3, **still)
    assert (x1 - x0, y1 - y0) == (20, 20)
    # Hues are stored in 256 steps: up to a few levels are lost.
    assert np.abs(after[y0:y1, x0:x1] - np.asarray(bright(3)).astype(int)).max() <= 4


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("blended", {"beta": 1}, "blended has no option beta: use alpha, whole, saturation"),
        ("patch", {"alpha": 1}, "patch has no option alpha: leave it out"),
        ("blended", {"alpha": 1.5}, "alpha of the attack blended is 1.5: use a number from 0.01 to 1"),
        ("blended", {"alpha": float("nan")}, "alpha of the attack blended is nan"),
        ("several", {"count": 2.5}, "count of the attack several is 2.5: use a whole number from 2 to 9"),
        ("several", {"count": float("inf")}, "count of the attack several is inf"),
    ],
)
def test_options_that_do_not_exist_or_fit(kind, options, words) -> None:
    with pytest.raises(UserError, match=words):
        KINDS[kind].settings(kind, options)
