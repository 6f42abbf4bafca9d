import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poisoncam_ray.method.geometry import (
    about_centres,
    coverage,
    inside,
    iou,
    map_box,
    random_boxes,
    unmap_box,
)

edge = st.integers(0, 12)
box = st.builds(lambda x, y, w, h: [x, y, x + w, y + h], edge, edge, st.integers(0, 8), st.integers(0, 8))


def pixels(box_4):
    x0, y0, x1, y1 = box_4
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


@given(st.lists(st.tuples(box, box), min_size=1, max_size=6))
def test_iou_and_coverage_equal_pixel_sets(pairs):
    a_N4, b_N4 = (torch.tensor(side) for side in zip(*pairs, strict=True))
    for i, (a, b) in enumerate(pairs):
        both, either = pixels(a) & pixels(b), pixels(a) | pixels(b)
        assert float(iou(a_N4, b_N4)[i]) == pytest.approx(len(both) / max(1, len(either)))
        assert float(coverage(a_N4, b_N4)[i]) == pytest.approx(len(both) / max(1, len(pixels(b))))


def test_boxes_apart_do_not_meet():
    assert iou(torch.tensor([[0, 0, 2, 2]]), torch.tensor([[5, 5, 7, 7]])).item() == 0


@settings(max_examples=60)
@given(box_4=box, width=st.integers(21, 90), height=st.integers(21, 90), size=st.integers(8, 64))
def test_map_box_equals_the_decoder_geometry_by_hand(box_4, width, height, size):
    mapped_N4, visible_N = map_box(torch.tensor([box_4]), torch.tensor([width]), torch.tensor([height]), size)
    side = min(width, height)
    left, top, scale = (width - side) / 2, (height - side) / 2, size / side
    x0, x1 = (min(max((x - left) * scale, 0), size) for x in box_4[::2])
    y0, y1 = (min(max((y - top) * scale, 0), size) for y in box_4[1::2])
    assert torch.tensor([x0, y0, x1, y1]).sub(mapped_N4[0]).abs().max() <= 0.5 + 1e-6
    whole = (box_4[2] - box_4[0]) * (box_4[3] - box_4[1]) * scale**2
    assert float(visible_N[0]) == pytest.approx((x1 - x0) * (y1 - y0) / whole if whole else 0, abs=1e-5)


@settings(max_examples=60)
@given(box_4=box, width=st.integers(21, 200), height=st.integers(21, 200))
def test_unmap_box_undoes_map_box_to_a_pixel(box_4, width, height):
    size_N = torch.tensor([width]), torch.tensor([height])
    # A finer square than the image, so that rounding costs nothing; only what the square shows comes back.
    mapped_N4, _ = map_box(torch.tensor([box_4]), *size_N, 1000)
    (back_4,) = unmap_box(mapped_N4, *size_N, 1000).tolist()
    left, top = (width - min(width, height)) / 2, (height - min(width, height)) / 2
    shown_4 = [
        min(max(at, start), start + min(width, height))
        for at, start in zip(box_4, (left, top, left, top), strict=True)
    ]
    assert max(abs(a - b) for a, b in zip(back_4, shown_4, strict=True)) <= 1
    assert min(back_4) >= 0 and max(back_4[::2]) <= width and max(back_4[1::2]) <= height


def test_a_square_image_only_scales_and_a_wide_one_loses_its_sides():
    box_N4 = torch.tensor([[16, 32, 36, 52], [16, 32, 36, 52], [0, 0, 10, 10]])
    mapped_N4, visible_N = map_box(box_N4, torch.tensor([64, 128, 128]), torch.tensor([64, 64, 64]), 32)
    assert mapped_N4.tolist() == [[8, 16, 18, 26], [0, 16, 2, 26], [0, 0, 0, 5]]
    assert visible_N.tolist() == pytest.approx([1.0, 0.2, 0.0])


@settings(max_examples=40)
@given(size=st.integers(1, 10), side=st.integers(24, 64), seed=st.integers(0, 99))
def test_random_boxes_keep_inside_the_region(size, side, seed):
    box_N4 = random_boxes(
        50, size, size + 1, side, side + 9, (0.25, 0.75), torch.Generator().manual_seed(seed)
    )
    assert box_N4.shape == (50, 4)
    for x0, y0, x1, y1 in box_N4.tolist():
        assert (x1 - x0, y1 - y0) == (size, size + 1)
        assert 0.25 * side <= x0 and x1 <= 0.75 * side
        assert 0.25 * (side + 9) <= y0 and y1 <= 0.75 * (side + 9)


def test_random_boxes_reach_every_place_and_follow_the_seed():
    draw = lambda seed: random_boxes(500, 3, 3, 6, 6, (0, 1), torch.Generator().manual_seed(seed))  # noqa: E731
    assert set(map(tuple, draw(0)[:, :2].tolist())) == {(x, y) for x in range(4) for y in range(4)}
    assert torch.equal(draw(0), draw(0))


def test_a_box_larger_than_the_region_is_refused():
    with pytest.raises(ValueError, match=r"17 pixels does not fit into 0\.25 … 0\.75 of 32"):
        random_boxes(1, 17, 3, 32, 32, (0.25, 0.75), torch.Generator())


@settings(max_examples=40)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 12), st.integers(1, 32))
def test_windows_about_a_centre_share_it_wherever_they_have_room(x, y, old, new):
    (made,) = about_centres(torch.tensor([[x, y, x + old, y + old]]), new, 32).tolist()
    assert (made[2] - made[0], made[3] - made[1]) == (new, new)
    assert min(made) >= 0 and max(made) <= 32
    for low, start in zip((x, y), made[:2], strict=True):
        free = low + (old - new) / 2
        assert abs(start - min(max(free, 0), 32 - new)) <= 0.5


def test_a_window_wider_than_the_image_is_refused():
    with pytest.raises(ValueError, match="33 pixels does not fit into 32"):
        about_centres(torch.zeros(1, 4, dtype=torch.int64), 33, 32)


@given(box)
def test_inside_are_the_pixels_of_the_box(box_4):
    (m_HW,) = inside(torch.tensor([box_4]), 24)
    assert {(x, y) for y, x in m_HW.nonzero().tolist()} == pixels(box_4)
