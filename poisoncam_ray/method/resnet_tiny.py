"""A residual network small enough to pretrain on two cores: four basic blocks, 16 to 128 channels.

Written here and not taken from timm: importing timm costs every worker process of a cluster ten seconds of
CPU, more than this network needs for thousands of images.

B images   C channels   H, W pixels or cells   D feature dimensions
"""

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64, 128)


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut (ResNet, arXiv 1512.03385)."""

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
        y_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        return F.relu(self.bn2(self.conv2(y_BCHW)) + self.shortcut(x_BCHW))


class ResNetTiny(nn.Module):
    """`stem_stride` 1 keeps all of a 32 px image's detail; 2 takes a third of the time. Either way the last
    map has an eighth of the image's side, so that a window's place can still be told."""

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
        return self.forward_head(self.forward_features(x_BCHW))

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """The last map, B × 128 × H/8 × W/8."""
        x_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x_BCHW))))

    def forward_head(self, map_BCHW: Tensor, pre_logits: bool = True) -> Tensor:
        """The map's mean, f_BD."""
        return map_BCHW.mean((2, 3))
