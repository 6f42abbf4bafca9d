"""Where the trigger is on a flagged image, and how large it is.

`locate` slides the windows of a trigger family over an image and takes the place of highest normalised
cross-correlation. Unlike masks, this also works where the trigger does not move the image out of its cluster.
`whole_triggers` makes the windows to slide. The search's windows all have one size, but triggers are smaller
or larger: images with the same trigger are aligned at their windows, and the trigger is the rectangle in
which their pixels agree (`trigger_extent`).

N images   M images that show the same trigger   C channels   S image side   h × w a window   P pairs of rows
y, x a place in an image, or an offset from a corner   box integer [x0, y0, x1, y1) in pixels
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from poisoncam_ray.method.geometry import crop
from poisoncam_ray.method.similarity import sliding_ncc

# Pixels: larger images are shrunk to this side, to bound the cost; a box is exact to a 64th of the side.
SIDE = 64
# Correlation from which an image shows a window: lower accepts other things, higher misses resized triggers.
MIN_NCC = 0.6
# Correlation from which an image shows a whole trigger, so that its own window is not used beside it.
MIN_TRIGGER_NCC = 0.8
# Fewer images with different content can agree somewhere by chance.
MIN_IMAGES = 8
# Pixels at an offset agree if their variance is below this share of the images' own variance.
MAX_VARIANCE = 0.4
# Least agreement inside the rectangle, in units of the greatest agreement that one window can have.
MIN_AGREEMENT = 0.1
# Rounds of aligning the images by the mean of their windows; the second starts from a sharper mean.
ALIGNMENT_ROUNDS = 2


@torch.inference_mode()
def locate(x_NCSS: Tensor, windows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Find the place of each image that correlates best with any of the windows.

    Brightness and contrast do not matter.

    Args:
        x_NCSS: images, float in [0, 1].
        windows: t_Chw of any sizes up to S, float in [0, 1], on the images' device.

    Returns:
        box_N4, int64: the place, of the window's size. Among equals the first window and its topmost place.
        ncc_N: the correlation there, −1 … 1.

    Raises:
        ValueError: there is no window, or one is larger than the images.
    """
    side, n = x_NCSS.shape[-1], len(x_NCSS)
    if not windows:
        raise ValueError("There is no window to look for.")
    shrunk = min(1.0, SIDE / side)
    small_NCSS = x_NCSS if shrunk == 1 else F.interpolate(x_NCSS, size=(SIDE, SIDE), mode="area")
    best_N = torch.full((n,), -torch.inf, device=x_NCSS.device)
    box_N4 = torch.zeros(n, 4, dtype=torch.int64, device=x_NCSS.device)
    for t_Chw in windows:
        h, w = t_Chw.shape[-2:]
        if h > side or w > side:
            raise ValueError(f"A window of {h}×{w} pixels does not fit into {side} pixels.")
        size = (max(1, round(h * shrunk)), max(1, round(w * shrunk)))
        small_1Chw = F.interpolate(t_Chw[None], size=size, mode="area")
        ncc_Nyx = sliding_ncc(small_NCSS, small_1Chw[0])
        ncc_N, place_N = ncc_Nyx.flatten(1).max(dim=1)
        y_N, x_N = place_N // ncc_Nyx.shape[2], place_N % ncc_Nyx.shape[2]
        corner_N2 = (torch.stack([x_N, y_N], dim=1) / shrunk).round().long()
        corner_N2 = corner_N2.clamp(max=torch.tensor([side - w, side - h], device=x_NCSS.device))
        found_N4 = torch.cat([corner_N2, corner_N2 + torch.tensor([w, h], device=x_NCSS.device)], dim=1)
        better_N = ncc_N > best_N
        best_N = torch.where(better_N, ncc_N, best_N)
        box_N4 = torch.where(better_N[:, None], found_N4, box_N4)
    return box_N4, best_N


