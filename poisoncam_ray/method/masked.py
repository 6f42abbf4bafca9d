"""Images with some of their pixels hidden, and their features.

Pixels are hidden in one of two ways. "paint" gives them a plain colour; every encoder can do that. "drop"
also drops the tokens of the patches without a visible pixel, in a ViT only: such a token costs nothing, and
says nothing, while a painted one still says that there is a plain patch. So these are two occlusions, and a
mask moves an image farther in one than in the other.

N images   B masks   A masked images   M of them through the encoder at once   C channels   H = W image side
D feature dimensions   G patches of an image   T shown patches of an image
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.method.tokens import embed_shown, is_patchwise, shown_patches

Hiding = Literal["paint", "drop"]


class Embedder(Protocol):
    """An encoder, as far as masks need it: images in [0, 1] to L2-normalised features."""

    def embed(self, x_BCHW: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Masked:
    """Masked images, which are made when they are needed.

    Attributes:
        x_NCHW: the images, float in [0, 1].
        fill_NC: the colour of hidden pixels.
        m_BHW: the masks, bool or 0 … 1; 0 is hidden.
        image_A: int64, which of the images each masked image shows.
        mask_A: int64, which of the masks hides it.
    """

    x_NCHW: Tensor
    fill_NC: Tensor
    m_BHW: Tensor
    image_A: Tensor
    mask_A: Tensor

    @staticmethod
    def product(x_NCHW: Tensor, fill_NC: Tensor, m_BHW: Tensor) -> "Masked":
        """Every image under every mask; number i is image i // B under mask i % B."""
        n, b = len(x_NCHW), len(m_BHW)
        i_A = torch.arange(n * b, device=x_NCHW.device)
        return Masked(x_NCHW, fill_NC, m_BHW.to(x_NCHW.device), i_A // b, i_A % b)

    def painted(self, i_M: Tensor) -> Tensor:
        """The masked images x_MCHW with the numbers i_M."""
        image_M, m_M1HW = self.image_A[i_M], self.m_BHW[self.mask_A[i_M]][:, None].to(self.x_NCHW)
        return torch.lerp(self.fill_NC[image_M][:, :, None, None], self.x_NCHW[image_M], m_M1HW)


@torch.inference_mode()
def embed_masked(
    encoder: Embedder, masked: Masked, batch: int, hiding: Hiding = "paint"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Embed masked images.

    Dropped tokens leave images with different numbers of tokens. Those with the same number go through the
    encoder together, whichever image and mask they come from, and as many at once as have the tokens of
    `batch` whole images; but no more than `batch` where a stem reads whole images.

    Args:
        encoder: images to features; a ViT for "drop".
        masked: the masked images.
        batch: whole images through the encoder at once.
        hiding: how pixels are hidden.

    Yields:
        i_M, the numbers of some of the masked images, and f_MD, their features. Each number comes once; with
        "paint" in order.

    Raises:
        ValueError: the encoder has no tokens to drop, or a mask hides a whole image.
    """
    if hiding == "paint":
        for i_M in torch.arange(len(masked.mask_A), device=masked.x_NCHW.device).split(batch):
            yield i_M, encoder.embed(masked.painted(i_M))
        return
    if not isinstance(encoder, Encoder) or encoder.patch_size is None:
        raise ValueError("Only a ViT has tokens to drop: paint what is hidden.")
    prefix = encoder.backbone.num_prefix_tokens
    shown_BG = shown_patches(masked.m_BHW, encoder.patch_size)
    n_shown_A = shown_BG.sum(dim=1)[masked.mask_A]
    # Shown patches first, each part in the order of the grid.
    order_BG = (~shown_BG).to(torch.int8).argsort(dim=1, stable=True)
    for n_shown in n_shown_A.unique().tolist():
        if not n_shown:
            raise ValueError("A mask hides the whole image: no token is left.")
        most = batch
        if is_patchwise(encoder.inference):
            most = batch * (shown_BG.shape[1] + prefix) // (n_shown + prefix)
        for i_M in even_parts((n_shown_A == n_shown).nonzero()[:, 0], most):
            image_M, mask_M = masked.image_A[i_M], masked.mask_A[i_M]
            at_MT = order_BG[mask_M, :n_shown]
            f_MD = embed_shown(encoder, masked.x_NCHW, masked.fill_NC, masked.m_BHW, image_M, mask_M, at_MT)
            yield i_M, f_MD


def even_parts(i_A: Tensor, most: int) -> tuple[Tensor, ...]:
    """Split into as few parts of at most `most` as there can be, all equally long up to one."""
    return i_A.tensor_split(max(1, math.ceil(len(i_A) / most)))
