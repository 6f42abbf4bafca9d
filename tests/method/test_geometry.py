"""Boxes, and pixels cut out of boxes or pasted into them, against slow loops."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.method.geometry import (
    about_centres,
    coverage,
    crop,
    inside,
    iou,
    map_box,
    paste,
    paste_resized,
    random_boxes,
    random_places,
    same_size,
    unmap_box,
)
from tests.examples import examples

edge = st.integers(0, 12)
box = st.builds(lambda x, y, w, h: [x, y, x + w, y + h], edge, edge, st.integers(0, 8), st.integers(0, 8))


def pixels(box_4):
    """The pixels of a box, as a set of (x, y)."""
    x0, y0, x1, y1 = box_4
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


@given(st.lists(st.tuples(box, box), min_size=1, max_size=6))
def test_iou_and_coverage_equal_counting_pixels(pairs):
    a_N4, b_N4 = (torch.tensor(side) for side in zip(*pairs, strict=True))
    for i, (a, b) in enumerate(pairs):
        both, either = pixels(a) & pixels(b), pixels(a) | pixels(b)
        assert float(iou(a_N4, b_N4)[i]) == pytest.approx(len(both) / max(1, len(either)))
        assert float(coverage(a_N4, b_N4)[i]) == pytest.approx(len(both) / max(1, len(pixels(b))))


def test_disjoint_boxes_have_iou_zero():
    assert iou(torch.tensor([[0, 0, 2, 2]]), torch.tensor([[5, 5, 7, 7]])).item() == 0


@examples(60)
@given(box_4=box, width=st.integers(21, 90), height=st.integers(21, 90), size=st.integers(8, 64))
def test_map_box_equals_the_decoders_geometry(box_4, width, height, size):
    mapped_N4 = map_box(torch.tensor([box_4]), torch.tensor([width]), torch.tensor([height]), size)
    x0, x1 = (min(x * size / width, size) for x in box_4[::2])
    y0, y1 = (min(y * size / height, size) for y in box_4[1::2])
    assert torch.tensor([x0, y0, x1, y1]).sub(mapped_N4[0]).abs().max() <= 0.5 + 1e-6


@examples(60)
@given(box_4=box, width=st.integers(21, 200), height=st.integers(21, 200))
def test_unmap_box_inverts_map_box_up_to_a_pixel(box_4, width, height):
    size_N = torch.tensor([width]), torch.tensor([height])
    # A square larger than the image, so that rounding costs nothing.
    mapped_N4 = map_box(torch.tensor([box_4]), *size_N, 1000)
    (back_4,) = unmap_box(mapped_N4, *size_N, 1000).tolist()
    assert max(abs(a - b) for a, b in zip(back_4, box_4, strict=True)) <= 1
    assert min(back_4) >= 0 and max(back_4[::2]) <= width and max(back_4[1::2]) <= height


def test_map_box_scales_a_square_image_and_squeezes_a_wide_and_a_tall_one():
    box_N4 = torch.tensor([[16, 32, 36, 52], [16, 32, 36, 52], [108, 0, 128, 20], [0, 108, 20, 128]])
    mapped_N4 = map_box(box_N4, torch.tensor([64, 128, 128, 64]), torch.tensor([64, 64, 64, 128]), 32)
    assert mapped_N4.tolist() == [[8, 16, 18, 26], [4, 16, 9, 26], [27, 0, 32, 10], [0, 27, 10, 32]]


@examples(40)
@given(size=st.integers(1, 10), side=st.integers(24, 64), seed=st.integers(0, 99))
def test_random_boxes_lie_in_the_region(size, side, seed):
    box_N4 = random_boxes(
        50, size, size + 1, side, side + 9, (0.25, 0.75), torch.Generator().manual_seed(seed)
    )
    assert box_N4.shape == (50, 4)
    for x0, y0, x1, y1 in box_N4.tolist():
        assert (x1 - x0, y1 - y0) == (size, size + 1)
        assert 0.25 * side <= x0 and x1 <= 0.75 * side
        assert 0.25 * (side + 9) <= y0 and y1 <= 0.75 * (side + 9)


def test_random_boxes_reach_every_place_and_depend_on_the_seed_only():
    draw = lambda seed: random_boxes(500, 3, 3, 6, 6, (0, 1), torch.Generator().manual_seed(seed))  # noqa: E731
    assert set(map(tuple, draw(0)[:, :2].tolist())) == {(x, y) for x in range(4) for y in range(4)}
    assert torch.equal(draw(0), draw(0))


def test_random_boxes_refuse_a_region_that_is_too_small():
    with pytest.raises(ValueError, match=r"17 pixels does not fit into 0\.25 … 0\.75 of 32"):
        random_boxes(1, 17, 3, 32, 32, (0.25, 0.75), torch.Generator())


@examples(40)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 12), st.integers(1, 32))
def test_about_centres_keeps_the_centre_unless_the_border_is_near(x, y, old, new):
    (made,) = about_centres(torch.tensor([[x, y, x + old, y + old]]), new, 32).tolist()
    assert (made[2] - made[0], made[3] - made[1]) == (new, new)
    assert min(made) >= 0 and max(made) <= 32
    for low, start in zip((x, y), made[:2], strict=True):
        free = low + (old - new) / 2
        assert abs(start - min(max(free, 0), 32 - new)) <= 0.5


def test_about_centres_refuses_a_window_wider_than_the_image():
    with pytest.raises(ValueError, match="33 pixels does not fit into 32"):
        about_centres(torch.zeros(1, 4, dtype=torch.int64), 33, 32)


@given(box)
def test_inside_marks_the_pixels_of_the_box(box_4):
    (m_HW,) = inside(torch.tensor([box_4]), 24)
    assert {(x, y) for y, x in m_HW.nonzero().tolist()} == pixels(box_4)


def images(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Noise, uint8."""
    return torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


