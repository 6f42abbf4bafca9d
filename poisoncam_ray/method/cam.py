"""Cluster Activation Masking (arXiv 2312.07955): find the candidate window of each image.

Masked copies of an image show which of its pixels hold it in its own cluster. The masks' scores give a heat
map, and the window of greatest sum in it is the candidate trigger. `refine_windows` then moves the window by
a few pixels, with masks of the window's own shape. `gradcam_windows` is the peer method's way to a window,
kept for comparison.

N images   B masks, or images in a batch   C channels   H = W image side   D feature dimensions   K clusters
A masked images   M of them through the encoder at once   O shifts of a window   Y × X places of a window
E channels of the encoder's last map, h × w cells   own_N the cluster of each unmasked image
m_BHW masks, 1 visible … 0 hidden   s_NB scores of masked images   a_NHW heat maps
box_N4 integer [x0, y0, x1, y1) in pixels
"""

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from poisoncam_ray.method.clusters import assign, distances
from poisoncam_ray.method.geometry import inside
from poisoncam_ray.method.masked import Embedder, Hiding, Masked, embed_masked

ScoreKind = Literal["hard", "margin", "distance"]

# Shifts of a refined window, in steps, along each axis.
REFINE_SHIFTS = (-2, -1, 0, 1, 2)
N_SHIFTS = len(REFINE_SHIFTS) ** 2
# The shifts that are hidden where none is shown: every second one, like the fields of one colour on a
# chessboard, from the middle outwards; then the others.
EVENLY = sorted(
    range(N_SHIFTS),
    key=lambda i: (sum(divmod(i, 5)) % 2, sum((at - 2) ** 2 for at in divmod(i, 5)), i),
)
# A step as a share of the window's side: finer than the masks' cells, coarse enough to change a feature.
REFINE_STEP = 0.18


class MappedEncoder(Protocol):
    """An encoder, as far as Grad-CAM needs it: the feature and the map it is pooled from, with gradients."""

    def feature_map(self, x_BCHW: Tensor, /) -> tuple[Tensor, Tensor]: ...


@torch.inference_mode()
def candidate_windows(
    encoder: Embedder,
    x_NCHW: Tensor,
    own_N: Tensor,
    c_KD: Tensor,
    m_BHW: Tensor,
    kind: ScoreKind,
    keep_only: bool | Tensor,
    window: int,
    fill_NC: Tensor,
    batch: int,
    hiding: Hiding = "paint",
) -> tuple[Tensor, Tensor]:
    """Find the candidate trigger of each image.

    Args:
        encoder: images to features.
        x_NCHW: images, float in [0, 1].
        own_N: the cluster of each image.
        c_KD: centroids.
        m_BHW: masks, 0 … 1.
        kind: how a masked image is scored, see mask_scores.
        keep_only: whether the masks show what matters rather than hide it, for all masks or for each, bool
            (masks.keep_only).
        window: side of the candidate window in pixels.
        fill_NC: the colour of hidden pixels, in [0, 1] (mean_colour).
        batch: masked images through the encoder at once, across images.
        hiding: how pixels are hidden, see masked.embed_masked.

    Returns:
        box_N4: the windows.
        a_NHW: the heat maps, see combined_map.
    """
    n, b = len(x_NCHW), len(m_BHW)
    m_BHW = m_BHW.to(x_NCHW)
    masked = Masked.product(x_NCHW, fill_NC, m_BHW)
    s_NB = _scores(encoder, masked, own_N, c_KD, kind, batch, hiding).view(n, b)
    a_NHW = combined_map(s_NB, m_BHW, torch.as_tensor(keep_only, device=x_NCHW.device).expand(b))
    return best_window(a_NHW, window)[0], a_NHW


def _scores(
    encoder: Embedder,
    masked: Masked,
    own_N: Tensor,
    c_KD: Tensor,
    kind: ScoreKind,
    batch: int,
    hiding: Hiding,
) -> Tensor:
    """The score s_A of each masked image, float32."""
    s_A = torch.empty(len(masked.mask_A), device=masked.x_NCHW.device)
    for i_M, f_MD in embed_masked(encoder, masked, batch, hiding):
        s_A[i_M] = mask_scores(f_MD[:, None], own_N[masked.image_A[i_M]], c_KD, kind)[:, 0]
    return s_A


