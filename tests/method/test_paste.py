import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from poisoncam_ray.method.geometry import crop, paste, paste_resized, random_places, same_size


def images(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


def draw_boxes(n: int, size: int, height: int, width: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x0 = torch.randint(0, width - size + 1, (n,), generator=g)
    y0 = torch.randint(0, height - size + 1, (n,), generator=g)
    return torch.stack([x0, y0, x0 + size, y0 + size], dim=1)


@given(st.integers(1, 5), st.integers(1, 7), st.integers(7, 12), st.integers(7, 12), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_crop_and_paste_equal_slicing_one_image_at_a_time(n, size, height, width, seed):
    x, other = images(n, height, width, seed), images(n, height, width, seed + 1)
    box = draw_boxes(n, size, height, width, seed)
    t = crop(other, box)
    pasted = paste(x, t, box)
    for i, (x0, y0, x1, y1) in enumerate(box.tolist()):
        expected = x[i].clone()
        assert torch.equal(t[i], other[i, :, y0:y1, x0:x1])
        expected[:, y0:y1, x0:x1] = t[i]
        assert torch.equal(pasted[i], expected)


def test_paste_leaves_its_inputs_alone():
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
def test_wrong_boxes_are_refused(box):
    with pytest.raises(ValueError):
        crop(images(2, 8, 8), torch.tensor(box))


def test_a_window_of_another_size_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        paste(images(1, 8, 8), torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.tensor([[0, 0, 3, 3]]))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**62))
@settings(max_examples=40, deadline=None)
def test_random_places_lie_inside_and_do_not_depend_on_how_they_are_split(n, f, size, seed):
    seeds, index = torch.arange(n) * 7919 + seed, torch.arange(f)
    box = random_places(seeds, index, size, size, 8, 9)
    assert box.shape == (n, f, 4)
    assert (box[..., :2] >= 0).all() and (box[..., 2] <= 9).all() and (box[..., 3] <= 8).all()
    assert (box[..., 2:] - box[..., :2] == size).all()
    for i in range(n):
        for j in range(f):
            alone = random_places(seeds[i : i + 1], index[j : j + 1], size, size, 8, 9)
            assert torch.equal(alone[0, 0], box[i, j])


def test_random_places_cover_the_image_evenly_and_do_not_follow_one_another():
    box = random_places(torch.arange(200), torch.arange(500), 3, 3, 12, 7)
    x0, y0 = box[..., 0].flatten(), box[..., 1].flatten()
    assert (torch.bincount(x0, minlength=5) / len(x0) - 1 / 5).abs().max() < 0.01
    assert (torch.bincount(y0, minlength=10) / len(y0) - 1 / 10).abs().max() < 0.01
    for first, second in [(x0, y0), (x0[:-1], x0[1:]), (x0[:-500], x0[500:])]:
        assert torch.corrcoef(torch.stack([first.double(), second.double()]))[0, 1].abs() < 0.02


def test_a_window_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        random_places(torch.arange(1), torch.arange(1), 9, 3, 8, 8)


@pytest.mark.parametrize("size", [3, 5, 8, 13])
def test_paste_resized_equals_an_antialiased_resize_when_it_falls_on_whole_pixels(size):
    x, t = images(2, 20, 24).float() / 255, images(2, 8, 8, 3).float() / 255
    x0, y0 = 4, 6
    centre = torch.tensor([[x0 + size / 2, y0 + size / 2]]).expand(2, 2)
    pasted = paste_resized(x, t, torch.full((2,), float(size)), centre)
    expected = x.clone()
    resized = functional.interpolate(t, (size, size), mode="bilinear", antialias=True, align_corners=False)
    expected[:, :, y0 : y0 + size, x0 : x0 + size] = resized
    assert torch.allclose(pasted, expected, atol=2e-3)


@given(st.floats(0.5, 30), st.floats(-4, 24), st.floats(-4, 20))
@settings(max_examples=60, deadline=None)
def test_paste_resized_touches_only_the_pixels_it_covers(size, cx, cy):
    x, t = images(1, 16, 20).float() / 255, images(1, 6, 6, 5).float() / 255
    pasted = paste_resized(x, t, torch.tensor([size]), torch.tensor([[cx, cy]]))
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
    size, centre = torch.linspace(2, 12, 5), torch.rand(5, 2, generator=torch.Generator().manual_seed(0)) * 16
    whole = paste_resized(x, t, size, centre)
    for i in range(5):
        one = slice(i, i + 1)
        assert torch.allclose(paste_resized(x[one], t[one], size[one], centre[one])[0], whole[i], atol=1e-6)


def test_paste_resized_of_one_colour_is_that_colour_inside():
    pasted = paste_resized(
        torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 5, 5), torch.tensor([7.5]), torch.tensor([[8.0, 8.0]])
    )
    assert torch.allclose(pasted.sum() / 3, torch.tensor(7.5**2), atol=1e-3)
    assert torch.allclose(pasted[..., 5:11, 5:11], torch.ones(1, 3, 6, 6))


def test_windows_of_several_sizes_take_the_largest_and_those_of_it_stay_as_they_are():
    windows = [
        images(1, 6, 4)[0].float() / 255,
        torch.full((3, 2, 7), 0.25),
        images(1, 6, 7)[0].float() / 255,
    ]
    t_MChw = same_size(windows)
    assert t_MChw.shape == (3, 3, 6, 7)
    assert torch.equal(t_MChw[2], windows[2])
    assert torch.allclose(t_MChw[1], torch.full((3, 6, 7), 0.25))