def draw_boxes(n: int, size: int, height: int, width: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x0 = torch.randint(0, width - size + 1, (n,), generator=g)
    y0 = torch.randint(0, height - size + 1, (n,), generator=g)
    return torch.stack([x0, y0, x0 + size, y0 + size], dim=1)


@given(st.integers(1, 5), st.integers(1, 7), st.integers(7, 12), st.integers(7, 12), st.integers(0, 99))
@examples(40)
def test_crop_and_paste_equal_slicing_each_image(n, size, height, width, seed):
    x, other = images(n, height, width, seed), images(n, height, width, seed + 1)
    box = draw_boxes(n, size, height, width, seed)
    t = crop(other, box)
    pasted = paste(x, t, box)
    for i, (x0, y0, x1, y1) in enumerate(box.tolist()):
        expected = x[i].clone()
        assert torch.equal(t[i], other[i, :, y0:y1, x0:x1])
        expected[:, y0:y1, x0:x1] = t[i]
        assert torch.equal(pasted[i], expected)


def test_paste_does_not_change_its_inputs():
    x = images(2, 8, 8)
    before = x.clone()
    paste(x, torch.zeros(2, 3, 3, 3, dtype=torch.uint8), draw_boxes(2, 3, 8, 8, 0))
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "box",
    [
        [[0, 0, 3, 3], [0, 0, 4, 4]],
        [[-1, 0, 2, 3], [0, 0, 3, 3]],
        [[6, 0, 9, 3], [0, 0, 3, 3]],
        [[0, 0, 0, 3], [0, 0, 0, 3]],
    ],
)
def test_crop_refuses_boxes_of_two_sizes_outside_the_image_or_empty(box):
    with pytest.raises(ValueError):
        crop(images(2, 8, 8), torch.tensor(box))


def test_paste_refuses_a_window_of_another_size_than_its_box():
    with pytest.raises(ValueError, match="do not fit"):
        paste(images(1, 8, 8), torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.tensor([[0, 0, 3, 3]]))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**62))
@examples(40)
def test_random_places_lie_inside_and_do_not_depend_on_batches(n, f, size, seed):
    seeds, index = torch.arange(n) * 7919 + seed, torch.arange(f)
    box = random_places(seeds, index, size, size, 8, 9)
    assert box.shape == (n, f, 4)
    assert (box[..., :2] >= 0).all() and (box[..., 2] <= 9).all() and (box[..., 3] <= 8).all()
    assert (box[..., 2:] - box[..., :2] == size).all()
    for i in range(n):
        for j in range(f):
            alone = random_places(seeds[i : i + 1], index[j : j + 1], size, size, 8, 9)
            assert torch.equal(alone[0, 0], box[i, j])


