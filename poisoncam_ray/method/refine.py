"""A finer look at the candidate window: coarse masks say where, shifted copies of the window say exactly.

N images   O offsets   C channels   H = W image side   D feature dimensions   K clusters   M masked at once
"""

import torch
from torch import Tensor

from poisoncam_ray.method.boxes import inside
from poisoncam_ray.method.cam import Embedder, ScoreKind, mask_scores

REACH = (-2, -1, 0, 1, 2)
STEP = 0.18
"""Shifts are multiples of this share of the window: 2 px of 11. On photographs of the tuning classes 25
shifts, each shown alone and hidden, raised the share of windows with IoU ≥ 0.5 from 0.975 to 0.992 and the
mean IoU from 0.74 to 0.79."""


def forwards() -> int:
    """Masked images an image costs."""
    return 2 * len(REACH) ** 2


@torch.inference_mode()
def refine_windows(
    encoder: Embedder,
    x_NCHW: Tensor,
    box_N4: Tensor,
    own_N: Tensor,
    c_KD: Tensor,
    kind: ScoreKind,
    fill_NC: Tensor,
    batch: int,
) -> Tensor:
    """box_N4 of the same size, moved by at most two steps to where showing it alone keeps the image in its
    cluster best and hiding it moves the image most; shifts are averaged by their standardised scores.

    Arguments as in `cam.candidate_windows`.
    """
    box_NO4 = _shifted(box_N4, x_NCHW.shape[-1])
    n, o = box_NO4.shape[:2]
    total_NO = torch.zeros(n, o, device=x_NCHW.device)
    for keep in (True, False):
        s_parts = []
        for i_M in torch.arange(n * o, device=x_NCHW.device).split(batch):
            image_M = i_M // o
            shown_M1HW = inside(box_NO4.flatten(0, 1)[i_M], x_NCHW.shape[-1])[:, None].to(x_NCHW)
            m_M1HW = shown_M1HW if keep else 1 - shown_M1HW
            masked_MCHW = torch.lerp(fill_NC[image_M][:, :, None, None], x_NCHW[image_M], m_M1HW)
            f_MD = encoder.embed(masked_MCHW)
            s_parts.append(mask_scores(f_MD[:, None], own_N[image_M], c_KD, kind)[:, 0].float())
        s_NO = torch.cat(s_parts).view(n, o)
        s_NO = (s_NO - s_NO.mean(dim=1, keepdim=True)) / s_NO.std(dim=1, keepdim=True).clamp(min=1e-6)
        total_NO += -s_NO if keep else s_NO
    weight_NO1 = total_NO.softmax(dim=1)[:, :, None]
    corner_N2 = (box_NO4[:, :, :2] * weight_NO1).sum(dim=1).round().long()
    return torch.cat([corner_N2, corner_N2 + (box_N4[:, 2:] - box_N4[:, :2])], dim=1)


def _shifted(box_N4: Tensor, side: int) -> Tensor:
    """box_NO4 at every shift, pushed back inside the image."""
    window = int(box_N4[0, 2] - box_N4[0, 0])
    step = max(1, round(STEP * window))
    shift_O2 = torch.tensor([(x * step, y * step) for y in REACH for x in REACH], device=box_N4.device)
    corner_NO2 = (box_N4[:, None, :2] + shift_O2).clamp(0, side - window)
    return torch.cat([corner_NO2, corner_NO2 + window], dim=2)
