"""Boxes in images: their areas and overlaps, their place in the stored and the decoded image, random boxes;
and pixels cut out of boxes or pasted into them.

A box is [x0, y0, x1, y1) in pixels, int64: x to the right, y down, x1 and y1 outside.

N boxes, images or candidates   F flip-test images   M windows   C channels   x images   t windows
H × W or S × S an image   h × w or w × w a window   L one side of an image   l one side of a window
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Keeps the low 32 bits of an int64.
_LOW_32 = 0xFFFFFFFF


def iou(a_N4: Tensor, b_N4: Tensor) -> Tensor:
    """The intersection over union of each pair, iou_N in 0 … 1; 0 for two empty boxes."""
    both_N = intersection(a_N4, b_N4)
    return both_N / (area(a_N4) + area(b_N4) - both_N).clamp(min=1)


def coverage(a_N4: Tensor, b_N4: Tensor) -> Tensor:
    """The share of each box b that its box a covers, coverage_N in 0 … 1; 0 for an empty b."""
    return intersection(a_N4, b_N4) / area(b_N4).clamp(min=1)


def intersection(a_N4: Tensor, b_N4: Tensor) -> Tensor:
    """The area that lies in both boxes of each pair, area_N in pixels."""
    return area(
        torch.cat([torch.maximum(a_N4[:, :2], b_N4[:, :2]), torch.minimum(a_N4[:, 2:], b_N4[:, 2:])], 1)
    )


def area(box_N4: Tensor) -> Tensor:
    """The area of each box in pixels, area_N; 0 for an empty box."""
    return (box_N4[:, 2:] - box_N4[:, :2]).clamp(min=0).prod(dim=1)


def map_box(box_N4: Tensor, width_N: Tensor, height_N: Tensor, image_size: int) -> Tensor:
    """Map boxes from the stored image to the square that the encoder sees.

    The decoder squeezes the whole image into the square, whatever its aspect, so each axis has its own scale.

    Args:
        box_N4: boxes in pixels of the stored images.
        width_N: widths of the stored images in pixels.
        height_N: their heights.
        image_size: side of the square in pixels.

    Returns:
        box_N4, int64, in 0 … image_size, corners rounded to whole pixels.
    """
    size_N4 = torch.stack([width_N, height_N], dim=1).double().repeat(1, 2)
    return (box_N4 * (image_size / size_N4)).clamp(0, image_size).round().long()


def unmap_box(box_N4: Tensor, width_N: Tensor, height_N: Tensor, image_size: int) -> Tensor:
    """Map boxes from the encoder's square back to the stored image: the inverse of map_box.

    Args:
        box_N4: boxes in pixels of the square.
        width_N: widths of the stored images in pixels.
        height_N: their heights.
        image_size: side of the square in pixels.

    Returns:
        box_N4, int64, rounded to whole pixels inside the image.
    """
    size_N4 = torch.stack([width_N, height_N], dim=1).double().repeat(1, 2)
    stored_N4 = (box_N4 * (size_N4 / image_size)).round()
    return torch.minimum(stored_N4.clamp(min=0), size_N4).long()


def about_centres(box_N4: Tensor, window: int, side: int) -> Tensor:
    """Make squares with the centres of the boxes, pushed back inside the image.

    Args:
        box_N4: boxes.
        window: side of the squares in pixels.
        side: side of the square image in pixels.

    Returns:
        box_N4, int64.

    Raises:
        ValueError: the squares do not fit into the image.
    """
    if not 1 <= window <= side:
        raise ValueError(f"a window of {window} pixels does not fit into {side} pixels")
    corner_N2 = ((box_N4[:, :2] + box_N4[:, 2:] - window) // 2).clamp(0, side - window)
    return torch.cat([corner_N2, corner_N2 + window], dim=1)


def inside(box_N4: Tensor, side: int) -> Tensor:
    """Mark the pixels inside each box: m_NHW, bool, for square images of `side` pixels."""
    at_S = torch.arange(side, device=box_N4.device)
    across_NW = (at_S >= box_N4[:, 0, None]) & (at_S < box_N4[:, 2, None])
    down_NH = (at_S >= box_N4[:, 1, None]) & (at_S < box_N4[:, 3, None])
    return down_NH[:, :, None] & across_NW[:, None, :]


def random_boxes(
    n: int,
    size_w: int,
    size_h: int,
    image_w: int,
    image_h: int,
    region: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Draw boxes of one size, uniform over the whole-pixel places inside a region.

    Args:
        n: boxes.
        size_w: width of the boxes in pixels.
        size_h: their height.
        image_w: width of the image in pixels.
        image_h: its height.
        region: (lo, hi), shares of both sides: (0.25, 0.75) is the middle half, (0, 1) the whole image.
        generator: CPU generator.

    Returns:
        box_N4, int64.

    Raises:
        ValueError: the box does not fit into the region.
    """
    lo, hi = region
    corners = []
    for size, side in ((size_w, image_w), (size_h, image_h)):
        first, last = math.ceil(lo * side), math.floor(hi * side) - size
        if not (0 <= lo < hi <= 1 and size >= 1 and first <= last):
            raise ValueError(f"a box of {size} pixels does not fit into {lo:g} … {hi:g} of {side} pixels")
        corners.append(torch.randint(first, last + 1, (n,), generator=generator))
    x_N, y_N = corners
    return torch.stack([x_N, y_N, x_N + size_w, y_N + size_h], dim=1)