def test_random_places_are_uniform_and_uncorrelated():
    box = random_places(torch.arange(200), torch.arange(500), 3, 3, 12, 7)
    x0, y0 = box[..., 0].flatten(), box[..., 1].flatten()
    assert (torch.bincount(x0, minlength=5) / len(x0) - 1 / 5).abs().max() < 0.01
    assert (torch.bincount(y0, minlength=10) / len(y0) - 1 / 10).abs().max() < 0.01
    for first, second in [(x0, y0), (x0[:-1], x0[1:]), (x0[:-500], x0[500:])]:
        assert torch.corrcoef(torch.stack([first.double(), second.double()]))[0, 1].abs() < 0.02


def test_random_places_refuse_a_window_larger_than_the_image():
    with pytest.raises(ValueError, match="does not fit"):
        random_places(torch.arange(1), torch.arange(1), 9, 3, 8, 8)


@pytest.mark.parametrize("size", [3, 5, 8, 13])
def test_paste_resized_equals_an_antialiased_resize_on_whole_pixels(size):
    x, t = images(2, 20, 24).float() / 255, images(2, 8, 8, 3).float() / 255
    x0, y0 = 4, 6
    centre = torch.tensor([[x0 + size / 2, y0 + size / 2]]).expand(2, 2)
    pasted = paste_resized(x, t, torch.full((2, 2), float(size)), centre)
    expected = x.clone()
    resized = F.interpolate(t, (size, size), mode="bilinear", antialias=True, align_corners=False)
    expected[:, :, y0 : y0 + size, x0 : x0 + size] = resized
    assert torch.allclose(pasted, expected, atol=2e-3)


@given(st.floats(0.5, 30), st.floats(-4, 24), st.floats(-4, 20))
@examples(60)
def test_paste_resized_changes_only_the_pixels_that_it_covers(size, cx, cy):
    x, t = images(1, 16, 20).float() / 255, images(1, 6, 6, 5).float() / 255
    pasted = paste_resized(x, t, torch.tensor([[size, size]]), torch.tensor([[cx, cy]]))
    assert pasted.min() >= -1e-6 and pasted.max() <= 1 + 1e-6
    for row in range(16):
        for column in range(20):
            outside = (
                column + 1 <= cx - size / 2 - 1e-4
                or column >= cx + size / 2 + 1e-4
                or row + 1 <= cy - size / 2 - 1e-4
                or row >= cy + size / 2 + 1e-4
            )
            if outside:
                assert torch.equal(pasted[0, :, row, column], x[0, :, row, column])


def test_paste_resized_does_not_depend_on_the_batch():
    x, t = images(5, 16, 16).float() / 255, images(5, 6, 6, 5).float() / 255
    size = torch.linspace(2, 12, 10).view(5, 2)
    centre = torch.rand(5, 2, generator=torch.Generator().manual_seed(0)) * 16
    whole = paste_resized(x, t, size, centre)
    for i in range(5):
        one = slice(i, i + 1)
        assert torch.allclose(paste_resized(x[one], t[one], size[one], centre[one])[0], whole[i], atol=1e-6)


def test_paste_resized_of_one_colour_has_the_squares_area():
    pasted = paste_resized(
        torch.zeros(1, 3, 16, 16),
        torch.ones(1, 3, 5, 5),
        torch.tensor([[7.5, 7.5]]),
        torch.tensor([[8.0, 8.0]]),
    )
    assert torch.allclose(pasted.sum() / 3, torch.tensor(7.5**2), atol=1e-3)
    assert torch.allclose(pasted[..., 5:11, 5:11], torch.ones(1, 3, 6, 6))


def test_same_size_takes_the_largest_sides_and_keeps_windows_of_that_size():
    windows = [
        images(1, 6, 4)[0].float() / 255,
        torch.full((3, 2, 7), 0.25),
        images(1, 6, 7)[0].float() / 255,
    ]
    t_MChw = same_size(windows)
    assert t_MChw.shape == (3, 3, 6, 7)
    assert torch.equal(t_MChw[2], windows[2])
    assert torch.allclose(t_MChw[1], torch.full((3, 6, 7), 0.25))