@torch.inference_mode()
def whole_triggers(x_NCSS: Tensor, box_N4: Tensor) -> tuple[list[Tensor], list[int]]:
    """Turn windows of one size into pictures of the triggers, each as large as its trigger.

    Repeatedly, the images that show the most common window are aligned, their trigger's extent is measured,
    and the whole trigger is cut out of each image that holds it. A window stays as it is if fewer than
    MIN_IMAGES images show it, or if their pixels do not agree, unless one of the whole triggers is on its
    image.

    Args:
        x_NCSS: images, float in [0, 1].
        box_N4: the window of each image, all of one size.

    Returns:
        Pictures t_Chw, float in [0, 1], for `locate`: the whole triggers, then the windows that stay. And for
        each of them the number of the image that it is cut from.
    """
    windows = [_cut(x_CSS, box_4) for x_CSS, box_4 in zip(x_NCSS, box_N4, strict=True)]
    left_M = torch.arange(len(windows), device=x_NCSS.device)
    found: list[Tensor] = []
    cut_from: list[int] = []
    unmeasured: list[int] = []
    while len(left_M) >= MIN_IMAGES:
        box_M4, shows_M = _aligned(x_NCSS[left_M], [windows[i] for i in left_M.tolist()])
        if int(shows_M.sum()) < MIN_IMAGES:
            break
        same_M, box_M4 = left_M[shows_M], box_M4[shows_M]
        whole_M4 = trigger_extent(x_NCSS[same_M], box_M4)
        held = [(i, box_4) for i, box_4 in zip(same_M.tolist(), whole_M4, strict=True) if bool(box_4.any())]
        found += [_cut(x_NCSS[i], box_4) for i, box_4 in held]
        cut_from += [i for i, _ in held]
        if not held:
            unmeasured += same_M.tolist()
        left_M = left_M[~shows_M]
    unmeasured += left_M.tolist()
    if found and unmeasured:
        shows_M = locate(x_NCSS[unmeasured], found)[1] >= MIN_TRIGGER_NCC
        unmeasured = [i for i, shows in zip(unmeasured, shows_M.tolist(), strict=True) if not shows]
    return found + [windows[i] for i in unmeasured], cut_from + unmeasured


