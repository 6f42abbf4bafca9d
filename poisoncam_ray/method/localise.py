"""Where on a removed image is the trigger? The windows of its family, slid over the image.

Masks see the trigger only where it moves the image, and among natural images it may not;
once the search has found what the trigger looks like, that is enough to point at it anywhere.

N images   C channels   S image side   h, w a window's sides   y, x its place

What does the whole trigger look like? What the images around its windows agree on.

Masks look through a window of one size, and a trigger may be larger or smaller. Laid over one another at the
trigger, poisoned images have the same pixels as far as it reaches, and differ beyond.

N images, a window each   M images of one look   C channels   S image side   h, w a window's sides
y, x  offsets to where a window is   P pairs of rows   box_N4 integer [x0, y0, x1, y1)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from poisoncam_ray.method.geometry import crop
from poisoncam_ray.method.similarity import sliding_ncc

# --- locate ---

MIN_NCC = 0.6
"""Correlation from which a window is on an image."""
SIDE = 64
"""Pixels: larger images are shrunk to it. A box is then exact to one part in 64 of the image's side."""


@torch.inference_mode()
def locate(x_NCSS: Tensor, windows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(box_N4 int64, likeness_N −1 … 1): the place that correlates best with any of the windows; its
    brightness and contrast do not matter. Among equals the first window wins, then the topmost place.

    x_NCSS: float in [0, 1]; `windows`: t_Chw of any sizes, float in [0, 1], on the same device. The box is as
    large as its window. Raises ValueError without windows, or for one that is larger than the images.
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
        like_Nyx = sliding_ncc(small_NCSS, small_1Chw[0])
        most_N, place_N = like_Nyx.flatten(1).max(dim=1)
        y_N, x_N = place_N // like_Nyx.shape[2], place_N % like_Nyx.shape[2]
        corner_N2 = (torch.stack([x_N, y_N], dim=1) / shrunk).round().long()
        corner_N2 = corner_N2.clamp(max=torch.tensor([side - w, side - h], device=x_NCSS.device))
        found_N4 = torch.cat([corner_N2, corner_N2 + torch.tensor([w, h], device=x_NCSS.device)], dim=1)
        better_N = most_N > best_N
        best_N = torch.where(better_N, most_N, best_N)
        box_N4 = torch.where(better_N[:, None], found_N4, box_N4)
    return box_N4, best_N


# --- extent ---

LEAST_IMAGES = 8
"""Of 5 to 7 whose triggers differ, chance made some agree (up to 0.22 below); of more, at most 0.03."""
AGREE = 0.4
"""Share of the images' own variance: below it, pixels at an offset agree. With 0.2 and 0.3 blended and small
triggers were cut short, with 0.5 plain surroundings were taken for a part (photographs, tuning classes)."""
LEAST_AGREED = 0.1
"""Of the agreement of a window whose pixels are all the same on all images. Triggers of one look reached 0.19
(7 px, in windows of 11) to 1.9 (16 px), those that differ from image to image at most 0.03."""
ALIGNMENTS = 2
SEEN = 0.8
"""Likeness from which a whole trigger is on an image, whatever its own window shows. Kept beside whole
triggers, windows that show it badly put boxes of their own size on one image in ten (`several`)."""


@torch.inference_mode()
def whole_triggers(x_NCSS: Tensor, box_N4: Tensor) -> list[Tensor]:
    """Pictures t_Chw of the triggers that the windows show, each as large as its trigger is.

    x_NCSS: float in [0, 1]; `box_N4`: of each image its window. Images that hold the same thing are laid over
    one another, the look that most have first: what they agree on is cut out of each that holds it whole.
    Windows of looks that fewer than LEAST_IMAGES have, or that the images do not agree on, stay as they are,
    but for those of images that hold what was cut out.
    """
    windows = [_cut(x_CSS, box_4) for x_CSS, box_4 in zip(x_NCSS, box_N4, strict=True)]
    left_M = torch.arange(len(windows), device=x_NCSS.device)
    found: list[Tensor] = []
    unknown: list[int] = []
    while len(left_M) >= LEAST_IMAGES:
        box_M4, alike_M = _aligned(x_NCSS[left_M], [windows[i] for i in left_M.tolist()])
        if int(alike_M.sum()) < LEAST_IMAGES:
            break
        same_M, box_M4 = left_M[alike_M], box_M4[alike_M]
        whole_M4 = trigger_extent(x_NCSS[same_M], box_M4)
        cut = zip(x_NCSS[same_M], whole_M4, strict=True)
        whole = [_cut(x_CSS, box_4) for x_CSS, box_4 in cut if bool(box_4.any())]
        found += whole
        if not whole:
            unknown += same_M.tolist()
        left_M = left_M[~alike_M]
    unknown += left_M.tolist()
    if found and unknown:
        seen_M = locate(x_NCSS[unknown], found)[1] >= SEEN
        unknown = [i for i, seen in zip(unknown, seen_M.tolist(), strict=True) if not seen]
    return found + [windows[i] for i in unknown]


def _aligned(x_MCSS: Tensor, windows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(box_M4, alike_M bool): where the look that most of the images have is on each, and whether it is."""
    tried = [locate(x_MCSS, [t_Chw]) for t_Chw in windows]
    how_many = [(int((like_M >= MIN_NCC).sum()), float(like_M.sum())) for _, like_M in tried]
    box_M4, like_M = tried[max(range(len(tried)), key=how_many.__getitem__)]
    for _ in range(ALIGNMENTS):
        same_M = like_M >= MIN_NCC
        if not bool(same_M.any()):
            break
        # In the mean the surroundings fade and the trigger stays.
        box_M4, like_M = locate(x_MCSS, [crop(x_MCSS[same_M], box_M4[same_M]).mean(dim=0)])
    return box_M4, like_M >= MIN_NCC


def trigger_extent(x_MCSS: Tensor, box_M4: Tensor) -> Tensor:
    """box_M4: around the windows what the images agree on, as the rectangle that gathers most of it; all zero
    for an image that does not hold it whole, and for all of them where they hardly agree.

    `box_M4`: where the same thing is on each image, boxes of one size. A trigger is followed as far as a
    window's side beyond it. Raises ValueError for fewer than two images.
    """
    side, device = x_MCSS.shape[-1], x_MCSS.device
    if len(x_MCSS) < 2:
        raise ValueError("One image agrees with itself everywhere.")
    shrunk = min(1.0, SIDE / side)
    small_MCSS = x_MCSS if shrunk == 1 else F.interpolate(x_MCSS, size=(SIDE, SIDE), mode="area")
    size_2 = ((box_M4[0, 2:] - box_M4[0, :2]) * shrunk).round().long().clamp(min=1)
    first_M2 = (box_M4[:, :2] * shrunk).round().long() - size_2
    w, h = size_2.tolist()
    agrees_yx = _agreement(small_MCSS, first_M2, 3 * h, 3 * w)
    x0, y0, x1, y1 = heaviest_rectangle(agrees_yx)
    agreed = float(agrees_yx[y0:y1, x0:x1].sum()) / (AGREE * h * w)
    if agreed < LEAST_AGREED or x1 <= w or x0 >= 2 * w or y1 <= h or y0 >= 2 * h:
        return torch.zeros_like(box_M4)
    offset_4 = torch.tensor([x0 - w, y0 - h, x1 - w, y1 - h], device=device)
    whole_M4 = box_M4[:, :2].repeat(1, 2) + (offset_4 / shrunk).round().long()
    held_M = (whole_M4 >= 0).all(dim=1) & (whole_M4 <= side).all(dim=1)
    return torch.where(held_M[:, None], whole_M4, 0)


def _agreement(x_MCSS: Tensor, first_M2: Tensor, height: int, width: int) -> Tensor:
    """agrees_yx, −AGREE … AGREE: how much less than AGREE of their variance the images have at each offset
    from their corner; −AGREE where most of them have no pixel."""
    side, device = x_MCSS.shape[-1], x_MCSS.device
    x_Mx = first_M2[:, 0, None] + torch.arange(width, device=device)
    y_My = first_M2[:, 1, None] + torch.arange(height, device=device)
    held_Myx = ((y_My >= 0) & (y_My < side))[:, :, None] & ((x_Mx >= 0) & (x_Mx < side))[:, None, :]
    m_M11 = torch.arange(len(x_MCSS), device=device)[:, None, None]
    at_Myx = (m_M11, y_My.clamp(0, side - 1)[:, :, None], x_Mx.clamp(0, side - 1)[:, None, :])
    x_MyxC = x_MCSS.permute(0, 2, 3, 1)[at_Myx]
    held_Myx1, n_yx = held_Myx[:, :, :, None], held_Myx.sum(dim=0)
    mean_yxC = (x_MyxC * held_Myx1).sum(dim=0) / n_yx[:, :, None].clamp(min=1)
    apart_yxC = ((x_MyxC - mean_yxC).square() * held_Myx1).sum(dim=0) / (n_yx[:, :, None] - 1).clamp(min=1)
    own = x_MCSS.var(dim=0).mean().clamp(min=1e-6)
    agrees_yx = (AGREE - apart_yxC.mean(dim=2) / own).clamp(min=-AGREE)
    return torch.where(n_yx >= max(2, len(x_MCSS) / 2), agrees_yx, -AGREE)


def heaviest_rectangle(a_yx: Tensor) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1), x1 and y1 outside: of all rectangles the one of greatest sum."""
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
