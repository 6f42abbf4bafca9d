"""Convolutions over small maps as matrix products, for training on CPUs.

oneDNN works along the rows of a map, and short rows leave its vectors empty. The three passes of a 3 × 3
convolution of 512 channels over maps of 2 × 2 take 8 times as long as matrix products of the same size in
bfloat16, and 3 times in float32. Evaluation is left as it is, to the bit.

B images   C input channels   H × W input   D output channels   h × w output   k × k kernel
N = B·h·w output places   P = k·k·C inputs of a place
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

MOST_WHOLE = 2
"""Side of the output up to which all three passes are matrix products."""
MOST_WEIGHT = 4
"""Side of the output up to which the gradient of the weights is one. The other passes then gain nothing."""


class SmallMapConv2d(nn.Conv2d):
    """A square convolution that, in training, goes through matrix products where its map is small.

    Args:
        conv: a plain convolution, whose weights it shares.
    """

    def __init__(self, conv: nn.Conv2d):
        self.k, self.step, self.pad = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
        super().__init__(
            conv.in_channels, conv.out_channels, self.k, self.step, self.pad, bias=False, device="meta"
        )
        self.weight, self.training = conv.weight, conv.training

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The convolution of x_BCHW."""
        side = (max(x_BCHW.shape[-2:]) + 2 * self.pad - self.k) // self.step + 1
        if not self.training or side > MOST_WEIGHT:
            return super().forward(x_BCHW)
        weight_DCkk: Tensor = self.weight
        if torch.is_autocast_enabled(x_BCHW.device.type):
            low = torch.get_autocast_dtype(x_BCHW.device.type)
            x_BCHW, weight_DCkk = x_BCHW.to(low), weight_DCkk.to(low)
        return _Convolved.apply(x_BCHW, weight_DCkk, self.step, self.pad, side <= MOST_WHOLE)


def use_products(model: nn.Module) -> None:
    """Replace a model's convolutions by SmallMapConv2d, in place, where they are plain.

    Plain is square, of one group, padded by zeros and without a bias: every convolution of a ResNet.

    Args:
        model: the model. Its weights and their names stay the same.
    """
    for name, child in model.named_children():
        if type(child) is nn.Conv2d and _plain(child):
            setattr(model, name, SmallMapConv2d(child))
        else:
            use_products(child)


def _plain(conv: nn.Conv2d) -> bool:
    sizes = (conv.kernel_size, conv.stride, conv.padding)
    square = all(not isinstance(size, str) and len(set(size)) == 1 for size in sizes)
    simple = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return square and simple and conv.bias is None


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight_DCkk: Tensor, stride: int, pad: int, whole: bool) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight_DCkk)
        ctx.stride, ctx.pad, ctx.whole = stride, pad, whole
        if not whole:
            return F.conv2d(x_BCHW, weight_DCkk, stride=stride, padding=pad)
        patches_BhwP = _patches(x_BCHW, weight_DCkk.shape[-1], stride, pad)
        y_ND = patches_BhwP.flatten(0, 2) @ _matrix(weight_DCkk).T
        return y_ND.view(*patches_BhwP.shape[:3], -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight_DCkk = ctx.saved_tensors
        (D, C, k, _), stride, pad = weight_DCkk.shape, ctx.stride, ctx.pad
        grad_BhwD = grads[0].permute(0, 2, 3, 1).contiguous()
        grad_ND = grad_BhwD.flatten(0, 2)
        grad_x, grad_weight = None, None
        if ctx.needs_input_grad[1]:
            grad_DP = grad_ND.T @ _patches(x_BCHW, k, stride, pad).flatten(0, 2)
            grad_weight = grad_DP.view(D, k, k, C).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[0] and ctx.whole:
            grad_BhwP = (grad_ND @ _matrix(weight_DCkk)).view(*grad_BhwD.shape[:3], -1)
            grad_x = _put_back(grad_BhwP, x_BCHW.shape, k, stride, pad)
        elif ctx.needs_input_grad[0]:
            grad_BDhw = grad_BhwD.permute(0, 3, 1, 2)
            grad_x = conv2d_input(x_BCHW.shape, weight_DCkk, grad_BDhw, stride, pad)
        return grad_x, grad_weight, None, None, None


def _matrix(weight_DCkk: Tensor) -> Tensor:
    """weight_DP. No copy in the channels-last layout."""
    return weight_DCkk.permute(0, 2, 3, 1).reshape(len(weight_DCkk), -1)


def _patches(x_BCHW: Tensor, k: int, stride: int, pad: int) -> Tensor:
    """The inputs of every output place, patches_BhwP."""
    x_BHWC = F.pad(x_BCHW.permute(0, 2, 3, 1).contiguous(), (0, 0, pad, pad, pad, pad))
    patches_BhwCkk = x_BHWC.unfold(1, k, stride).unfold(2, k, stride)
    return patches_BhwCkk.permute(0, 1, 2, 4, 5, 3).flatten(3)


def _put_back(patches_BhwP: Tensor, shape: torch.Size, k: int, stride: int, pad: int) -> Tensor:
    """Add up what each input pixel gets from the patches that hold it: the gradient of _patches."""
    B, C, H, W = shape
    h, w = patches_BhwP.shape[1:3]
    patches_BhwkkC = patches_BhwP.unflatten(3, (k, k, C))
    x_BHWC = patches_BhwP.new_zeros(B, H + 2 * pad, W + 2 * pad, C)
    for i in range(k):
        for j in range(k):
            rows, columns = slice(i, i + stride * h, stride), slice(j, j + stride * w, stride)
            x_BHWC[:, rows, columns] += patches_BhwkkC[:, :, :, i, j]
    return x_BHWC[:, pad : pad + H, pad : pad + W].permute(0, 3, 1, 2)
