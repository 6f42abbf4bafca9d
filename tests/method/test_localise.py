"""Locating a trigger by normalised cross-correlation, and measuring how large it is."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from poisoncam_ray.method.geometry import about_centres, iou
from poisoncam_ray.method.localise import (
    MIN_IMAGES,
    SIDE,
    heaviest_rectangle,
    locate,
    stretched,
    trigger_extent,
    whole_triggers,
)
from poisoncam_ray.method.similarity import sliding_ncc

WINDOW = 10

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)


def photographs(n: int, side: int, seed: int) -> torch.Tensor:
    """Smooth images, as most photographs are."""
    coarse_NC66 = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse_NC66, (side, side), mode="bilinear")


def noisy_photographs(n: int, side: int, seed: int) -> torch.Tensor:
    """Smooth images with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse_NC66 = torch.rand(n, 3, 6, 6, generator=generator)
    smooth_NCSS = F.interpolate(coarse_NC66, (side, side), mode="bilinear")
    return (smooth_NCSS + 0.05 * torch.rand(n, 3, side, side, generator=generator)).clamp(0, 1)


def blocks(h: int, w: int, seed: int) -> torch.Tensor:
    """A trigger of blocks of 3 pixels, never all of one colour."""
    t_C44 = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(seed)).round()
    t_C44[0, 0, :2] = torch.tensor([0.0, 1.0])
    return t_C44.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :h, :w]


def paste_at_random(x_NCSS: torch.Tensor, t_Chw: torch.Tensor, seed: int) -> torch.Tensor:
    """Paste the trigger into every image at a random place and return where, box_N4. Changes the images."""
    generator, (h, w), side = torch.Generator().manual_seed(seed), t_Chw.shape[1:], x_NCSS.shape[-1]
    boxes = []
    for x_CSS in x_NCSS:
        left = int(torch.randint(side - w + 1, (1,), generator=generator))
        top = int(torch.randint(side - h + 1, (1,), generator=generator))
        x_CSS[:, top : top + h, left : left + w] = t_Chw
        boxes.append([left, top, left + w, top + h])
    return torch.tensor(boxes)


@few
@given(seeds, st.integers(6, 12), st.integers(6, 12))
def test_a_pasted_window_is_located(seed, h, w):
    x_NCSS, t_Chw = noisy_photographs(4, 32, seed), blocks(h, w, seed)
    true_N4 = paste_at_random(x_NCSS, t_Chw, seed)
    box_N4, ncc_N = locate(x_NCSS, [blocks(9, 9, seed + 1), t_Chw])
    assert torch.equal(box_N4, true_N4)
    assert bool((ncc_N > 0.999).all())


@few
@given(seeds, st.floats(0.3, 1), st.floats(0, 0.5))
def test_locate_ignores_brightness_and_contrast(seed, contrast, brightness):
    x_NCSS, t_Chw = noisy_photographs(2, 32, seed), blocks(10, 10, seed)
    true_N4 = paste_at_random(x_NCSS, t_Chw, seed)
    assert torch.equal(locate(contrast * x_NCSS + brightness, [t_Chw])[0], true_N4)


@few
@given(seeds)
def test_sliding_ncc_equals_a_slow_loop(seed):
    x_NCSS, t_Chw = noisy_photographs(2, 9, seed), blocks(4, 6, seed)
    ncc_Nyx = sliding_ncc(x_NCSS, t_Chw)
    assert ncc_Nyx.shape == (2, 6, 4)
    t = (t_Chw - t_Chw.mean((1, 2), keepdim=True)).double()
    for n in range(2):
        for y in range(6):
            for x in range(4):
                place = x_NCSS[n, :, y : y + 4, x : x + 6].double()
                place = place - place.mean((1, 2), keepdim=True)
                slow = float((place * t).sum() / (place.norm() * t.norm()))
                assert float(ncc_Nyx[n, y, x]) == pytest.approx(slow, abs=1e-3)


