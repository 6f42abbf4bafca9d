"""The encoder under suspicion: a timm backbone without a head, from [0, 1] pixels to one feature per image.

B images, C channels (3 at the input), H × W pixels or cells, T tokens, D feature dimensions.
"""

import difflib
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

OURS = ("resnet_tiny", "resnet_tiny_s2", "vit_tiny_convstem")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """A backbone with its normalisation inside, so that every caller works in [0, 1] pixels.

    `dim`: feature dimensions; `image_size`: side of the square input in pixels; `patch_size`: pixels, None
    for a convolutional network.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: Any, image_size: int):
        super().__init__()
        self.backbone: Any = backbone
        self.dim: int = backbone.num_features
        self.image_size = image_size
        is_vit = isinstance(backbone, VisionTransformer)
        self.patch_size: int | None = backbone.patch_embed.patch_size[0] if is_vit else None
        # Constants, not weights: a checkpoint need not (and a user's own does not) carry them.
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Pooled feature f_BD before any head or projector; x_BCHW is float in [0, 1]."""
        tokens = self.backbone.forward_features((x_BCHW - self.pixel_mean) / self.pixel_std)
        return self.backbone.forward_head(tokens, pre_logits=True)

    def embed(self, x_BCHW: Tensor) -> Tensor:
        """f_BD on the unit sphere: what is clustered (DESIGN §1 step 2: backbone features, no projector)."""
        return F.normalize(self(x_BCHW), dim=1)

    def feature_map(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(f_BD, map_BCHW): the last spatial layer that the feature depends on, and the feature as a function
        of it, for `torch.autograd.grad(g(f_BD), map_BCHW)`; no gradient flows below the map.

        ResNet: the last stage's output. ViT: the patch tokens entering the last block's attention, as a grid;
        later ones do not reach a class token.
        """
        vit = isinstance(self.backbone, VisionTransformer)
        layer = self.backbone.blocks[-1].norm1 if vit else self.backbone.layer4
        maps: list[Tensor] = []

        # The hook puts its own leaf into the forward pass, so that the feature hangs on the map it returns.
        def cut_here(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            if not vit:
                maps.append(out.detach().requires_grad_())
                return maps[0]
            n_prefix = self.backbone.num_prefix_tokens
            patches_BCT = out[:, n_prefix:].transpose(1, 2)
            grid_BCHW = patches_BCT.unflatten(2, self.backbone.patch_embed.grid_size)
            maps.append(grid_BCHW.detach().requires_grad_())
            return torch.cat([out[:, :n_prefix].detach(), maps[0].flatten(2).transpose(1, 2)], dim=1)

        handle = layer.register_forward_hook(cut_here)
        try:
            with torch.enable_grad():
                f_BD = self(x_BCHW)
        finally:
            handle.remove()
        return f_BD, maps[0]


class ConvStem(PatchEmbed):
    """Three stride-2 convolutions to 8 px patches in place of one large projection: what lets a small ViT
    train within minutes ("Early convolutions help transformers see better", arXiv 2106.14881)."""

    def __init__(self, in_chans: int = 3, embed_dim: int = 128, **kwargs):
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


def build_encoder(
    name: str, image_size: int, patch_size: int | None = None, frozen_patch: bool = True
) -> Encoder:
    """A fresh encoder for image_size × image_size pixels.

    `name`: any timm ViT or ResNet, or one of ours: "resnet_tiny" (four basic blocks, 16–128 channels, for
    32–64 px), "resnet_tiny_s2" (the same behind a stride-2 stem, a third of the time a step), "vit_tiny_convstem" (4 layers, 128 wide, 4 heads, 8 px patches). `patch_size`: pixels, ViTs
    only; None keeps the model's own. `frozen_patch`: MoCo-v3's fix for unstable ViT training (arXiv
    2104.02057 §4.2), a random patch projection that is never trained; convolutional stems train regardless.
    Weights are drawn from torch's global generator. ValueError names what to change.
    """
    if name not in OURS and not timm.is_model(name):
        near = difflib.get_close_matches(name, [*OURS, *timm.list_models(["vit*", "deit*", "resnet*"])], n=1)
        raise ValueError(f"Unknown backbone '{name}'" + (f": did you mean '{near[0]}'?" if near else "."))
    backbone: Any
    if name in ("resnet_tiny", "resnet_tiny_s2"):
        backbone = _resnet_tiny(stem_stride=2 if name == "resnet_tiny_s2" else 1)
    elif name == "vit_tiny_convstem":
        if patch_size not in (None, 8):
            raise ValueError(f"vit_tiny_convstem has 8 px patches, not {patch_size}: leave patch_size out.")
        backbone = VisionTransformer(
            img_size=image_size, patch_size=8, embed_dim=128, depth=4, num_heads=4, num_classes=0,
            embed_layer=ConvStem,
        )  # fmt: skip
    else:
        backbone = _from_timm(name, image_size, patch_size)
    if isinstance(backbone, ResNet) and patch_size is not None:
        raise ValueError(f"'{name}' has no patches: leave patch_size out.")
    if isinstance(backbone, VisionTransformer):
        patch = backbone.patch_embed.patch_size[0]
        if image_size % patch:
            raise ValueError(
                f"A patch of {patch} px does not divide an image of {image_size} px: change patch_size or "
                f"image_size, to {max(1, round(image_size / patch)) * patch} px, say."
            )
        _fix_positions(backbone)
        if frozen_patch and isinstance(backbone.patch_embed.proj, nn.Conv2d):
            backbone.patch_embed.proj.requires_grad_(False)
    return Encoder(backbone, image_size)


def _resnet_tiny(stem_stride: int) -> nn.Module:
    basic_block: Any = BasicBlock  # timm's annotation asks for an instance where its code wants the class
    # timm starts every block as its shortcut (last norm's weight zero). In the few hundred steps that this
    # network is for, the weights stay below about 0.1: it would see little beyond its stem.
    net: Any = ResNet(
        basic_block, (1, 1, 1, 1), channels=(16, 32, 64, 128), stem_type="deep", stem_width=8, num_classes=0,
        zero_init_last=False,
    )  # fmt: skip
    # timm's stems shrink the image fourfold, which leaves 32 px images 1 × 1 cell: one convolution instead.
    net.conv1 = nn.Conv2d(3, 16, 3, stride=stem_stride, padding=1, bias=False)
    if stem_stride == 2:
        # Keeps the last map at an eighth of the side: a window's place must still be told.
        block = net.layer4[0]
        block.conv1.stride = block.downsample[0].stride = (1, 1)
    net.maxpool = nn.Identity()
    net.init_weights(zero_init_last=False)
    return net


def _from_timm(name: str, image_size: int, patch_size: int | None) -> nn.Module:
    family = timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
    if family == "resnet":
        return timm.create_model(name, pretrained=False, num_classes=0)
    if family not in ("vision_transformer", "deit"):
        raise ValueError(f"'{name}' is neither a ViT nor a ResNet: choose one, such as vit_base_patch16_224.")
    options: dict[str, Any] = {"img_size": image_size}
    if patch_size is not None:
        options["patch_size"] = patch_size
    return timm.create_model(name, pretrained=False, num_classes=0, **options)


def _fix_positions(vit: Any) -> None:
    """MoCo-v3's fixed 2-D sine-cosine position embedding; the class token's position is zero."""
    grid = list(vit.patch_embed.grid_size)
    if vit.pos_embed is None or vit.embed_dim % 4:
        return
    table_TD = build_sincos2d_pos_embed(grid, dim=vit.embed_dim, interleave_sin_cos=False)
    with torch.no_grad():
        vit.pos_embed.zero_()
        vit.pos_embed[0, -table_TD.shape[0] :] = table_TD
    vit.pos_embed.requires_grad_(False)


def encoder_state_from(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's own weights, under timm's names, out of a pretraining checkpoint's state dict.

    Knows MoCo-v3's layout (`module.base_encoder.`, else `module.momentum_encoder.`), `backbone.` (ours and
    other libraries'), and a plain model; projector, predictor and classifier weights are left behind.
    Applying it twice changes nothing.
    """
    names = {key.removeprefix("module."): value for key, value in state.items()}
    for prefix in ("base_encoder.", "momentum_encoder.", "encoder.backbone.", "backbone."):
        inside = {key.removeprefix(prefix): value for key, value in names.items() if key.startswith(prefix)}
        if inside:
            names = inside
            break
    heads = ("head.", "fc.", "projector.", "predictor.", "projection_head.", "prediction_head.")
    return {key: value for key, value in names.items() if not key.startswith(heads)}


def load_encoder_state(encoder: Encoder, state: dict[str, Tensor]) -> None:
    """Load any layout that encoder_state_from knows; ValueError names what is missing, extra or misshapen."""
    theirs, ours = encoder_state_from(state), encoder.backbone.state_dict()
    # Older ResNet checkpoints lack these counters, which do not change what the network computes.
    optional = {key for key in ours if key.endswith("num_batches_tracked")}
    faults = {
        "missing": [key for key in ours if key not in theirs and key not in optional],
        "unexpected": [key for key in theirs if key not in ours],
        "of another shape": [
            f"{key} {tuple(theirs[key].shape)} instead of {tuple(ours[key].shape)}"
            for key in ours
            if key in theirs and theirs[key].shape != ours[key].shape
        ],
    }
    if any(faults.values()):
        found = "; ".join(
            f"{len(keys)} {fault} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
            for fault, keys in faults.items()
            if keys
        )
        raise ValueError(f"The checkpoint does not fit the backbone, change one of them: {found}.")
    encoder.backbone.load_state_dict(theirs, strict=False)
