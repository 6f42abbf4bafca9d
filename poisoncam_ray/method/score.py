"""The poison score (arXiv 2312.07955): what a candidate trigger does to the clusters of other images, and
what its own image does without it.

N candidates, or images   F flip-test images   C channels   w window side   H = W image side
D feature dimensions   K clusters   M images through the encoder at once   box_N4 integer [x0, y0, x1, y1)
"""

import torch
from torch import Tensor

from poisoncam_ray.method.clusters import assign
from poisoncam_ray.method.geometry import inside, paste, random_places
from poisoncam_ray.method.masked import Embedder, Hiding, Masked, embed_masked


@torch.inference_mode()
def poison_scores(
    encoder: Embedder,
    t_NCww: Tensor,
    x_FCHW: Tensor,
    y_F: Tensor,
    own_N: Tensor,
    c_KD: Tensor,
    seeds_N: Tensor,
    batch: int,
    first: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Paste every candidate once on every flip-test image and count the images that change cluster.

    The place of a paste is random and depends on the candidate's seed and the image's number alone, so the
    batch size and the other candidates do not matter.

    Args:
        encoder: images to features.
        t_NCww: the candidates, float in [0, 1].
        x_FCHW: the flip-test images, float in [0, 1].
        y_F: the clusters of the flip-test images as they are.
        own_N: the cluster of each candidate's own image.
        c_KD: centroids.
        seeds_N: int64, one for each candidate.
        batch: images through the encoder at once.
        first: the number of the first of these flip-test images. The counts of two calls, on the images up
            to one and from there on, add up to those of one call on all.

    Returns:
        changed_N int64, 0 … F: images whose cluster changes (the paper's reading).
        gain_N int64, −F … F: images moved into the candidate's own cluster minus those moved out.
        landed_NF int64: the cluster of each pasted image.
    """
    n, f = len(t_NCww), len(x_FCHW)
    size = (*t_NCww.shape[2:], *x_FCHW.shape[2:])
    box_NF4 = random_places(seeds_N.cpu(), torch.arange(first, first + f), *size)
    box_M4 = box_NF4.flatten(0, 1).to(x_FCHW.device)
    landed_parts = []
    for i_M in torch.arange(n * f, device=x_FCHW.device).split(batch):
        pasted_MCHW = paste(x_FCHW[i_M % f], t_NCww[i_M // f], box_M4[i_M])
        landed_parts.append(assign(encoder.embed(pasted_MCHW), c_KD)[0])
    landed_NF = torch.cat(landed_parts).view(n, f)
    into_NF, from_NF = landed_NF == own_N[:, None], y_F == own_N[:, None]
    gain_N = into_NF.sum(dim=1) - from_NF.sum(dim=1)
    return (landed_NF != y_F).sum(dim=1), gain_N, landed_NF


def supercluster_gain(landed_NF: Tensor, y_F: Tensor, own_N: Tensor, supercluster_K: Tensor) -> Tensor:
    """Count the flip-test images that a candidate moves into the supercluster of its own cluster.

    Args:
        landed_NF: the cluster of each pasted image.
        y_F: the clusters of the flip-test images as they are.
        own_N: the cluster of each candidate's own image.
        supercluster_K: the supercluster of each cluster.

    Returns:
        gain_N int64, −F … F: images moved in minus images moved out.
    """
    own_N1 = supercluster_K[own_N][:, None]
    return (supercluster_K[landed_NF] == own_N1).sum(dim=1) - (supercluster_K[y_F] == own_N1).sum(dim=1)


@torch.inference_mode()
def unchanged_flips(encoder: Embedder, x_NCHW: Tensor, own_N: Tensor, c_KD: Tensor, batch: int) -> Tensor:
    """Embed images as they are, each among other images than before, and see which leave their cluster.

    None should. Those that do lie at the boundary of two clusters, and rounding moves them: `own_N` comes
    from features that were stored with fewer digits, or computed at another precision or in other batches.
    Masked or pasted, such an image looks like evidence, which has nothing to do with mask or paste.

    Args:
        encoder: images to features.
        x_NCHW: images, float in [0, 1].
        own_N: the cluster of each image, as masks and pastes are compared with it.
        c_KD: centroids.
        batch: images through the encoder at once.

    Returns:
        flips_N, bool.
    """
    flips_N = torch.empty(len(x_NCHW), dtype=torch.bool, device=x_NCHW.device)
    order_N = torch.randperm(len(x_NCHW), generator=torch.Generator().manual_seed(len(x_NCHW)))
    for i_M in order_N.to(x_NCHW.device).split(batch):
        flips_N[i_M] = assign(encoder.embed(x_NCHW[i_M]), c_KD)[0] != own_N[i_M]
    return flips_N


@torch.inference_mode()
def occlusion_flips(
    encoder: Embedder,
    x_NCHW: Tensor,
    box_N4: Tensor,
    own_N: Tensor,
    c_KD: Tensor,
    fill_NC: Tensor,
    batch: int,
    hiding: Hiding = "paint",
) -> Tensor:
    """Occlude each image's window and see whether the image leaves its cluster.

    A trigger holds its own image in its cluster. A piece of sky moves other images to the skies, but its own
    image often stays there without it.

    Args:
        encoder: images to features.
        x_NCHW: images, float in [0, 1].
        box_N4: the windows, which may differ in size.
        own_N: the cluster of each image.
        c_KD: centroids.
        fill_NC: the colour that the window is filled with.
        batch: images through the encoder at once.
        hiding: how the window is hidden, see masked.embed_masked.

    Returns:
        flips_N, bool: whether the occluded image lies in another cluster.
    """
    i_N = torch.arange(len(x_NCHW), device=x_NCHW.device)
    masked = Masked(x_NCHW, fill_NC, ~inside(box_N4, x_NCHW.shape[-1]), i_N, i_N)
    flips_N = torch.empty(len(x_NCHW), dtype=torch.bool, device=x_NCHW.device)
    for i_M, f_MD in embed_masked(encoder, masked, batch, hiding):
        flips_N[i_M] = assign(f_MD, c_KD)[0] != own_N[i_M]
    return flips_N