def random_places(
    seeds_N: Tensor, index_F: Tensor, height: int, width: int, image_height: int, image_width: int
) -> Tensor:
    """Draw a box inside the image for every pair of a candidate and a flip-test image.

    Each box is a pure function of the candidate's seed and the image's number, so batches do not change it.

    Args:
        seeds_N: int64, one for each candidate.
        index_F: int64, the numbers of the flip-test images.
        height: of the boxes in pixels.
        width: of the boxes in pixels.
        image_height: in pixels.
        image_width: in pixels.

    Returns:
        box_NF4, int64, uniform over the whole-pixel places.

    Raises:
        ValueError: the window is larger than the image.
    """
    if height > image_height or width > image_width:
        raise ValueError(f"A {height}×{width} window does not fit a {image_height}×{image_width} image.")
    u_NF = _mix(_mix(seeds_N.to(torch.int64))[:, None] ^ _mix(index_F.to(torch.int64) + 0x51ED27)[None, :])
    x0_NF = (_mix(u_NF + 1) * (image_width - width + 1)) >> 32
    y0_NF = (_mix(u_NF + 2) * (image_height - height + 1)) >> 32
    return torch.stack([x0_NF, y0_NF, x0_NF + width, y0_NF + height], dim=-1)


def _mix(value: Tensor) -> Tensor:
    """A 32-bit avalanche hash (lowbias32, C. Wellons) of int64 tensors: uniform in [0, 2³²)."""
    value = (value ^ (value >> 32)) & _LOW_32
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & _LOW_32
    value = ((value ^ (value >> 15)) * 0x846CA68B) & _LOW_32
    return value ^ (value >> 16)


def crop(x_NCHW: Tensor, box_N4: Tensor) -> Tensor:
    """Cut one window out of every image.

    Args:
        x_NCHW: images, any type.
        box_N4: the windows, all of one size.

    Returns:
        t_NChw.

    Raises:
        ValueError: there is no box, the boxes differ in size, or one leaves its image.
    """
    height, width = _size_of(box_N4, x_NCHW.shape[-2], x_NCHW.shape[-1])
    y_Nh, x_Nw = _pixels(box_N4, height, width)
    n_N = torch.arange(len(x_NCHW), device=x_NCHW.device)
    # Index tensors on both sides of the slice over channels move the channels to the end: N, h, w, C.
    t_NhwC = x_NCHW[n_N[:, None, None], :, y_Nh[:, :, None], x_Nw[:, None, :]]
    return t_NhwC.permute(0, 3, 1, 2).contiguous()


