"""Cuts windows out of images and pastes them into others.

x    images, uint8 or float          N  images or candidates, one window each
t    windows: candidate triggers     F  flip-test images
box  [x0, y0, x1, y1) in pixels      C, H, W  channels, height, width
                                     h, w     a window's height, width (square: ww)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_LOW_32 = 0xFFFFFFFF


def crop(x_NCHW: Tensor, box_N4: Tensor) -> Tensor:
    """Cut one window out of every image.

    box_N4: int64 [x0, y0, x1, y1) in pixels, all of one size. Returns t_NCww (t_NChw for oblong boxes).
    Raises ValueError when the boxes differ in size or one leaves its image.
    """
    height, width = _size_of(box_N4, x_NCHW.shape[-2], x_NCHW.shape[-1])
    y_Nh, x_Nw = _pixels(box_N4, height, width)
    n_N = torch.arange(len(x_NCHW), device=x_NCHW.device)
    # An index on either side of the full slice over channels moves that slice to the end: N, h, w, C.
    t_NhwC = x_NCHW[n_N[:, None, None], :, y_Nh[:, :, None], x_Nw[:, None, :]]
    return t_NhwC.permute(0, 3, 1, 2).contiguous()


def same_size(windows: Sequence[Tensor]) -> Tensor:
    """t_MCww: windows of one shape or several, float in [0, 1], brought to the largest height and width."""
    size = (max(t.shape[-2] for t in windows), max(t.shape[-1] for t in windows))
    # Bilinear leaves those that have the size already as they are.
    return torch.cat([F.interpolate(t[None], size=size, mode="bilinear") for t in windows])


def paste(x_NCHW: Tensor, t_NChw: Tensor, box_N4: Tensor) -> Tensor:
    """Copies of the images with window n at box n; every other pixel is untouched.

    Raises ValueError when the boxes differ in size, leave their image, or do not fit the windows.
    """
    height, width = _size_of(box_N4, x_NCHW.shape[-2], x_NCHW.shape[-1])
    if tuple(t_NChw.shape[-2:]) != (height, width):
        raise ValueError(
            f"Windows of {tuple(t_NChw.shape[-2:])} pixels do not fit boxes of {(height, width)} pixels."
        )
    y_Nh, x_Nw = _pixels(box_N4, height, width)
    n_N = torch.arange(len(x_NCHW), device=x_NCHW.device)
    out_NCHW = x_NCHW.clone()
    out_NCHW[n_N[:, None, None], :, y_Nh[:, :, None], x_Nw[:, None, :]] = t_NChw.permute(0, 2, 3, 1)
    return out_NCHW


def random_places(
    seeds_N: Tensor, index_F: Tensor, height: int, width: int, image_height: int, image_width: int
) -> Tensor:
    """Uniform boxes of one size wholly inside an image, box_NF4 (int64): a pure function of (seed, index).

    So any split of candidates or images gives the same places. ValueError for a window larger than the image.
    """
    if height > image_height or width > image_width:
        raise ValueError(f"A {height}×{width} window does not fit a {image_height}×{image_width} image.")
    u_NF = _mix(_mix(seeds_N.to(torch.int64))[:, None] ^ _mix(index_F.to(torch.int64) + 0x51ED27)[None, :])
    x0_NF = (_mix(u_NF + 1) * (image_width - width + 1)) >> 32
    y0_NF = (_mix(u_NF + 2) * (image_height - height + 1)) >> 32
    return torch.stack([x0_NF, y0_NF, x0_NF + width, y0_NF + height], dim=-1)


def paste_resized(x_NCHW: Tensor, t_NChw: Tensor, size_N: Tensor, centre_N2: Tensor) -> Tensor:
    """Copies of the images with window n resized to size_N[n] pixels square around centre_N2[n] (step 6).

    x_NCHW, t_NChw: float. size_N: float, in pixels, any value above 0; centre_N2: float (x, y) in pixels,
    the centre of the top-left pixel being (0.5, 0.5). The resize is bilinear and antialiased; a pixel the
    paste covers in part is blended in that proportion, and one it does not touch keeps its value exactly.
    """
    down_NHh, cover_NH = _resize_along(t_NChw.shape[-2], x_NCHW.shape[-2], size_N, centre_N2[:, 1])
    across_NWw, cover_NW = _resize_along(t_NChw.shape[-1], x_NCHW.shape[-1], size_N, centre_N2[:, 0])
    t_NCHW = down_NHh[:, None] @ t_NChw @ across_NWw[:, None].transpose(-1, -2)
    alpha_N1HW = (cover_NH[:, :, None] * cover_NW[:, None, :])[:, None]
    return x_NCHW * (1 - alpha_N1HW) + t_NCHW * alpha_N1HW


def _resize_along(length: int, image_length: int, size_N: Tensor, centre_N: Tensor) -> tuple[Tensor, Tensor]:
    """One axis of the resize: weights of the window's pixels for every image pixel, and the pixel's cover."""
    device = size_N.device
    start_N1 = (centre_N - size_N / 2)[:, None]
    edge_L = torch.arange(image_length, device=device, dtype=size_N.dtype)
    cover_NL = (
        torch.minimum(edge_L + 1, start_N1 + size_N[:, None]) - torch.maximum(edge_L, start_N1)
    ).clamp(0, 1)
    scale_N1 = length / size_N[:, None]
    # Partly covered border pixels have centres outside the window: they repeat its outermost pixels.
    at_NL = ((edge_L + 0.5 - start_N1) * scale_N1).clamp(0.5, length - 0.5)
    pixel_l = torch.arange(length, device=device, dtype=size_N.dtype) + 0.5
    # The triangle widens with the reduction, as in any antialiased bilinear resize.
    reach_N11 = scale_N1.clamp(min=1)[:, :, None]
    weight_NLl = (1 - (pixel_l - at_NL[:, :, None]).abs() / reach_N11).clamp(min=0)
    return weight_NLl / weight_NLl.sum(-1, keepdim=True), cover_NL


def _size_of(box_N4: Tensor, image_height: int, image_width: int) -> tuple[int, int]:
    if len(box_N4) == 0:
        raise ValueError("There is no box to cut or paste.")
    size_N2 = box_N4[:, 2:] - box_N4[:, :2]
    width, height = (int(side) for side in size_N2[0])
    if not bool((size_N2 == size_N2[0]).all()) or width < 1 or height < 1:
        raise ValueError("All boxes of one call must have one size of at least a pixel.")
    limit_2 = torch.tensor([image_width, image_height], device=box_N4.device)
    if bool((box_N4[:, :2] < 0).any()) or bool((box_N4[:, 2:] > limit_2).any()):
        raise ValueError(f"A box leaves its {image_height}×{image_width} image.")
    return height, width


def _pixels(box_N4: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    y_Nh = box_N4[:, 1, None] + torch.arange(height, device=box_N4.device)
    x_Nw = box_N4[:, 0, None] + torch.arange(width, device=box_N4.device)
    return y_Nh, x_Nw


def _mix(value: Tensor) -> Tensor:
    """A 32-bit avalanche hash (lowbias32, C. Wellons) of int64 tensors: uniform in [0, 2³²)."""
    value = (value ^ (value >> 32)) & _LOW_32
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & _LOW_32
    value = ((value ^ (value >> 15)) * 0x846CA68B) & _LOW_32
    return value ^ (value >> 16)
