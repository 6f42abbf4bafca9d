"""The encoder under suspicion: a backbone without a head, from pixels in [0, 1] to one feature per image.

The backbone is a small residual network of our own (`resnet_tiny`), a small ViT (`vit_tiny_convstem`), or any
ViT or ResNet of timm. `resnet_tiny` is written here because timm is slow to import, and every worker process
of a cluster would pay for it.

B images   C channels (3 at the input)   H, W pixels or cells   T patch tokens   D feature dimensions
"""

import copy
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The names of ResNetTiny and the strides of their stems.
TINY = {"resnet_tiny": 1, "resnet_tiny_s2": 2}
OURS = (*TINY, "vit_tiny_convstem")
WIDTHS = (16, 32, 64, 128)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """A backbone with its normalisation inside, so that every caller works with pixels in [0, 1].

    Args:
        backbone: a ResNetTiny, or a ViT or ResNet with timm's interface, without a head.
        image_size: side of the square input in pixels.

    Attributes:
        dim: feature dimensions.
        patch_size: side of a patch in pixels; None for a convolutional network.
        frozen: the copy of the backbone in bfloat16 that `embed` runs (`freeze`); None in float32.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: Any, image_size: int):
        super().__init__()
        self.backbone: Any = backbone
        self.dim: int = backbone.num_features
        self.image_size = image_size
        self.is_vit = hasattr(backbone, "patch_embed")
        self.patch_size: int | None = backbone.patch_embed.patch_size[0] if self.is_vit else None
        self.frozen: Any = None
        # Not persistent: these are constants, which other people's checkpoints do not carry.
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The pooled feature f_BD of images x_BCHW, float in [0, 1]."""
        tokens = self.backbone.forward_features(self.standardise(x_BCHW))
        return self.backbone.forward_head(tokens, pre_logits=True)

    def standardise(self, x_xCHW: Tensor) -> Tensor:
        """Images or patches, float in [0, 1], as the network takes them: less ImageNet's mean, divided by
        its standard deviation."""
        return (x_xCHW - self.pixel_mean) / self.pixel_std

    def freeze(self, dtype: torch.dtype) -> "Encoder":
        """Let `embed` and `feature` compute in this number format from now on, with weights cast once.

        Gradients and feature maps stay in float32. Call it after the weights are loaded.

        Returns:
            This encoder, in evaluation mode.
        """
        self.eval().frozen = None
        if dtype != torch.float32:
            self.frozen = low_copy(self.backbone, dtype, channels_last=not self.is_vit)
        return self

    def embed(self, x_BCHW: Tensor) -> Tensor:
        """The feature f_BD of images x_BCHW, float in [0, 1], with length 1, float32 at any precision of the
        network. Clusters are made of these."""
        return F.normalize(self.feature(x_BCHW), dim=1)

    def feature(self, x_BCHW: Tensor) -> Tensor:
        """The pooled feature f_BD of images x_BCHW, float in [0, 1]: float32, computed as `freeze` says."""
        if self.frozen is None:
            return self(x_BCHW).float()
        with self.autocast():
            x_BCHW = self.standardise(x_BCHW)
            if not self.is_vit:
                x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
            # Pooled in float32: a mean in bfloat16 would have three digits.
            tokens = self.frozen.forward_features(x_BCHW).float()
            return self.frozen.forward_head(tokens, pre_logits=True).float()

    @property
    def inference(self) -> Any:
        """The network that `embed` runs, for `autocast`."""
        return self.backbone if self.frozen is None else self.frozen

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which `inference` computes at the precision of `freeze`."""
        return torch.autocast(self.pixel_mean.device.type, torch.bfloat16, enabled=self.frozen is not None)

    def feature_map(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The feature, and the last spatial layer it depends on, for gradients of one by the other.

        The map is a leaf of the graph: `torch.autograd.grad(g(f_BD), map_BCHW)` works, and no gradient flows
        below the map. In a ResNet it is the output of the last stage. In a ViT it is the grid of patch tokens
        that enters the attention of the last block, since later tokens do not reach a class token.

        Args:
            x_BCHW: images, float in [0, 1].

        Returns:
            f_BD, not normalised, and map_BCHW.
        """
        vit = self.is_vit
        layer = self.backbone.blocks[-1].norm1 if vit else self.backbone.layer4
        maps: list[Tensor] = []

        # The hook replaces the layer's output by a new leaf, on which the feature then depends.
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


