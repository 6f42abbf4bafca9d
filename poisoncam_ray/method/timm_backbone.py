"""Backbones by their timm names, and a small ViT with a convolutional stem, built from timm's modules.

A file of its own because timm is slow to import: only encoders that need it import this file.

T patch tokens   D feature dimensions
"""

import difflib
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn


class ConvStem(PatchEmbed):
    """Three convolutions of stride 2 to patches of 8 px, in place of one large projection.

    With such a stem a small ViT trains faster ("Early convolutions help transformers see better", arXiv
    2106.14881).
    """

    def __init__(self, in_chans: int = 3, embed_dim: int = 128, **kwargs: Any) -> None:
        super().__init__(in_chans=in_chans, embed_dim=embed_dim, **kwargs)
        layers: list[nn.Module] = []
        for width in (embed_dim // 4, embed_dim // 2, embed_dim):
            layers += [
                nn.Conv2d(in_chans, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            in_chans = width
        self.proj: Any = nn.Sequential(*layers, nn.Conv2d(embed_dim, embed_dim, 1))


def vit_tiny_convstem(image_size: int, patch_size: int | None) -> nn.Module:
    """A ViT of 4 layers, 128 wide, with 4 heads, patches of 8 px and a convolutional stem.

    Args:
        image_size: side of the input in pixels, a multiple of 8.
        patch_size: 8 or None.

    Raises:
        ValueError: another patch size, or an image side that is no multiple of it.
    """
    if patch_size not in (None, 8):
        raise ValueError(f"vit_tiny_convstem has 8 px patches, not {patch_size}: leave patch_size out.")
    vit = VisionTransformer(
        img_size=image_size, patch_size=8, embed_dim=128, depth=4, num_heads=4, num_classes=0,
        embed_layer=ConvStem,
    )  # fmt: skip
    return prepared(vit, image_size, frozen_patch=False)


def from_timm(
    name: str, image_size: int, patch_size: int | None, frozen_patch: bool, ours: tuple[str, ...]
) -> nn.Module:
    """Any ViT or ResNet of timm, untrained, without a head.

    Args:
        name: of the model in timm.
        image_size: side of the input in pixels.
        patch_size: side of a ViT's patches in pixels; None keeps the model's own.
        frozen_patch: never train the patch projection of a ViT.
        ours: further names to suggest for an unknown one.

    Raises:
        ValueError: the model is unknown, of another kind, or the sizes do not fit; the message says what to
            change.
    """
    if not timm.is_model(name):
        known = [*ours, *timm.list_models(["vit*", "deit*", "resnet*"])]
        near = " or ".join(f"'{match}'" for match in difflib.get_close_matches(name, known, n=3))
        raise ValueError(f"Unknown backbone '{name}'" + (f": did you mean {near}?" if near else "."))
    family = timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
    if family == "resnet":
        return timm.create_model(name, pretrained=False, num_classes=0)
    if family not in ("vision_transformer", "deit"):
        raise ValueError(f"'{name}' is neither a ViT nor a ResNet: choose one, such as vit_base_patch16_224.")
    options: dict[str, Any] = {"img_size": image_size}
    if patch_size is not None:
        options["patch_size"] = patch_size
    return prepared(
        timm.create_model(name, pretrained=False, num_classes=0, **options), image_size, frozen_patch
    )


def prepared(vit: Any, image_size: int, frozen_patch: bool) -> nn.Module:
    """Prepare a ViT as MoCo-v3 trains it (arXiv 2104.02057 §4.2).

    Args:
        vit: gets fixed positions, in place.
        image_size: side of the input in pixels.
        frozen_patch: keep the random patch projection and never train it.

    Returns:
        The same ViT.

    Raises:
        ValueError: the patch does not divide the image.
    """
    patch = vit.patch_embed.patch_size[0]
    if image_size % patch:
        raise ValueError(
            f"A patch of {patch} px does not divide an image of {image_size} px: change patch_size or "
            f"image_size, to {max(1, round(image_size / patch)) * patch} px, say."
        )
    if vit.pos_embed is not None and vit.embed_dim % 4 == 0:
        _fix_positions(vit)
    if frozen_patch and isinstance(vit.patch_embed.proj, nn.Conv2d):
        vit.patch_embed.proj.requires_grad_(False)
    return vit


def _fix_positions(vit: Any) -> None:
    """Set MoCo-v3's fixed 2-D sine-cosine position embedding; the position of the class token is zero."""
    grid = list(vit.patch_embed.grid_size)
    table_TD = build_sincos2d_pos_embed(grid, dim=vit.embed_dim, interleave_sin_cos=False)
    with torch.no_grad():
        vit.pos_embed.zero_()
        vit.pos_embed[0, -table_TD.shape[0] :] = table_TD
    vit.pos_embed.requires_grad_(False)
