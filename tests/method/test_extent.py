import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from poisoncam_ray.method.geometry import about_centres, iou
from poisoncam_ray.method.localise import LEAST_IMAGES, extent, heaviest_rectangle, locate, whole_triggers

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)
WINDOW = 10


def photographs(n: int, side: int, seed: int) -> torch.Tensor:
    coarse_NC66 = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse_NC66, (side, side), mode="bilinear")


def trigger(size: int, seed: int) -> torch.Tensor:
    t_C44 = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(seed)).round()
    t_C44[0, 0, :2] = torch.tensor([0.0, 1.0])
    return F.interpolate(t_C44[None], (size, size), mode="bilinear")[0]


def poisoned(n: int, t_Chw: torch.Tensor, side: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_NCSS, box_N4): photographs with the trigger in their middle, and where it is."""
    generator, size = torch.Generator().manual_seed(seed + 1), t_Chw.shape[-1]
    x_NCSS = photographs(n, side, seed)
    corner_N2 = torch.randint(side // 4, 3 * side // 4 - size + 1, (n, 2), generator=generator)
    for x_CSS, (x, y) in zip(x_NCSS, corner_N2.tolist(), strict=True):
        x_CSS[:, y : y + size, x : x + size] = t_Chw
    return x_NCSS, torch.cat([corner_N2, corner_N2 + size], dim=1)


def windows(box_N4: torch.Tensor, side: int, seed: int, size: int = WINDOW) -> torch.Tensor:
    """Of one size, up to two pixels beside the middle of what they should show."""
    shift_N2 = torch.randint(-2, 3, (len(box_N4), 2), generator=torch.Generator().manual_seed(seed))
    return about_centres(box_N4 + shift_N2.repeat(1, 2), size, side)


@pytest.mark.parametrize(("seed", "size"), [(1, 6), (2, 8), (3, 10), (4, 16)])
def test_pictures_are_as_large_as_the_trigger(seed, size):
    t_Chw = trigger(size, seed)
    x_NCSS, true_N4 = poisoned(60, t_Chw, 32, seed)
    pictures = whole_triggers(x_NCSS[:20], windows(true_N4[:20], 32, seed))
    box_N4, _ = locate(x_NCSS[20:], pictures)
    found_N = iou(box_N4, true_N4[20:]) >= 0.5
    assert float(found_N.float().mean()) >= 0.95


def test_a_larger_image_is_measured_as_well():
    x_NCSS, true_N4 = poisoned(20, trigger(50, 3), 224, 3)
    pictures = whole_triggers(x_NCSS, windows(true_N4, 224, 3, size=78))
    sides = [side for t_Chw in pictures for side in t_Chw.shape[1:]]
    assert max(sides) <= 62 and min(sides) >= 42


def test_two_triggers_among_the_windows_have_pictures_of_their_own():
    small_NCSS, small_N4 = poisoned(12, trigger(6, 5), 32, 5)
    large_NCSS, large_N4 = poisoned(10, trigger(15, 6), 32, 6)
    x_NCSS, box_N4 = torch.cat([small_NCSS, large_NCSS]), torch.cat([small_N4, large_N4])
    pictures = whole_triggers(x_NCSS, windows(box_N4, 32, 5))
    for some_NCSS, some_N4 in ((small_NCSS, small_N4), (large_NCSS, large_N4)):
        assert float((iou(locate(some_NCSS, pictures)[0], some_N4) >= 0.5).float().mean()) > 0.9


def test_windows_that_share_nothing_stay_as_they_are():
    seed = 7
    x_NCSS = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    box_N4 = windows(torch.tensor([[8, 8, 18, 18]]).expand(20, 4), 32, seed)
    pictures = whole_triggers(x_NCSS, box_N4)
    assert len(pictures) == 20
    for x_CSS, (x0, y0, x1, y1), t_Chw in zip(x_NCSS, box_N4.tolist(), pictures, strict=True):
        assert torch.equal(t_Chw, x_CSS[:, y0:y1, x0:x1])


def test_of_few_images_nothing_is_concluded():
    x_NCSS, true_N4 = poisoned(LEAST_IMAGES - 1, trigger(15, 2), 32, 2)
    box_N4 = windows(true_N4, 32, 2)
    assert {t_Chw.shape[1:] for t_Chw in whole_triggers(x_NCSS, box_N4)} == {(WINDOW, WINDOW)}
    assert whole_triggers(x_NCSS[:0], box_N4[:0]) == []


def test_a_window_beside_the_trigger_is_no_picture_of_it():
    x_NCSS, true_N4 = poisoned(20, trigger(6, 8), 32, 8)
    box_N4 = windows(true_N4, 32, 8)
    box_N4[:3] = torch.tensor([[0, 0, WINDOW, WINDOW]])
    sides = {side for t_Chw in whole_triggers(x_NCSS, box_N4) for side in t_Chw.shape[1:]}
    assert max(sides) < WINDOW


def test_images_that_do_not_hold_the_trigger_whole_give_no_picture():
    x_NCSS, true_N4 = poisoned(20, trigger(12, 4), 32, 4)
    # Here two columns of it lie beyond the border.
    x_NCSS[0] = photographs(1, 32, 9)[0]
    x_NCSS[0, :, 8:20, :10] = trigger(12, 4)[:, :, 2:]
    box_N4 = about_centres(true_N4, 8, 32)
    box_N4[0] = torch.tensor([0, 10, 8, 18])
    whole_N4 = extent(x_NCSS, box_N4)
    assert whole_N4[0].tolist() == [0, 0, 0, 0]
    assert float(iou(whole_N4[1:], true_N4[1:]).min()) > 0.7


def test_one_image_alone_tells_nothing():
    with pytest.raises(ValueError, match="agrees with itself"):
        extent(torch.rand(1, 3, 16, 16), torch.tensor([[2, 2, 8, 8]]))


@few
@given(seeds, st.integers(1, 7), st.integers(1, 7))
def test_the_heaviest_rectangle_is_that_of_all_rectangles(seed, height, width):
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