def paste(x_NCHW: Tensor, t_NChw: Tensor, box_N4: Tensor) -> Tensor:
    """Paste one window into a copy of every image.

    Args:
        x_NCHW: images, any type.
        t_NChw: windows, of the same type.
        box_N4: where, all of the windows' size.

    Returns:
        x_NCHW: the copies; pixels outside the box keep their values.

    Raises:
        ValueError: there is no box, or the boxes differ in size, leave their image or do not fit the windows.
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


def _size_of(box_N4: Tensor, image_height: int, image_width: int) -> tuple[int, int]:
    """The height and width that all boxes have; ValueError when they differ or one leaves its image."""
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
    """The rows y_Nh and the columns x_Nw of each box."""
    y_Nh = box_N4[:, 1, None] + torch.arange(height, device=box_N4.device)
    x_Nw = box_N4[:, 0, None] + torch.arange(width, device=box_N4.device)
    return y_Nh, x_Nw


def paste_resized(x_NCHW: Tensor, t_NChw: Tensor, size_N2: Tensor, centre_N2: Tensor) -> Tensor:
    """Resize one window and paste it into a copy of every image, at fractions of pixels.

    The resize is bilinear and antialiased. A pixel that the window covers in part is blended in that
    proportion; a pixel that it does not touch keeps its value exactly.

    Args:
        x_NCHW: images, float.
        t_NChw: windows, float.
        size_N2: float, the width and height that each window gets, in pixels, above 0.
        centre_N2: float, (x, y) of each centre in pixels; the centre of the top left pixel is (0.5, 0.5).

    Returns:
        x_NCHW.
    """
    down_NHh, cover_NH = _resize_along(t_NChw.shape[-2], x_NCHW.shape[-2], size_N2[:, 1], centre_N2[:, 1])
    across_NWw, cover_NW = _resize_along(t_NChw.shape[-1], x_NCHW.shape[-1], size_N2[:, 0], centre_N2[:, 0])
    t_NCHW = down_NHh[:, None] @ t_NChw @ across_NWw[:, None].transpose(-1, -2)
    alpha_N1HW = (cover_NH[:, :, None] * cover_NW[:, None, :])[:, None]
    return x_NCHW * (1 - alpha_N1HW) + t_NCHW * alpha_N1HW


def _resize_along(length: int, image_length: int, size_N: Tensor, centre_N: Tensor) -> tuple[Tensor, Tensor]:
    """Resize along one axis.

    Returns:
        weight_NLl: the weights of the window's pixels in every image pixel.
        cover_NL: the share of every image pixel that the window covers.
    """
    device = size_N.device
    start_N1 = (centre_N - size_N / 2)[:, None]
    edge_L = torch.arange(image_length, device=device, dtype=size_N.dtype)
    cover_NL = (
        torch.minimum(edge_L + 1, start_N1 + size_N[:, None]) - torch.maximum(edge_L, start_N1)
    ).clamp(0, 1)
    scale_N1 = length / size_N[:, None]
    # The centre of a partly covered border pixel can lie outside the window: it takes the outermost pixel.
    at_NL = ((edge_L + 0.5 - start_N1) * scale_N1).clamp(0.5, length - 0.5)
    pixel_l = torch.arange(length, device=device, dtype=size_N.dtype) + 0.5
    # The triangle filter widens where the window shrinks, as in any antialiased bilinear resize.
    reach_N11 = scale_N1.clamp(min=1)[:, :, None]
    weight_NLl = (1 - (pixel_l - at_NL[:, :, None]).abs() / reach_N11).clamp(min=0)
    return weight_NLl / weight_NLl.sum(-1, keepdim=True), cover_NL


def same_size(windows: Sequence[Tensor]) -> Tensor:
    """Resize windows to the greatest height and the greatest width among them.

    Args:
        windows: t_Chw of any sizes, float in [0, 1].

    Returns:
        t_MChw.
    """
    size = (max(t.shape[-2] for t in windows), max(t.shape[-1] for t in windows))
    # The bilinear resize does not change windows that have the size already.
    return torch.cat([F.interpolate(t[None], size=size, mode="bilinear") for t in windows])