@torch.inference_mode()
def masked_features(
    encoder: Embedder,
    x_NCHW: Tensor,
    m_BHW: Tensor,
    fill_NC: Tensor,
    batch: int,
    hiding: Hiding = "paint",
) -> Tensor:
    """The feature of every image under every mask, to score one pass in several ways.

    `candidate_windows` needs less memory: it holds the features of one batch only.

    Args:
        encoder: images to features.
        x_NCHW: images, float in [0, 1].
        m_BHW: masks, 0 … 1.
        fill_NC: the colour of hidden pixels.
        batch: masked images through the encoder at once.
        hiding: how pixels are hidden, see masked.embed_masked.

    Returns:
        f_NBD.
    """
    masked = Masked.product(x_NCHW, fill_NC, m_BHW.to(x_NCHW))
    numbers, features = zip(*embed_masked(encoder, masked, batch, hiding), strict=True)
    f_AD = torch.cat(features)[torch.cat(numbers).argsort()]
    return f_AD.unflatten(0, (len(x_NCHW), len(m_BHW)))


def mean_colour(x_NCHW: Tensor) -> Tensor:
    """The mean colour fill_NC of each image: hidden pixels of that colour say little to the encoder."""
    return x_NCHW.mean(dim=(2, 3))


def mask_scores(f_NBD: Tensor, own_N: Tensor, c_KD: Tensor, kind: ScoreKind) -> Tensor:
    """Score how far each mask moves its image out of its own cluster.

    Args:
        f_NBD: features of the masked images.
        own_N: the cluster of each unmasked image.
        c_KD: centroids.
        kind: "hard" is 1 where the masked image falls into another cluster, else 0 (the paper's);
            "distance" is the distance to the own centroid;
            "margin" is that distance minus the distance to the nearest other centroid.

    Returns:
        s_NB, float: higher is farther out.

    Raises:
        ValueError: the kind is unknown, or a margin is asked for with fewer than two clusters.
    """
    d_NBK = distances(f_NBD.flatten(0, 1), c_KD).unflatten(0, f_NBD.shape[:2])
    if kind == "hard":
        return (d_NBK.argmin(dim=2) != own_N[:, None]).float()
    own_NB1 = own_N[:, None, None].expand(*d_NBK.shape[:2], 1)
    own_distance_NB = d_NBK.gather(2, own_NB1)[..., 0]
    if kind == "distance":
        return own_distance_NB
    if kind == "margin":
        if len(c_KD) < 2:
            raise ValueError("a margin needs at least two clusters")
        return own_distance_NB - d_NBK.scatter(2, own_NB1, torch.inf).amin(dim=2)
    raise ValueError(f"mask score {kind!r} is none of hard, margin, distance")


def combined_map(s_NB: Tensor, m_BHW: Tensor, keep_B: Tensor) -> Tensor:
    """Add the heat map of the hiding masks and that of the keep-only masks, each standardised per image.

    Args:
        s_NB: scores of the masked images.
        m_BHW: masks.
        keep_B: bool, which of the masks are keep-only.

    Returns:
        a_NHW, without a unit.
    """
    a_NHW = torch.zeros(len(s_NB), *m_BHW.shape[1:], device=s_NB.device)
    for keep in (False, True):
        if (keep_B == keep).any():
            a_NHW += _standardised(heat_map(s_NB[:, keep_B == keep], m_BHW[keep_B == keep], keep))
    return a_NHW


def heat_map(s_NB: Tensor, m_BHW: Tensor, keep_only: bool) -> Tensor:
    """Average the masks' scores at each pixel: how much the pixel holds the image in its cluster.

    For hiding masks the mean is weighted by how far a mask hides the pixel, Σ s·(1 − m) / Σ (1 − m). For
    keep-only masks it is weighted by how far a mask shows it, and negated, −Σ s·m / Σ m: if an image stays in
    its cluster while only one window is visible, that window holds it there. A pixel that no mask weighs gets
    the mean over the masks.

    Args:
        s_NB: scores of the masked images.
        m_BHW: masks, 0 … 1.
        keep_only: whether all these masks are keep-only.

    Returns:
        a_NHW, in the unit of the scores.
    """
    weight_BHW = m_BHW if keep_only else 1 - m_BHW
    total_HW = weight_BHW.sum(dim=0)
    mean_N11 = s_NB.mean(dim=1)[:, None, None]
    # Centred scores keep the sums small; the mean is added again below.
    a_NHW = torch.einsum("nb,bhw->nhw", s_NB - mean_N11[:, 0], weight_BHW) / total_HW.clamp(min=1e-6)
    a_NHW = torch.where(total_HW > 0, a_NHW, 0) + mean_N11
    return -a_NHW if keep_only else a_NHW


