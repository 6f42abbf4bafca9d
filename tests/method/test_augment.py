"""The random views of pretraining: crops, colours, blur and solarisation, against torch and by definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.method.augment import (
    ASYMMETRIC,
    SYMMETRIC,
    Recipe,
    apply_views,
    color_jitter,
    draw_views,
    gaussian_blur,
    random_resized_crop,
    solarize,
)
from tests.examples import examples


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_views(
    x: torch.Tensor, g: torch.Generator, recipe: Recipe = ASYMMETRIC
) -> tuple[torch.Tensor, torch.Tensor]:
    return apply_views(x, draw_views(len(x), g, recipe))


def coordinates(n: int, height: int, width: int) -> torch.Tensor:
    """Images whose red is x and whose green is y, in pixels: the colours of a crop tell its place."""
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)]).expand(n, -1, -1, -1)


@examples(20)
@given(
    size=st.integers(8, 40),
    seed=st.integers(0, 999),
    recipe=st.sampled_from([ASYMMETRIC, SYMMETRIC]),
)
def test_views_have_the_size_of_their_crops_and_colours_in_range(size, seed, recipe):
    x = torch.rand(4, 2, 3, size, size, generator=generator(seed))
    for view in two_views(x, generator(seed), recipe):
        assert view.shape == (4, 3, size, size)
        assert view.min() >= 0 and view.max() <= 1


def test_the_first_view_is_of_the_first_crop():
    x = torch.stack([torch.zeros(6, 3, 8, 8), torch.full((6, 3, 8, 8), 0.4)], dim=1)
    first, second = two_views(x, generator())
    assert first.max() == 0 and second.min() > 0


def test_views_depend_on_the_generator_only_and_every_image_has_its_own_draws():
    x = torch.rand(1, 1, 3, 16, 16).expand(5, 2, -1, -1, -1)
    one, other = two_views(x, generator(1)), two_views(x, generator(1))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert not torch.equal(one[0], one[1])
    assert len({image.numpy().tobytes() for image in one[0]}) == 5


def test_a_crop_of_everything_is_the_image_or_its_mirror_image():
    x = torch.rand(20, 3, 12, 12, generator=generator())
    kept = random_resized_crop(x, (1.0, 1.0), generator(), ratio=(1.0, 1.0), flip_p=0.0)
    assert torch.allclose(kept, x, atol=1e-5)
    mirrored = random_resized_crop(x, (1.0, 1.0), generator(), ratio=(1.0, 1.0), flip_p=1.0)
    assert torch.allclose(mirrored, x.flip(3), atol=1e-5)
    mixed = random_resized_crop(x, (1.0, 1.0), generator(), ratio=(1.0, 1.0))
    straight = (mixed - x).abs().amax((1, 2, 3)) < 1e-4
    flipped = (mixed - x.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert (straight ^ flipped).all() and 0 < straight.sum() < 20


@examples(25)
@given(out=st.integers(4, 24), seed=st.integers(0, 999))
def test_a_crop_is_resized_as_by_torch(out, seed):
    """Read the box off the coordinate image and cut an image of noise with grid_sample."""
    n, size = 4, 16
    noise = torch.rand(n, 3, size, size, generator=generator(seed))
    options = {"scale": (0.05, out * out / size**2 if out < size else 1.0), "flip_p": 0.5, "out_size": out}
    where = random_resized_crop(coordinates(n, size, size), generator=generator(seed), **options)
    crop = random_resized_crop(noise, generator=generator(seed), **options)
    # Inside the border of half a pixel, where resampling a ramp returns the sampling position.
    grid = torch.stack([(2 * where[:, 0] + 1) / size - 1, (2 * where[:, 1] + 1) / size - 1], dim=-1)
    expected = F.grid_sample(noise, grid, align_corners=False, padding_mode="border")
    enlarging = _steps(where) <= 1
    assert torch.allclose(crop[enlarging], expected[enlarging], atol=1e-3)


def _steps(where: torch.Tensor) -> torch.Tensor:
    """Pixels in per pixel out, the larger of both directions, from the middle of the coordinate image."""
    middle = where.shape[-1] // 2
    dx = (where[:, 0, middle, middle] - where[:, 0, middle, middle - 1]).abs()
    dy = (where[:, 1, middle, middle] - where[:, 1, middle - 1, middle]).abs()
    return torch.maximum(dx, dy)


def test_shrinking_is_antialiased_as_in_torch():
    x = torch.rand(3, 3, 32, 32, generator=generator())
    small = random_resized_crop(x, (1.0, 1.0), generator(), 8, ratio=(1.0, 1.0), flip_p=0.0)
    assert torch.allclose(small, F.interpolate(x, size=(8, 8), mode="bilinear", antialias=True), atol=1e-5)


def test_crops_have_area_and_ratio_in_range_and_reach_every_border():
    n, size = 2000, 64
    view = random_resized_crop(coordinates(n, size, size), (0.4, 0.6), generator(), size, flip_p=0.0)
    left, right = view[:, 0, 32, 2], view[:, 0, 32, -3]
    top, bottom = view[:, 1, 2, 32], view[:, 1, -3, 32]
    width, height = (right - left) * size / (size - 5), (bottom - top) * size / (size - 5)
    area, ratio = width * height / size**2, width / height
    assert area.min() > 0.38 and area.max() < 0.62
    assert ratio.min() > 0.73 and ratio.max() < 1.36
    assert left.min() < 4 and right.max() > 59 and top.min() < 4 and bottom.max() > 59
    assert area.mean() == pytest.approx(0.5, abs=0.01)


def luma(x: torch.Tensor) -> torch.Tensor:
    return 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]


def test_a_jitter_of_strength_or_probability_zero_changes_nothing():
    x = torch.rand(4, 3, 6, 6)
    assert torch.allclose(color_jitter(x, generator(), 0.4, 0.4, 0.2, 0.1, p=0.0), x, atol=1e-5)
    assert torch.allclose(color_jitter(x, generator(), 0, 0, 0, 0), x, atol=1e-5)


def test_each_jitter_changes_what_its_name_says():
    x = torch.rand(50, 3, 6, 6, generator=generator()) * 0.3 + 0.35  # far enough from 0 and 1 never to clamp
    mean = luma(x).mean((1, 2)).view(-1, 1, 1, 1)

    factor = color_jitter(x, generator(), 0.4, 0, 0, 0) / x
    assert torch.allclose(factor, factor[:, :1, :1, :1].expand_as(x), atol=1e-4)
    assert factor.min() > 0.6 and factor.max() < 1.4 and factor.std() > 0.1

    contrast = (color_jitter(x, generator(), 0, 0.4, 0, 0) - mean) / (x - mean)
    contrast = contrast.flatten(1).median(1).values
    expected = mean + contrast.view(-1, 1, 1, 1) * (x - mean)
    assert torch.allclose(color_jitter(x, generator(), 0, 0.4, 0, 0), expected, atol=1e-4)
    assert contrast.min() > 0.6 and contrast.max() < 1.4 and contrast.std() > 0.1

    gray = luma(x)[:, None].expand_as(x)
    saturated = color_jitter(x, generator(), 0, 0, 0.2, 0)
    factor = ((saturated - gray) / (x - gray)).flatten(1).median(1).values
    assert torch.allclose(saturated, gray + factor.view(-1, 1, 1, 1) * (x - gray), atol=1e-3)
    assert factor.min() > 0.8 and factor.max() < 1.2 and factor.std() > 0.05

    turned = color_jitter(x, generator(), 0, 0, 0, 0.1)
    assert torch.allclose(luma(turned), luma(x), atol=1e-3)
    assert (turned - x).abs().max() > 0.05


def test_all_jitters_together_equal_their_definition():
    """Luma is b·(c·Y + (1 − c)·mean Y), and the colour difference is b·c·s times the old one."""
    x = torch.rand(1, 3, 6, 6, generator=generator()) * 0.2 + 0.4
    for seed in range(20):
        draw = 2 * torch.rand(4, 1, generator=generator(seed)) - 1
        b, c, s = 1 + 0.3 * draw[0], 1 + 0.3 * draw[1], 1 + 0.3 * draw[2]
        y = luma(x)
        expected = b * (c * y + (1 - c) * y.mean())
        got = color_jitter(x, generator(seed), 0.3, 0.3, 0.3, 0.0)
        assert torch.allclose(luma(got), expected, atol=1e-3)
        assert torch.allclose(got - luma(got)[:, None], b * c * s * (x - y[:, None]), atol=1e-3)


def test_gray_images_keep_their_luma_and_are_as_frequent_as_asked():
    x = torch.rand(400, 3, 5, 5, generator=generator())
    assert torch.allclose(
        color_jitter(x, generator(), 0, 0, 0, 0, gray_p=1.0), luma(x)[:, None].expand_as(x), atol=1e-3
    )
    some = color_jitter(x, generator(), 0.4, 0.4, 0.2, 0.1, p=0.8, gray_p=0.2)
    gray = (some.amax(1) - some.amin(1)).amax((1, 2)) < 1e-3
    assert 0.12 < gray.float().mean() < 0.28
    untouched = (color_jitter(x, generator(), 0.4, 0.4, 0.2, 0.1, p=0.8) - x).abs().amax((1, 2, 3)) < 1e-4
    assert 0.12 < untouched.float().mean() < 0.28


def test_blur_of_a_point_is_a_gaussian():
    x = torch.zeros(1, 3, 21, 21)
    x[:, :, 10, 10] = 1
    sigma = 1.5
    blurred = gaussian_blur(x, generator(), (sigma, sigma))[0, 0]
    total = sum(math.exp(-0.5 * (d / sigma) ** 2) for d in range(-10, 11))
    for i, j in [(10, 10), (10, 11), (9, 12), (7, 10)]:
        distance = (i - 10) ** 2 + (j - 10) ** 2
        assert float(blurred[i, j]) == pytest.approx(
            math.exp(-0.5 * distance / sigma**2) / total**2, rel=1e-4
        )


def test_blur_keeps_flat_images_and_is_as_frequent_as_asked():
    assert torch.allclose(
        gaussian_blur(torch.full((2, 3, 9, 7), 0.3), generator(), (0.5, 2.0)), torch.tensor(0.3)
    )
    x = torch.rand(400, 3, 8, 8, generator=generator())
    assert torch.allclose(gaussian_blur(x, generator(), (0.5, 2.0), p=0.0), x, atol=1e-6)
    same = (gaussian_blur(x, generator(), (0.5, 2.0), p=0.1) - x).abs().amax((1, 2, 3)) < 1e-5
    assert 0.85 < same.float().mean() < 0.95


def test_solarize_inverts_the_bright_colours_of_the_chosen_images():
    x = torch.rand(400, 3, 4, 4, generator=generator())
    everywhere = solarize(x, generator(), 1.0)
    assert torch.equal(everywhere, torch.where(x < 0.5, x, 1 - x))
    assert torch.equal(solarize(x, generator(), 0.0), x)
    some = (solarize(x, generator(), 0.2) != x).any(3).any(2).any(1)
    assert 0.12 < some.float().mean() < 0.28


def test_only_the_first_view_is_always_blurred_and_only_the_second_is_solarised():
    checkers = (torch.arange(224)[:, None] + torch.arange(224)).remainder(2).float()
    x = checkers.expand(24, 2, 3, -1, -1) * 0.9
    v1, v2 = two_views(x, generator())
    sharpness = [(v[:, :, :, 1:] - v[:, :, :, :-1]).abs().mean((1, 2, 3)) for v in (v1, v2)]
    assert sharpness[0].median() < 0.5 * sharpness[1].median()


def test_symmetric_views_are_equally_often_blurred_and_differ():
    checkers = (torch.arange(224)[:, None] + torch.arange(224)).remainder(2).float()
    x = checkers.expand(48, 2, 3, -1, -1) * 0.4  # dark enough never to clamp
    v1, v2 = two_views(x, generator(), SYMMETRIC)
    assert not torch.equal(v1, v2)
    for v in (v1, v2):
        sharpness = (v[:, :, :, 1:] - v[:, :, :, :-1]).abs().mean((1, 2, 3)) / v.mean((1, 2, 3))
        assert 0.25 < (sharpness < 0.5 * sharpness.max()).float().mean() < 0.75


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_share_the_views_of_the_whole_batch(workers):
    x = torch.randint(0, 256, (8, 2, 3, 16, 16), dtype=torch.uint8, generator=generator(5))
    whole = apply_views(x, draw_views(8, generator(1)))
    size = 8 // workers
    parts = []
    for rank in range(workers):
        start, stop = rank * size, (rank + 1) * size
        drawn = draw_views(8, generator(1))
        parts.append(apply_views(x[start:stop], (drawn[0].rows(start, stop), drawn[1].rows(start, stop))))
    for view, shares in zip(whole, zip(*parts, strict=True), strict=True):
        # Products of small batches are rounded in another order.
        torch.testing.assert_close(torch.cat(shares), view, rtol=0, atol=1e-6)


def test_views_of_bytes_are_those_of_their_fractions():
    x = torch.randint(0, 256, (6, 2, 3, 16, 16), dtype=torch.uint8, generator=generator(5))
    for ours, theirs in zip(
        two_views(x, generator(2)), two_views(x.float() / 255, generator(2)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_an_image_that_is_not_chosen_is_left_to_the_bit():
    x = torch.rand(40, 3, 16, 16)
    for changed in (gaussian_blur(x, generator(3), (1.0, 2.0), p=0.5), solarize(x, generator(3), p=0.5)):
        same = [bool(torch.equal(a, b)) for a, b in zip(changed, x, strict=True)]
        assert 8 < sum(same) < 32
    assert torch.equal(gaussian_blur(x, generator(3), (1.0, 2.0), p=0.0), x)