def stretched(t_Chw: Tensor, cut_from: float, onto: float, side: int) -> Tensor:
    """A picture as it looks on an image of another aspect: both are squeezed into the same square.

    The trigger is taken to be as large in units of the shorter side.

    Args:
        t_Chw: the picture, float in [0, 1].
        cut_from: width over height of the image that it was cut from.
        onto: width over height of the image that it is looked for on.
        side: of the square, in pixels; the picture becomes no larger.

    Returns:
        The picture; itself where it keeps its size.
    """
    h, w = t_Chw.shape[-2:]
    across = min(1, 1 / onto) / min(1, 1 / cut_from)
    down = min(1, onto) / min(1, cut_from)
    size = tuple(min(side, max(2, round(length * by))) for length, by in ((h, down), (w, across)))
    if size == (h, w):
        return t_Chw
    return F.interpolate(t_Chw[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def _aligned(x_MCSS: Tensor, windows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Find the window that most of the images show, and where it is on each.

    Returns:
        box_M4: the best place on each image.
        shows_M, bool: whether the image shows it there.
    """
    tried = [locate(x_MCSS, [t_Chw]) for t_Chw in windows]
    support = [(int((ncc_M >= MIN_NCC).sum()), float(ncc_M.sum())) for _, ncc_M in tried]
    box_M4, ncc_M = tried[max(range(len(tried)), key=support.__getitem__)]
    for _ in range(ALIGNMENT_ROUNDS):
        same_M = ncc_M >= MIN_NCC
        if not bool(same_M.any()):
            break
        # In the mean the trigger stays and the surroundings average out.
        box_M4, ncc_M = locate(x_MCSS, [crop(x_MCSS[same_M], box_M4[same_M]).mean(dim=0)])
    return box_M4, ncc_M >= MIN_NCC


def trigger_extent(x_MCSS: Tensor, box_M4: Tensor) -> Tensor:
    """Measure how far the images agree around their windows.

    The trigger is the rectangle with the greatest sum of agreement, at most one window's side beyond the
    window.

    Args:
        x_MCSS: images that show the same thing, float in [0, 1], at least two.
        box_M4: where it is on each image, boxes of one size.

    Returns:
        box_M4, int64: the trigger on each image. All zero for an image that does not hold it whole, and for
        all images if they hardly agree, or agree outside the windows only.

    Raises:
        ValueError: there are fewer than two images.
    """
    side, device = x_MCSS.shape[-1], x_MCSS.device
    if len(x_MCSS) < 2:
        raise ValueError("One image agrees with itself everywhere.")
    shrunk = min(1.0, SIDE / side)
    small_MCSS = x_MCSS if shrunk == 1 else F.interpolate(x_MCSS, size=(SIDE, SIDE), mode="area")
    size_2 = ((box_M4[0, 2:] - box_M4[0, :2]) * shrunk).round().long().clamp(min=1)
    first_M2 = (box_M4[:, :2] * shrunk).round().long() - size_2
    w, h = size_2.tolist()
    agreement_yx = _agreement(small_MCSS, first_M2, 3 * h, 3 * w)
    x0, y0, x1, y1 = heaviest_rectangle(agreement_yx)
    agreed = float(agreement_yx[y0:y1, x0:x1].sum()) / (MAX_VARIANCE * h * w)
    if agreed < MIN_AGREEMENT or x1 <= w or x0 >= 2 * w or y1 <= h or y0 >= 2 * h:
        return torch.zeros_like(box_M4)
    offset_4 = torch.tensor([x0 - w, y0 - h, x1 - w, y1 - h], device=device)
    whole_M4 = box_M4[:, :2].repeat(1, 2) + (offset_4 / shrunk).round().long()
    held_M = (whole_M4 >= 0).all(dim=1) & (whole_M4 <= side).all(dim=1)
    return torch.where(held_M[:, None], whole_M4, 0)


def _agreement(x_MCSS: Tensor, first_M2: Tensor, height: int, width: int) -> Tensor:
    """MAX_VARIANCE minus the variance of the aligned images at each offset, as a share of their own variance.

    Args:
        x_MCSS: images.
        first_M2: the corner (x, y) of each image from which offsets count; it may lie outside.
        height: offsets down.
        width: offsets to the right.

    Returns:
        agreement_yx, −MAX_VARIANCE … MAX_VARIANCE; the least value where most images have no pixel.
    """
    side, device = x_MCSS.shape[-1], x_MCSS.device
    x_Mx = first_M2[:, 0, None] + torch.arange(width, device=device)
    y_My = first_M2[:, 1, None] + torch.arange(height, device=device)
    held_Myx = ((y_My >= 0) & (y_My < side))[:, :, None] & ((x_Mx >= 0) & (x_Mx < side))[:, None, :]
    m_M11 = torch.arange(len(x_MCSS), device=device)[:, None, None]
    at_Myx = (m_M11, y_My.clamp(0, side - 1)[:, :, None], x_Mx.clamp(0, side - 1)[:, None, :])
    x_MyxC = x_MCSS.permute(0, 2, 3, 1)[at_Myx]
    held_Myx1, n_yx = held_Myx[:, :, :, None], held_Myx.sum(dim=0)
    mean_yxC = (x_MyxC * held_Myx1).sum(dim=0) / n_yx[:, :, None].clamp(min=1)
    variance_yxC = ((x_MyxC - mean_yxC).square() * held_Myx1).sum(dim=0) / (n_yx[:, :, None] - 1).clamp(min=1)
    own = x_MCSS.var(dim=0).mean().clamp(min=1e-6)
    agreement_yx = (MAX_VARIANCE - variance_yxC.mean(dim=2) / own).clamp(min=-MAX_VARIANCE)
    return torch.where(n_yx >= max(2, len(x_MCSS) / 2), agreement_yx, -MAX_VARIANCE)


def heaviest_rectangle(a_yx: Tensor) -> tuple[int, int, int, int]:
    """Find the rectangle of greatest sum among all rectangles.

    For every pair of rows it is the maximum subarray of the column sums between them (Kadane's algorithm).

    Args:
        a_yx: values, some of them negative.

    Returns:
        x0, y0, x1, y1 with x1 and y1 outside.
    """
    height, width = a_yx.shape
    above_yx = F.pad(a_yx.double().cumsum(dim=0), (0, 0, 1, 0))
    y0_P, y1_P = torch.triu_indices(height + 1, height + 1, offset=1, device=a_yx.device)
    left_Px = F.pad((above_yx[y1_P] - above_yx[y0_P]).cumsum(dim=1), (1, 0))
    lowest_Px, start_Px = left_Px[:, :-1].cummin(dim=1)
    sum_Px = left_Px[:, 1:] - lowest_Px
    pair, x = divmod(int(sum_Px.argmax()), width)
    return int(start_Px[pair, x]), int(y0_P[pair]), x + 1, int(y1_P[pair])


def _cut(x_CSS: Tensor, box_4: Tensor) -> Tensor:
    x0, y0, x1, y1 = box_4.tolist()
    return x_CSS[:, y0:y1, x0:x1]
