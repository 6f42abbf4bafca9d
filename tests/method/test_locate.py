import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from poisoncam_ray.method.geometry import iou
from poisoncam_ray.method.localise import SIDE, correlation, locate

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)


def photographs(n: int, side: int, seed: int) -> torch.Tensor:
    """Smooth, as photographs mostly are, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse_NC66 = torch.rand(n, 3, 6, 6, generator=generator)
    smooth_NCSS = F.interpolate(coarse_NC66, (side, side), mode="bilinear")
    return (smooth_NCSS + 0.05 * torch.rand(n, 3, side, side, generator=generator)).clamp(0, 1)


def trigger(h: int, w: int, seed: int) -> torch.Tensor:
    """Blocks of 3 pixels, never all of one colour."""
    t_C44 = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(seed)).round()
    t_C44[0, 0, :2] = torch.tensor([0.0, 1.0])
    return t_C44.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :h, :w]


def put(x_NCSS: torch.Tensor, t_Chw: torch.Tensor, seed: int) -> torch.Tensor:
    """Paste it on every image, in place, at a random place: box_N4."""
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
def test_what_was_pasted_is_found_where_it_is(seed, h, w):
    x_NCSS, t_Chw = photographs(4, 32, seed), trigger(h, w, seed)
    true_N4 = put(x_NCSS, t_Chw, seed)
    box_N4, likeness_N = locate(x_NCSS, [trigger(9, 9, seed + 1), t_Chw])
    assert torch.equal(box_N4, true_N4)
    assert bool((likeness_N > 0.999).all())


@few
@given(seeds, st.floats(0.3, 1), st.floats(0, 0.5))
def test_brightness_and_contrast_do_not_matter(seed, contrast, brightness):
    x_NCSS, t_Chw = photographs(2, 32, seed), trigger(10, 10, seed)
    true_N4 = put(x_NCSS, t_Chw, seed)
    assert torch.equal(locate(contrast * x_NCSS + brightness, [t_Chw])[0], true_N4)


@few
@given(seeds)
def test_correlation_equals_a_slow_loop(seed):
    x_NCSS, t_Chw = photographs(2, 9, seed), trigger(4, 6, seed)
    like_Nyx = correlation(x_NCSS, t_Chw)
    assert like_Nyx.shape == (2, 6, 4)
    t = (t_Chw - t_Chw.mean((1, 2), keepdim=True)).double()
    for n in range(2):
        for y in range(6):
            for x in range(4):
                place = x_NCSS[n, :, y : y + 4, x : x + 6].double()
                place = place - place.mean((1, 2), keepdim=True)
                slow = float((place * t).sum() / (place.norm() * t.norm()))
                assert float(like_Nyx[n, y, x]) == pytest.approx(slow, abs=1e-3)


@pytest.mark.parametrize("side", [SIDE, 96, 224])
def test_on_large_images_the_box_is_nearly_right(side):
    x_NCSS, t_Chw = photographs(3, side, 1), F.interpolate(trigger(12, 12, 5)[None], size=(side // 4,) * 2)[0]
    true_N4 = put(x_NCSS, t_Chw, 2)
    box_N4, likeness_N = locate(x_NCSS, [t_Chw])
    assert float(iou(box_N4, true_N4).min()) > 0.85 and float(likeness_N.min()) > 0.8
    assert bool(((box_N4[:, 2:] - box_N4[:, :2]) == side // 4).all())
    assert int(box_N4.min()) >= 0 and int(box_N4.max()) <= side


def test_flat_images_and_flat_windows_are_like_nothing():
    flat_1CSS, t_Chw = torch.full((1, 3, 16, 16), 0.7), trigger(6, 6, 0)
    box_N4, likeness_N = locate(flat_1CSS, [t_Chw])
    assert likeness_N.tolist() == [0.0] and box_N4.tolist() == [[0, 0, 6, 6]]
    assert abs(float(locate(photographs(1, 16, 0), [torch.full((3, 6, 6), 0.2)])[1])) < 0.01


def test_an_image_alone_is_located_as_among_others():
    x_NCSS = photographs(5, 32, 3)
    put(x_NCSS, trigger(8, 8, 1), 4)
    windows = [trigger(8, 8, 1), trigger(11, 7, 2)]
    box_N4, likeness_N = locate(x_NCSS, windows)
    for i in range(5):
        alone_14, like_1 = locate(x_NCSS[i : i + 1], windows)
        assert torch.equal(alone_14[0], box_N4[i]) and float(like_1) == pytest.approx(float(likeness_N[i]))


def test_a_window_as_large_as_the_image_and_none_at_all():
    x_NCSS = photographs(2, 12, 0)
    assert locate(x_NCSS, [x_NCSS[0]])[0].tolist() == [[0, 0, 12, 12]] * 2
    assert locate(x_NCSS[:0], [x_NCSS[0]])[0].shape == (0, 4)
    with pytest.raises(ValueError, match="no window"):
        locate(x_NCSS, [])
    with pytest.raises(ValueError, match="does not fit"):
        locate(x_NCSS, [torch.zeros(3, 13, 5)])
