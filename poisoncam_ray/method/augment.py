"""The two random views of self-supervised pretraining, for a whole batch of images at once.

Their crops are cut out while images are decoded (method/crops.py); colours and blur are drawn here. Images of
one size are cropped here, too, for the poison classifier.

Every image has its own random parameters. Everything linear is a small matrix: a crop without rotation is
separable, so crop, resize and flip are one matrix for the rows and one for the columns; blur likewise; all
colour jitter is one affine map of RGB. Random numbers are drawn from the CPU generator passed in and moved to
the images' device.

B images   C = 3 colours, float in [0, 1]   H × W pixels in   h × w pixels out   T tries at a crop size
"""

import math
from dataclasses import dataclass

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


def two_views(x_B2CHW: Tensor, generator: Generator, recipe: Recipe = ASYMMETRIC) -> tuple[Tensor, Tensor]:
    """Draw the two random views of every image from its two crops.

    Args:
        x_B2CHW: the crops, float in [0, 1].
        generator: CPU generator of all random numbers.
        recipe: how the first and the second view are drawn.

    Returns:
        v1_BCHW and v2_BCHW, float in [0, 1].
    """
    v1_BCHW, v2_BCHW = (_view(x_B2CHW[:, i], generator, how) for i, how in enumerate(recipe))
    return v1_BCHW, v2_BCHW


def _view(x_BCHW: Tensor, generator: Generator, how: View) -> Tensor:
    v_BCHW = color_jitter(x_BCHW, generator, *how.jitter, p=0.8, gray_p=0.2)
    # The blur scales with the image: 0.1 to 2 px at 224 px are 0.01 to 0.3 px at 32 px.
    scale = v_BCHW.shape[-1] / BLUR_AT
    v_BCHW = gaussian_blur(v_BCHW, generator, (BLUR_SIGMA[0] * scale, BLUR_SIGMA[1] * scale), how.blur_p)
    return solarize(v_BCHW, generator, how.solarize_p)


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
    B = len(x_BCHW)
    factor_4B = torch.rand(4, B, generator=generator) * 2 - 1
    factor_4B *= (torch.rand(B, generator=generator) < p) * torch.tensor(
        [[brightness], [contrast], [saturation], [hue]]
    )
    b_B, c_B, s_B = 1 + factor_4B[:3]
    s_B = torch.where(torch.rand(B, generator=generator) < gray_p, 0.0, s_B)
    cos_B, sin_B = torch.cos(2 * math.pi * factor_4B[3]), torch.sin(2 * math.pi * factor_4B[3])
    zero_B, one_B = torch.zeros(B), torch.ones(B)
    jitter_B33 = torch.stack(
        [one_B, zero_B, zero_B, zero_B, s_B * cos_B, -s_B * sin_B, zero_B, s_B * sin_B, s_B * cos_B], dim=1
    ).view(B, 3, 3)
    matrix_B33 = ((b_B * c_B).view(B, 1, 1) * (FROM_YIQ @ jitter_B33 @ TO_YIQ)).to(x_BCHW)
    mean_luma_B = x_BCHW.mean((2, 3)) @ TO_YIQ[0].to(x_BCHW)
    offset_B11 = ((b_B * (1 - c_B)).to(x_BCHW) * mean_luma_B).view(B, 1, 1)
    return torch.baddbmm(offset_B11, matrix_B33, x_BCHW.flatten(2)).clamp_(0, 1).view_as(x_BCHW)


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
    B, _, H, W = x_BCHW.shape
    sigma_B = torch.empty(B).uniform_(*sigma, generator=generator)
    chosen_B = torch.rand(B, generator=generator) < p
    # A standard deviation of 0.01 px is no blur: the neighbours' weights are zero in float32.
    sigma_B = torch.where(chosen_B, sigma_B, 0.01)
    # The weights add up to 1 only up to rounding, so the result can leave [0, 1] by 1e-7.
    return _separable(x_BCHW, _blur_matrix(sigma_B, H), _blur_matrix(sigma_B, W)).clamp_(0, 1)


def _blur_matrix(sigma_B: Tensor, n: int) -> Tensor:
    distance_nn = (torch.arange(n)[:, None] - torch.arange(n)).float()
    weight_Bnn = torch.exp(-0.5 * (distance_nn / sigma_B.view(-1, 1, 1)) ** 2)
    return weight_Bnn / weight_Bnn.sum(-1, keepdim=True)


def solarize(x_BCHW: Tensor, generator: Generator, p: float) -> Tensor:
    """Invert the bright colours (x ≥ 0.5) of each image with probability p.

    Args:
        x_BCHW: images, float in [0, 1].
        generator: CPU generator.
        p: probability, 0 to 1.
    """
    chosen_B111 = (torch.rand(len(x_BCHW), generator=generator) < p).view(-1, 1, 1, 1).to(x_BCHW.device)
    return torch.where(chosen_B111 & (x_BCHW >= 0.5), 1 - x_BCHW, x_BCHW)
