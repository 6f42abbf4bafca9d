"""The two random views of self-supervised pretraining, for a whole batch of images at once.

Their crops are cut out while images are decoded (method/crops.py); colours and blur are drawn here. Images of
one size are cropped here, too, for the poison classifier.

Every image has its own random parameters. Everything linear is a small matrix: a crop without rotation is
separable, so crop, resize and flip are one matrix for the rows and one for the columns; blur likewise; all
colour jitter is one affine map of RGB. A few random numbers an image are drawn on the CPU, from the generator
passed in; the matrices are made of them on the images' device. So the numbers of a whole batch can be drawn
everywhere, and each worker applies those of its own images.

B images   C = 3 colours, float in [0, 1]   H × W pixels in   h × w pixels out   T tries at a crop size
S images that a change is applied to
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

# RGB to luma and two colour differences (NTSC's YIQ), in which a change of hue is a rotation.
TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
FROM_YIQ = torch.linalg.inv(TO_YIQ)
# Standard deviation of the blur in pixels, and the image side it is meant for: the same in all three papers.
BLUR_SIGMA, BLUR_AT = (0.1, 2.0), 224


@dataclass(frozen=True)
class View:
    """How one view is drawn from its crop.

    Attributes:
        jitter: strengths of brightness, contrast, saturation and hue, see color_jitter.
        blur_p: probability of a Gaussian blur.
        solarize_p: probability of solarisation.
    """

    jitter: tuple[float, float, float, float]
    blur_p: float
    solarize_p: float


Recipe = tuple[View, View]
# BYOL (arXiv 2006.07733 §B) and MoCo-v3 (arXiv 2104.02057 §A): view 1 is always blurred; view 2 is seldom
# blurred and sometimes solarised.
ASYMMETRIC: Recipe = (View((0.4, 0.4, 0.2, 0.1), 1.0, 0.0), View((0.4, 0.4, 0.2, 0.1), 0.1, 0.2))
# SimCLR (arXiv 2002.05709 §A, jitter of strength 1): both views are drawn in the same way.
SYMMETRIC: Recipe = (View((0.8, 0.8, 0.8, 0.2), 0.5, 0.0),) * 2
# SimSiam (arXiv 2011.10566 §3): the same with half of the jitter.
SYMMETRIC_MILD: Recipe = (View((0.4, 0.4, 0.4, 0.1), 0.5, 0.0),) * 2


class Draws(NamedTuple):
    """The random numbers of one view of B images, on the CPU.

    Attributes:
        brightness_B: factor of the brightness.
        contrast_B: factor of the contrast.
        saturation_B: factor of the saturation; 0 takes all colour away.
        hue_B: turns of the hue.
        sigma_B: standard deviation of the blur in pixels of an image of BLUR_AT; 0 is no blur.
        solarized_B: whether bright colours are inverted.
    """

    brightness_B: Tensor
    contrast_B: Tensor
    saturation_B: Tensor
    hue_B: Tensor
    sigma_B: Tensor
    solarized_B: Tensor

    def rows(self, start: int, stop: int) -> "Draws":
        """The numbers of the images start … stop − 1."""
        return Draws(*(value_B[start:stop] for value_B in self))


def draw_views(B: int, generator: Generator, recipe: Recipe = ASYMMETRIC) -> tuple[Draws, Draws]:
    """Draw the random numbers of both views of B images.

    Args:
        B: how many images.
        generator: CPU generator of all random numbers.
        recipe: how the first and the second view are drawn.
    """
    first, second = (_draw_view(B, generator, how) for how in recipe)
    return first, second


def _draw_view(B: int, generator: Generator, how: View) -> Draws:
    jitter = _draw_jitter(B, generator, *how.jitter, p=0.8, gray_p=0.2)
    sigma_B = _draw_sigma(B, generator, BLUR_SIGMA, how.blur_p)
    return Draws(*jitter, sigma_B, torch.rand(B, generator=generator) < how.solarize_p)


def apply_views(x_B2CHW: Tensor, draws: tuple[Draws, Draws]) -> tuple[Tensor, Tensor]:
    """Make the two views of every image from its two crops and its random numbers.

    Args:
        x_B2CHW: the crops, uint8, or float in [0, 1].
        draws: of the same images.

    Returns:
        v1_BCHW and v2_BCHW, float in [0, 1].
    """
    white = 255 if x_B2CHW.dtype == torch.uint8 else 1
    x_B2CHW = x_B2CHW if x_B2CHW.is_floating_point() else x_B2CHW.float()
    v1_BCHW, v2_BCHW = (_apply_view(x_B2CHW[:, i], drawn, white) for i, drawn in enumerate(draws))
    return v1_BCHW, v2_BCHW


def _apply_view(x_BCHW: Tensor, drawn: Draws, white: int) -> Tensor:
    v_BCHW = _jittered(x_BCHW, drawn[:4], white)
    # The blur scales with the image: 0.1 to 2 px at 224 px are 0.01 to 0.3 px at 32 px.
    v_BCHW = _blurred(v_BCHW, drawn.sigma_B * (v_BCHW.shape[-1] / BLUR_AT))
    return _solarized(v_BCHW, drawn.solarized_B)


def random_resized_crop(
    x_BCHW: Tensor,
    scale: tuple[float, float],
    generator: Generator,
    out_size: int | None = None,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip_p: float = 0.5,
) -> Tensor:
    """Crop a random box from every image, resize it, and mirror some of the images.

    The resize is bilinear with antialiasing: where a crop shrinks, the triangle filter widens with it.

    Args:
        x_BCHW: images, float.
        scale: least and greatest share of the image's area, each in (0, 1].
        generator: CPU generator.
        out_size: side of the result in pixels; None keeps H × W.
        ratio: least and greatest width over height of the box.
        flip_p: probability of a horizontal flip.

    Returns:
        v_BChw.
    """
    B, _, H, W = x_BCHW.shape
    w_B, h_B = _crop_sizes(B, W, H, scale, ratio, generator)
    left_B = torch.rand(B, generator=generator) * (W - w_B)
    top_B = torch.rand(B, generator=generator) * (H - h_B)
    columns_BwW = _resize_matrix(left_B, w_B, W, out_size or W)
    rows_BhH = _resize_matrix(top_B, h_B, H, out_size or H)
    flip_B = torch.rand(B, generator=generator) < flip_p
    columns_BwW = torch.where(flip_B.view(-1, 1, 1), columns_BwW.flip(1), columns_BwW)
    return _separable(x_BCHW, rows_BhH, columns_BwW)


def _crop_sizes(
    B: int, W: int, H: int, scale: tuple[float, float], ratio: tuple[float, float], generator: Generator
) -> tuple[Tensor, Tensor]:
    """Widths and heights in pixels: the first of ten tries that fits into the image, else the whole image."""
    area_BT = torch.empty(B, 10).uniform_(*scale, generator=generator) * W * H
    log_ratio_BT = torch.empty(B, 10).uniform_(math.log(ratio[0]), math.log(ratio[1]), generator=generator)
    w_BT = (area_BT * log_ratio_BT.exp()).sqrt()
    h_BT = (area_BT / log_ratio_BT.exp()).sqrt()
    fits_BT = (w_BT <= W) & (h_BT <= H)
    first_B1 = fits_BT.int().argmax(1, keepdim=True)
    any_B = fits_BT.any(1)
    w_B = torch.where(any_B, w_BT.gather(1, first_B1)[:, 0], float(W))
    h_B = torch.where(any_B, h_BT.gather(1, first_B1)[:, 0], float(H))
    return w_B, h_B


def _resize_matrix(start_B: Tensor, length_B: Tensor, n_in: int, n_out: int) -> Tensor:
    """Resize the interval [start, start + length) of n_in pixels to n_out pixels.

    Row j of the matrix holds the weights of the input pixels in output pixel j.
    """
    step_B11 = (length_B / n_out).view(-1, 1, 1)
    centre_Bj1 = start_B.view(-1, 1, 1) + (torch.arange(n_out).view(1, -1, 1) + 0.5) * step_B11 - 0.5
    distance_Bji = (torch.arange(n_in) - centre_Bj1).abs()
    weight_Bji = (1 - distance_Bji / step_B11.clamp(min=1)).clamp(min=0)
    return weight_Bji / weight_Bji.sum(-1, keepdim=True)


def _separable(x_BCHW: Tensor, rows_BhH: Tensor, columns_BwW: Tensor) -> Tensor:
    rows_B1hH = rows_BhH[:, None].to(x_BCHW)
    columns_B1Ww = columns_BwW.mT[:, None].to(x_BCHW)
    return rows_B1hH @ x_BCHW @ columns_B1Ww


def color_jitter(
    x_BCHW: Tensor,
    generator: Generator,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    p: float = 1.0,
    gray_p: float = 0.0,
) -> Tensor:
    """Change brightness, contrast, saturation and hue of every image at random.

    With factors b, c, s and a hue angle, luma Y becomes b·(c·Y + (1 − c)·mean Y) and the colour difference C
    becomes b·c·s·rotate(C). In this form the four changes commute, so no random order is drawn, unlike in
    torchvision.

    Args:
        x_BCHW: images, float in [0, 1].
        generator: CPU generator.
        brightness: b is uniform in 1 ± brightness.
        contrast: c is uniform in 1 ± contrast.
        saturation: s is uniform in 1 ± saturation.
        hue: the angle is uniform in ± hue turns.
        p: probability that an image is changed.
        gray_p: probability that an image loses all colour, whether it is changed or not.

    Returns:
        x_BCHW, clamped to [0, 1].
    """
    drawn = _draw_jitter(len(x_BCHW), generator, brightness, contrast, saturation, hue, p, gray_p)
    return _jittered(x_BCHW, drawn)


def _draw_jitter(
    B: int,
    generator: Generator,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    p: float,
    gray_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The factors of brightness, contrast and saturation, and the turns of the hue, see color_jitter."""
    factor_4B = torch.rand(4, B, generator=generator) * 2 - 1
    factor_4B *= (torch.rand(B, generator=generator) < p) * torch.tensor(
        [[brightness], [contrast], [saturation], [hue]]
    )
    b_B, c_B, s_B = 1 + factor_4B[:3]
    return b_B, c_B, torch.where(torch.rand(B, generator=generator) < gray_p, 0.0, s_B), factor_4B[3]


