"""A ViT that sees some patches of an image only: the tokens of the others are dropped.

A dropped token costs nothing, and no other token attends to it: the feature is the one that attention with a
mask over the hidden tokens gives, pooled over what is shown. Positions are added before tokens are dropped.

N images   M masked images   B masks   C channels   H = W image side   p patch side
G patches of an image, row by row   T shown patches of an image   D token dimensions
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poisoncam_ray.method.encoder import Encoder


def shown_patches(m_BHW: Tensor, patch: int) -> Tensor:
    """Which patches have a visible pixel.

    Args:
        m_BHW: masks, bool or 0 … 1; 0 is hidden.
        patch: side of a patch in pixels.

    Returns:
        shown_BG, bool.
    """
    return patches((m_BHW > 0)[:, None], patch).flatten(2).any(dim=2)


def patches(x_NCHW: Tensor, patch: int) -> Tensor:
    """The patches x_NGCpp of images whose side is a multiple of `patch`."""
    x_NCyxpp = x_NCHW.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).transpose(3, 4)
    return x_NCyxpp.flatten(2, 3).transpose(1, 2)


@torch.inference_mode()
def embed_shown(
    encoder: Encoder,
    x_NCHW: Tensor,
    fill_NC: Tensor,
    m_BHW: Tensor,
    image_M: Tensor,
    mask_M: Tensor,
    at_MT: Tensor,
) -> Tensor:
    """The feature of masked images from the tokens of some of their patches.

    A shown patch that a mask hides in part has the fill colour there.

    Args:
        encoder: a ViT of timm's interface, in evaluation mode.
        x_NCHW: images, float in [0, 1].
        fill_NC: the colour of hidden pixels in shown patches.
        m_BHW: masks, bool or 0 … 1.
        image_M: which of the images each masked image shows.
        mask_M: which of the masks hides it.
        at_MT: int64, the shown patches of each masked image, at least one.

    Returns:
        f_MD, of length 1, as Encoder.embed gives it.
    """
    vit = encoder.inference
    with encoder.autocast():
        if is_patchwise(vit):
            token_MTD = _project(encoder, x_NCHW, fill_NC, m_BHW, image_M, mask_M, at_MT)
        else:
            # A stem whose patches overlap needs the whole image.
            m_M1HW = m_BHW[mask_M][:, None].to(x_NCHW)
            painted_MCHW = torch.lerp(fill_NC[image_M][:, :, None, None], x_NCHW[image_M], m_M1HW)
            token_MGD = vit.patch_embed(encoder.standardise(painted_MCHW))
            token_MTD = _of(token_MGD.reshape(len(at_MT), -1, token_MGD.shape[-1]), at_MT)
        token_MTD = vit.norm_pre(_placed(vit, token_MTD, at_MT))
        f_MD = vit.forward_head(vit.norm(vit.blocks(token_MTD)).float(), pre_logits=True)
    return F.normalize(f_MD.float(), dim=1)


def is_patchwise(vit: Any) -> bool:
    """Whether a token depends on the pixels of its own patch only."""
    proj, size = vit.patch_embed.proj, tuple(vit.patch_embed.patch_size)
    return isinstance(proj, nn.Conv2d) and proj.kernel_size == proj.stride == size


def _project(
    encoder: Encoder,
    x_NCHW: Tensor,
    fill_NC: Tensor,
    m_BHW: Tensor,
    image_M: Tensor,
    mask_M: Tensor,
    at_MT: Tensor,
) -> Tensor:
    """The tokens token_MTD of the shown patches, without their positions; the other patches are not read."""
    embed = encoder.inference.patch_embed
    patch = embed.patch_size[0]
    x_MTCpp = patches(x_NCHW, patch)[image_M[:, None], at_MT]
    m_MT1pp = patches(m_BHW[:, None], patch)[mask_M[:, None], at_MT].to(x_MTCpp)
    painted_MTCpp = torch.lerp(fill_NC[image_M][:, None, :, None, None], x_MTCpp, m_MT1pp)
    painted_MTCpp = encoder.standardise(painted_MTCpp)
    return embed.norm(F.linear(painted_MTCpp.flatten(2), embed.proj.weight.flatten(1), embed.proj.bias))


def _placed(vit: Any, token_MTD: Tensor, at_MT: Tensor) -> Tensor:
    """The tokens with their positions, behind the prefix: class, distillation and register tokens.

    Models place their tokens in several ways. All of them add constants, which an image of zeros shows.
    """
    grid, dim = vit.patch_embed.grid_size, token_MTD.shape[2]
    zeros_1GD = token_MTD.new_zeros((1, *grid, dim) if vit.dynamic_img_size else (1, grid[0] * grid[1], dim))
    placed_1SD = vit._pos_embed(zeros_1GD)
    n_prefix = vit.num_prefix_tokens
    position_MTD = placed_1SD[0, n_prefix:][at_MT]
    prefix_MPD = placed_1SD[:, :n_prefix].expand(len(token_MTD), -1, -1)
    return torch.cat([prefix_MPD, token_MTD + position_MTD], dim=1)


def _of(token_MGD: Tensor, at_MT: Tensor) -> Tensor:
    return token_MGD.gather(1, at_MT[:, :, None].expand(-1, -1, token_MGD.shape[2]))