@pytest.mark.parametrize("side", [SIDE, 96, 224])
def test_boxes_on_large_images_are_nearly_exact(side):
    x_NCSS = noisy_photographs(3, side, 1)
    t_Chw = F.interpolate(blocks(12, 12, 5)[None], size=(side // 4,) * 2)[0]
    true_N4 = paste_at_random(x_NCSS, t_Chw, 2)
    box_N4, ncc_N = locate(x_NCSS, [t_Chw])
    assert float(iou(box_N4, true_N4).min()) > 0.85 and float(ncc_N.min()) > 0.8
    assert bool(((box_N4[:, 2:] - box_N4[:, :2]) == side // 4).all())
    assert int(box_N4.min()) >= 0 and int(box_N4.max()) <= side


def test_flat_images_and_flat_windows_correlate_with_nothing():
    flat_1CSS, t_Chw = torch.full((1, 3, 16, 16), 0.7), blocks(6, 6, 0)
    box_N4, ncc_N = locate(flat_1CSS, [t_Chw])
    assert ncc_N.tolist() == [0.0] and box_N4.tolist() == [[0, 0, 6, 6]]
    assert abs(float(locate(noisy_photographs(1, 16, 0), [torch.full((3, 6, 6), 0.2)])[1])) < 0.01


def test_locate_does_not_depend_on_the_other_images():
    x_NCSS = noisy_photographs(5, 32, 3)
    paste_at_random(x_NCSS, blocks(8, 8, 1), 4)
    windows = [blocks(8, 8, 1), blocks(11, 7, 2)]
    box_N4, ncc_N = locate(x_NCSS, windows)
    for i in range(5):
        alone_14, ncc_1 = locate(x_NCSS[i : i + 1], windows)
        assert torch.equal(alone_14[0], box_N4[i]) and float(ncc_1) == pytest.approx(float(ncc_N[i]))


def test_locate_takes_a_window_as_large_as_the_image_and_refuses_none_or_a_larger_one():
    x_NCSS = noisy_photographs(2, 12, 0)
    assert locate(x_NCSS, [x_NCSS[0]])[0].tolist() == [[0, 0, 12, 12]] * 2
    assert locate(x_NCSS[:0], [x_NCSS[0]])[0].shape == (0, 4)
    with pytest.raises(ValueError, match="no window"):
        locate(x_NCSS, [])
    with pytest.raises(ValueError, match="does not fit"):
        locate(x_NCSS, [torch.zeros(3, 13, 5)])


def trigger(size: int, seed: int) -> torch.Tensor:
    """A square trigger of smooth blocks."""
    t_C44 = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(seed)).round()
    t_C44[0, 0, :2] = torch.tensor([0.0, 1.0])
    return F.interpolate(t_C44[None], (size, size), mode="bilinear")[0]


def poisoned(n: int, t_Chw: torch.Tensor, side: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Photographs with the trigger in their middle half, x_NCSS, and where it is, box_N4."""
    generator, size = torch.Generator().manual_seed(seed + 1), t_Chw.shape[-1]
    x_NCSS = photographs(n, side, seed)
    corner_N2 = torch.randint(side // 4, 3 * side // 4 - size + 1, (n, 2), generator=generator)
    for x_CSS, (x, y) in zip(x_NCSS, corner_N2.tolist(), strict=True):
        x_CSS[:, y : y + size, x : x + size] = t_Chw
    return x_NCSS, torch.cat([corner_N2, corner_N2 + size], dim=1)


def windows(box_N4: torch.Tensor, side: int, seed: int, size: int = WINDOW) -> torch.Tensor:
    """Windows of one size, with centres up to two pixels off those of the boxes."""
    shift_N2 = torch.randint(-2, 3, (len(box_N4), 2), generator=torch.Generator().manual_seed(seed))
    return about_centres(box_N4 + shift_N2.repeat(1, 2), size, side)


@pytest.mark.parametrize(("seed", "size"), [(1, 6), (2, 8), (3, 10), (4, 16)])
def test_whole_triggers_locate_the_trigger_with_its_size(seed, size):
    t_Chw = trigger(size, seed)
    x_NCSS, true_N4 = poisoned(60, t_Chw, 32, seed)
    pictures, _ = whole_triggers(x_NCSS[:20], windows(true_N4[:20], 32, seed))
    box_N4, _ = locate(x_NCSS[20:], pictures)
    found_N = iou(box_N4, true_N4[20:]) >= 0.5
    assert float(found_N.float().mean()) >= 0.95


def test_whole_triggers_have_the_triggers_size_in_large_images():
    x_NCSS, true_N4 = poisoned(20, trigger(50, 3), 224, 3)
    pictures, _ = whole_triggers(x_NCSS, windows(true_N4, 224, 3, size=78))
    sides = [side for t_Chw in pictures for side in t_Chw.shape[1:]]
    assert max(sides) <= 62 and min(sides) >= 42


def test_two_triggers_give_pictures_of_both():
    small_NCSS, small_N4 = poisoned(12, trigger(6, 5), 32, 5)
    large_NCSS, large_N4 = poisoned(10, trigger(15, 6), 32, 6)
    x_NCSS, box_N4 = torch.cat([small_NCSS, large_NCSS]), torch.cat([small_N4, large_N4])
    pictures, _ = whole_triggers(x_NCSS, windows(box_N4, 32, 5))
    for some_NCSS, some_N4 in ((small_NCSS, small_N4), (large_NCSS, large_N4)):
        assert float((iou(locate(some_NCSS, pictures)[0], some_N4) >= 0.5).float().mean()) > 0.9


def test_windows_without_a_common_trigger_stay_as_they_are():
    seed = 7
    x_NCSS = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    box_N4 = windows(torch.tensor([[8, 8, 18, 18]]).expand(20, 4), 32, seed)
    pictures, cut_from = whole_triggers(x_NCSS, box_N4)
    assert len(pictures) == 20 and cut_from == list(range(20))
    for x_CSS, (x0, y0, x1, y1), t_Chw in zip(x_NCSS, box_N4.tolist(), pictures, strict=True):
        assert torch.equal(t_Chw, x_CSS[:, y0:y1, x0:x1])


def test_windows_of_too_few_images_stay_as_they_are():
    x_NCSS, true_N4 = poisoned(MIN_IMAGES - 1, trigger(15, 2), 32, 2)
    box_N4 = windows(true_N4, 32, 2)
    assert {t_Chw.shape[1:] for t_Chw in whole_triggers(x_NCSS, box_N4)[0]} == {(WINDOW, WINDOW)}
    assert whole_triggers(x_NCSS[:0], box_N4[:0]) == ([], [])


def test_each_whole_trigger_names_the_image_that_it_is_cut_from():
    x_NCSS, true_N4 = poisoned(20, trigger(10, 4), 32, 4)
    pictures, cut_from = whole_triggers(x_NCSS, windows(true_N4, 32, 4))
    assert len(pictures) == len(cut_from) > MIN_IMAGES
    for t_Chw, i in zip(pictures, cut_from, strict=True):
        assert float(locate(x_NCSS[i : i + 1], [t_Chw])[1]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("cut_from", "onto", "size"),
    [
        (1, 1, (8, 6)),
        (2, 1, (8, 12)),
        (1, 2, (8, 3)),
        (2, 4, (8, 3)),
        (1, 0.5, (4, 6)),
        (2, 0.5, (4, 12)),
        (4, 1, (8, 16)),
    ],
)
def test_a_picture_is_stretched_as_its_trigger_would_be_on_an_image_of_another_aspect(cut_from, onto, size):
    """8 px high and 6 wide. On a wide image only the width is squeezed, on a tall one only the height."""
    t_Chw = trigger(8, 1)[:, :, :6]
    made = stretched(t_Chw, cut_from, onto, 16)
    assert made.shape[1:] == size and (made is t_Chw) == (size == (8, 6))
    assert float((made.mean(dim=(1, 2)) - t_Chw.mean(dim=(1, 2))).abs().max()) < 0.05


def test_windows_beside_the_trigger_are_not_kept():
    x_NCSS, true_N4 = poisoned(20, trigger(6, 8), 32, 8)
    box_N4 = windows(true_N4, 32, 8)
    box_N4[:3] = torch.tensor([[0, 0, WINDOW, WINDOW]])
    sides = {side for t_Chw in whole_triggers(x_NCSS, box_N4)[0] for side in t_Chw.shape[1:]}
    assert max(sides) < WINDOW


def test_extent_is_zero_for_an_image_that_does_not_hold_the_whole_trigger():
    x_NCSS, true_N4 = poisoned(20, trigger(12, 4), 32, 4)
    # In this image two columns of the trigger lie outside.
    x_NCSS[0] = photographs(1, 32, 9)[0]
    x_NCSS[0, :, 8:20, :10] = trigger(12, 4)[:, :, 2:]
    box_N4 = about_centres(true_N4, 8, 32)
    box_N4[0] = torch.tensor([0, 10, 8, 18])
    whole_N4 = trigger_extent(x_NCSS, box_N4)
    assert whole_N4[0].tolist() == [0, 0, 0, 0]
    assert float(iou(whole_N4[1:], true_N4[1:]).min()) > 0.7


def test_extent_of_a_single_image_is_refused():
    with pytest.raises(ValueError, match="agrees with itself"):
        trigger_extent(torch.rand(1, 3, 16, 16), torch.tensor([[2, 2, 8, 8]]))


@few
@given(seeds, st.integers(1, 7), st.integers(1, 7))
def test_heaviest_rectangle_equals_a_search_of_all_rectangles(seed, height, width):
    a_yx = torch.randn(height, width, generator=torch.Generator().manual_seed(seed))
    x0, y0, x1, y1 = heaviest_rectangle(a_yx)
    every = [
        float(a_yx[top:bottom, left:right].sum())
        for top in range(height)
        for bottom in range(top + 1, height + 1)
        for left in range(width)
        for right in range(left + 1, width + 1)
    ]
    assert float(a_yx[y0:y1, x0:x1].sum()) == pytest.approx(max(every), abs=1e-5)