def _jittered(x_BCHW: Tensor, drawn: tuple[Tensor, ...], white: int = 1) -> Tensor:
    """Apply a colour jitter. `white`: the value of white in x_BCHW; in the result it is 1."""
    b_B, c_B, s_B, hue_B = (value_B.to(x_BCHW.device, non_blocking=True) for value_B in drawn)
    cos_B, sin_B = torch.cos(2 * math.pi * hue_B), torch.sin(2 * math.pi * hue_B)
    zero_B, one_B = torch.zeros_like(b_B), torch.ones_like(b_B)
    jitter_B33 = torch.stack(
        [one_B, zero_B, zero_B, zero_B, s_B * cos_B, -s_B * sin_B, zero_B, s_B * sin_B, s_B * cos_B], dim=1
    ).view(-1, 3, 3)
    to_yiq_33, from_yiq_33 = TO_YIQ.to(b_B.device), FROM_YIQ.to(b_B.device)
    matrix_B33 = (b_B * c_B).view(-1, 1, 1) * (from_yiq_33 @ jitter_B33 @ to_yiq_33)
    mean_luma_B = x_BCHW.mean((2, 3)) @ to_yiq_33[0].to(x_BCHW)
    offset_B = (b_B * (1 - c_B)).to(x_BCHW) * mean_luma_B
    if white != 1:
        matrix_B33, offset_B = matrix_B33 / white, offset_B / white
    y_BCN = torch.baddbmm(offset_B.view(-1, 1, 1), matrix_B33.to(x_BCHW), x_BCHW.flatten(2))
    return y_BCN.clamp_(0, 1).view_as(x_BCHW)