def build_encoder(
    name: str, image_size: int, patch_size: int | None = None, frozen_patch: bool = True
) -> Encoder:
    """Make an untrained encoder. Weights are drawn from torch's global generator.

    Args:
        name: any ViT or ResNet of timm, or "resnet_tiny" (four basic blocks of 16 to 128 channels, for images
            of 32 to 64 px), "resnet_tiny_s2" (the same with a stem of stride 2, faster), or
            "vit_tiny_convstem" (4 layers, 128 wide, 4 heads, patches of 8 px).
        image_size: side of the square input in pixels.
        patch_size: side of a ViT's patches in pixels; None keeps the model's own.
        frozen_patch: never train the patch projection of a ViT, MoCo-v3's remedy for unstable training
            (arXiv 2104.02057 §4.2). A convolutional stem is trained in any case.

    Raises:
        ValueError: the name is unknown, or the sizes do not fit it; the message says what to change.
    """
    if name in TINY:
        backbone: nn.Module = ResNetTiny(stem_stride=TINY[name])
    else:
        # Imported only where it is needed, because timm is slow to import.
        from poisoncam_ray.method import timm_backbone

        if name == "vit_tiny_convstem":
            backbone = timm_backbone.vit_tiny_convstem(image_size, patch_size)
        else:
            backbone = timm_backbone.from_timm(name, image_size, patch_size, frozen_patch, OURS)
    if patch_size is not None and not hasattr(backbone, "patch_embed"):
        raise ValueError(f"'{name}' has no patches: leave patch_size out.")
    return Encoder(backbone, image_size)


def low_copy(network: nn.Module, dtype: torch.dtype, channels_last: bool) -> nn.Module:
    """A copy for inference under autocast, whose matrices and filters are cast once and for all.

    Args:
        network: in evaluation mode.
        dtype: of the matrices and filters. Norms and positions stay float32.
        channels_last: whether filters are laid out for images whose channels come last.
    """
    low = copy.deepcopy(network).requires_grad_(False)
    for module in low.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
    return low.to(memory_format=torch.channels_last) if channels_last else low


class ResNetTiny(nn.Module):
    """A residual network of four basic blocks (ResNet, arXiv 1512.03385), small enough to train on two cores.

    The side of its last map is an eighth of the image's, which is fine enough to locate a window.

    Args:
        stem_stride: 1 keeps all detail of an image of 32 px; 2 is faster.
    """

    def __init__(self, stem_stride: int):
        super().__init__()
        self.num_features = WIDTHS[-1]
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = BasicBlock(16, 16, 1)
        self.layer2 = BasicBlock(16, 32, 2)
        self.layer3 = BasicBlock(32, 64, 2)
        self.layer4 = BasicBlock(64, 128, 2 // stem_stride)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The feature f_BD of normalised images."""
        return self.forward_head(self.forward_features(x_BCHW))

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """The last map, B × 128 × H/8 × W/8."""
        # In place, here and below: a normalisation's output is needed for nothing else, and memory is slow.
        x_BCHW = F.relu_(self.bn1(self.conv1(x_BCHW)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x_BCHW))))

    def forward_head(self, map_BCHW: Tensor, pre_logits: bool = True) -> Tensor:
        """The mean of the map, f_BD. `pre_logits` is part of timm's interface and is not used."""
        return map_BCHW.mean((2, 3))


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions with a shortcut beside them."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential()
        if stride > 1 or n_in != n_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = F.relu_(self.bn1(self.conv1(x_BCHW)))
        return F.relu_(self.bn2(self.conv2(y_BCHW)).add_(self.shortcut(x_BCHW)))


def load_encoder_state(encoder: Encoder, state: dict[str, Tensor]) -> None:
    """Load a checkpoint of any layout that encoder_state_from knows.

    Args:
        encoder: gets the weights.
        state: the checkpoint's state dict.

    Raises:
        ValueError: weights are missing, unexpected or of another shape; the message names them, and the
            encoder is unchanged.
    """
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


def encoder_state_from(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Extract the backbone's weights from the state dict of a pretraining checkpoint.

    Known layouts: MoCo-v3's (`module.base_encoder.`, otherwise `module.momentum_encoder.`), `backbone.` (ours
    and other libraries'), and a plain model. Applied to its own result it changes nothing.

    Args:
        state: the state dict of a checkpoint.

    Returns:
        The weights by timm's names, without those of projectors, predictors and classifiers.
    """
    names = {key.removeprefix("module."): value for key, value in state.items()}
    for prefix in ("base_encoder.", "momentum_encoder.", "encoder.backbone.", "backbone."):
        inside = {key.removeprefix(prefix): value for key, value in names.items() if key.startswith(prefix)}
        if inside:
            names = inside
            break
    heads = ("head.", "fc.", "projector.", "predictor.", "projection_head.", "prediction_head.")
    return {key: value for key, value in names.items() if not key.startswith(heads)}