def _standardised(a_NHW: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the pixels of each image; a flat map becomes 0."""
    deviation_N11 = a_NHW.std(dim=(1, 2), correction=0, keepdim=True)
    return (a_NHW - a_NHW.mean(dim=(1, 2), keepdim=True)) / deviation_N11.clamp(min=1e-6)


def best_window(a_NHW: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Find the square window of greatest sum in each heat map.

    Args:
        a_NHW: heat maps.
        window: side of the window in pixels.

    Returns:
        box_N4: the windows; among equal sums the topmost, then the leftmost.
        sum_N: their sums.

    Raises:
        ValueError: the window does not fit into the map.
    """
    height, width = a_NHW.shape[1:]
    if not 1 <= window <= min(height, width):
        raise ValueError(f"a window of {window} pixels does not fit into {width} × {height}")
    columns = F.avg_pool2d(a_NHW[:, None], (window, 1), stride=1)
    sum_NYX = F.avg_pool2d(columns, (1, window), stride=1)[:, 0] * window**2
    sum_N, place_N = sum_NYX.flatten(1).max(dim=1)
    y_N, x_N = place_N // sum_NYX.shape[2], place_N % sum_NYX.shape[2]
    return torch.stack([x_N, y_N, x_N + window, y_N + window], dim=1), sum_N


@torch.inference_mode()
def windows_in_one_pass(
    encoder: Embedder,
    x_NCHW: Tensor,
    c_KD: Tensor,
    m_BHW: Tensor,
    kind: ScoreKind,
    keep_only: bool | Tensor,
    window: int,
    fill_NC: Tensor,
    batch: int,
    hiding: Hiding = "paint",
) -> tuple[Tensor, Tensor, Tensor]:
    """Find each image's own cluster and its candidate trigger from one pass through the encoder.

    The unmasked image is one mask more, which hides nothing. A cluster found elsewhere, from stored features
    or at another precision, can differ from it by rounding alone: then every mask seems to move the image.

    Args:
        encoder: images to features.
        x_NCHW: images, float in [0, 1].
        c_KD: centroids.
        m_BHW: masks, 0 … 1.
        kind: how a masked image is scored, see mask_scores.
        keep_only: as in candidate_windows.
        window: side of the candidate window in pixels.
        fill_NC: the colour of hidden pixels.
        batch: masked images through the encoder at once, across images.
        hiding: how pixels are hidden, see masked.embed_masked.

    Returns:
        own_N: the cluster of each image.
        box_N4: the windows.
        a_NHW: the heat maps, see combined_map.
    """
    b = len(m_BHW)
    m_BHW = m_BHW.to(x_NCHW)
    every_BHW = torch.cat([torch.ones_like(m_BHW[:1]), m_BHW])
    f_NBD = masked_features(encoder, x_NCHW, every_BHW, fill_NC, batch, hiding)
    own_N, _ = assign(f_NBD[:, 0], c_KD)
    # One image at a time: the distances to all centroids of all masked images may be too many.
    s_NB = torch.cat(
        [
            mask_scores(f_1BD, own_1, c_KD, kind)
            for f_1BD, own_1 in zip(f_NBD[:, 1:].split(1), own_N.split(1), strict=True)
        ]
    )
    a_NHW = combined_map(s_NB, m_BHW, torch.as_tensor(keep_only, device=x_NCHW.device).expand(b))
    return own_N, best_window(a_NHW, window)[0], a_NHW


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
    hiding: Hiding = "paint",
    n_hidden: int = N_SHIFTS,
    shown: bool = True,
    passes: int = 1,
) -> Tensor:
    """Move each window by at most two steps along each axis, once or several times.

    Every shifted window is scored twice: shown alone it should keep the image in its cluster, and hidden it
    should move the image out. Both scores are standardised over the shifts and added; the new corner is the
    mean of the shifted corners, weighted by the softmax of the sum.

    A window shown alone costs its own tokens only where hidden ones are dropped; hidden it costs almost the
    whole image. So the best few shifts by the first score may do for the second. But a window alone, without
    the tokens around it, says little about where a trigger begins: then the second score is better alone.

    Args:
        encoder: images to features.
        x_NCHW: images, float in [0, 1].
        box_N4: the windows, squares of one size.
        own_N: the cluster of each image.
        c_KD: centroids.
        kind: how a masked image is scored, see mask_scores.
        fill_NC: the colour of hidden pixels.
        batch: masked images through the encoder at once.
        hiding: how pixels are hidden, see masked.embed_masked.
        n_hidden: shifts that are scored hidden, too, 0 … N_SHIFTS: the best of each image by the first score.
            The others are left out. With 0 the first score decides alone, and counts twice.
        shown: whether shifts are scored shown alone. Without it the first n_hidden of EVENLY are hidden, and
            their score decides alone. It counts once, since far shifts hide a part of a trigger as well.
        passes: times that the windows are moved, at least 1.

    Returns:
        box_N4, int64, of the same size, inside the images.

    Raises:
        ValueError: no shift is shown or hidden.
    """
    if not shown and not n_hidden:
        raise ValueError("no shift is shown or hidden")
    side = x_NCHW.shape[-1]

    def scores(box_NO4: Tensor, keep: bool) -> Tensor:
        n, o = box_NO4.shape[:2]
        shown_AHW, i_A = inside(box_NO4.flatten(0, 1), side), torch.arange(n * o, device=x_NCHW.device)
        masked = Masked(x_NCHW, fill_NC, shown_AHW if keep else ~shown_AHW, i_A // o, i_A)
        s_NO = _scores(encoder, masked, own_N, c_KD, kind, batch, hiding).view(n, o)
        if o == 1:
            return torch.zeros_like(s_NO)
        return (s_NO - s_NO.mean(dim=1, keepdim=True)) / s_NO.std(dim=1, keepdim=True).clamp(min=1e-6)

    def moved(box_N4: Tensor) -> Tensor:
        box_NO4 = _shifted(box_N4, side)
        if not shown:
            box_NO4 = box_NO4[:, EVENLY[:n_hidden]]
            total_NO = scores(box_NO4, keep=False)
        else:
            total_NO = -scores(box_NO4, keep=True)
            if 0 < n_hidden < N_SHIFTS:
                total_NO, best_NO = total_NO.topk(n_hidden, dim=1)
                box_NO4 = box_NO4.gather(1, best_NO[:, :, None].expand(-1, -1, 4))
            # Twice the first score where there is no second: the softmax keeps its sharpness.
            total_NO = total_NO + (scores(box_NO4, keep=False) if n_hidden else total_NO)
        weight_NO1 = total_NO.softmax(dim=1)[:, :, None]
        corner_N2 = (box_NO4[:, :, :2] * weight_NO1).sum(dim=1).round().long()
        return torch.cat([corner_N2, corner_N2 + (box_N4[:, 2:] - box_N4[:, :2])], dim=1)

    for _ in range(passes):
        box_N4 = moved(box_N4)
    return box_N4


def refinement_forwards(n_hidden: int = N_SHIFTS, shown: bool = True, passes: int = 1) -> int:
    """How many masked images refine_windows embeds for one image."""
    return passes * (shown * N_SHIFTS + n_hidden)


def _shifted(box_N4: Tensor, side: int) -> Tensor:
    """The windows at every shift, box_NO4, pushed back into images of `side` pixels."""
    window = int(box_N4[0, 2] - box_N4[0, 0])
    step = max(1, round(REFINE_STEP * window))
    shift_O2 = torch.tensor(
        [(x * step, y * step) for y in REFINE_SHIFTS for x in REFINE_SHIFTS], device=box_N4.device
    )
    corner_NO2 = (box_N4[:, None, :2] + shift_O2).clamp(0, side - window)
    return torch.cat([corner_NO2, corner_NO2 + window], dim=2)


def gradcam_windows(
    encoder: MappedEncoder, x_NCHW: Tensor, own_N: Tensor, c_KD: Tensor, window: int, batch: int = 256
) -> Tensor:
    """Find the candidate trigger of each image by Grad-CAM, as PatchSearch does.

    Args:
        encoder: images to features and their last map.
        x_NCHW: images, float in [0, 1].
        own_N: the cluster of each image.
        c_KD: centroids.
        window: side of the window in pixels.
        batch: images through the encoder at once.

    Returns:
        box_N4: the window of greatest sum in each Grad-CAM map.
    """
    parts = zip(x_NCHW.split(batch), own_N.split(batch), strict=True)
    return torch.cat(
        [best_window(gradcam(encoder, x_BCHW, c_KD[own_B]), window)[0] for x_BCHW, own_B in parts]
    )


def gradcam(encoder: MappedEncoder, x_BCHW: Tensor, c_BD: Tensor) -> Tensor:
    """Grad-CAM of the cosine similarity between each image's feature and its own centroid.

    Args:
        encoder: images to features and their last map.
        x_BCHW: images, float in [0, 1].
        c_BD: the centroid of each image's own cluster.

    Returns:
        a_BHW ≥ 0: the last map, each channel weighted by its mean gradient, rectified, and resized to the
        image (bilinear).
    """
    with torch.enable_grad():
        f_BD, map_BEhw = encoder.feature_map(x_BCHW)
        # In evaluation mode images do not mix, so the gradient of the sum holds every image's own gradient.
        similarity = F.cosine_similarity(f_BD.float(), c_BD.float(), dim=1).sum()
        (gradient_BEhw,) = torch.autograd.grad(similarity, map_BEhw)
    weight_BE11 = gradient_BEhw.mean(dim=(2, 3), keepdim=True)
    a_B1hw = (weight_BE11 * map_BEhw.detach()).sum(dim=1, keepdim=True).relu().float()
    return F.interpolate(a_B1hw, x_BCHW.shape[2:], mode="bilinear", align_corners=False)[:, 0]