def gaussian_blur(x_BCHW: Tensor, generator: Generator, sigma: tuple[float, float], p: float = 1.0) -> Tensor:
    """Blur some of the images, each by its own standard deviation.

    Args:
        x_BCHW: images, float in [0, 1].
        generator: CPU generator.
        sigma: least and greatest standard deviation in pixels; drawn uniformly between them.
        p: probability that an image is blurred.

    Returns:
        x_BCHW, clamped to [0, 1].
    """
    return _blurred(x_BCHW, _draw_sigma(len(x_BCHW), generator, sigma, p))


def _draw_sigma(B: int, generator: Generator, sigma: tuple[float, float], p: float) -> Tensor:
    """Standard deviations; 0 for the images that are not blurred."""
    sigma_B = torch.empty(B).uniform_(*sigma, generator=generator)
    return torch.where(torch.rand(B, generator=generator) < p, sigma_B, 0.0)


def _blurred(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    H, W = x_BCHW.shape[-2:]

    def blur(x_SCHW: Tensor, chosen_S: Tensor) -> Tensor:
        sigma_S = sigma_B[chosen_S].to(x_BCHW.device, non_blocking=True)
        rows_SHH = _blur_matrix(sigma_S, H)
        columns_SWW = rows_SHH if H == W else _blur_matrix(sigma_S, W)
        # The weights add up to 1 only up to rounding, so the result can leave [0, 1] by 1e-7.
        return _separable(x_SCHW, rows_SHH, columns_SWW).clamp_(0, 1)

    return _change(x_BCHW, sigma_B > 0, blur)


def _blur_matrix(sigma_B: Tensor, n: int) -> Tensor:
    # A weight depends on the distance alone: 2n − 1 exponentials an image, of which row i has n in order.
    distance_m = torch.arange(1 - n, n, device=sigma_B.device)
    weight_Bm = torch.exp(-0.5 * (distance_m / sigma_B.view(-1, 1)) ** 2)
    weight_Bnn = weight_Bm.unfold(1, n, 1).flip(1)
    return weight_Bnn / weight_Bnn.sum(-1, keepdim=True)


def solarize(x_BCHW: Tensor, generator: Generator, p: float) -> Tensor:
    """Invert the bright colours (x ≥ 0.5) of each image with probability p.

    Args:
        x_BCHW: images, float in [0, 1].
        generator: CPU generator.
        p: probability, 0 to 1.
    """
    return _solarized(x_BCHW, torch.rand(len(x_BCHW), generator=generator) < p)


def _solarized(x_BCHW: Tensor, solarized_B: Tensor) -> Tensor:
    return _change(x_BCHW, solarized_B, lambda x_SCHW, _: torch.where(x_SCHW >= 0.5, 1 - x_SCHW, x_SCHW))


def _change(x_BCHW: Tensor, chosen_B: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Apply a change to the chosen images. The choice is made on the CPU, so a GPU is not waited for.

    Args:
        x_BCHW: images; they are left as they are.
        chosen_B: bool, on the CPU.
        change: from the chosen images and their places in the batch, on the CPU, to the changed images.
    """
    chosen_S = chosen_B.nonzero()[:, 0]
    if len(chosen_S) == len(x_BCHW):
        return change(x_BCHW, chosen_S)
    if len(chosen_S) == 0:
        return x_BCHW
    place_S = chosen_S.to(x_BCHW.device, non_blocking=True)
    return x_BCHW.index_copy(0, place_S, change(x_BCHW[place_S], chosen_S))
