"""The small residual network: its map keeps a window's place, its blocks add to their shortcut."""

import pytest
import torch

from poisoncam_ray.method.encoder import BasicBlock, ResNetTiny


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [16, 32, 64])
def test_the_last_map_has_an_eighth_of_the_side(stride, side):
    net = ResNetTiny(stride).eval()
    map_BCHW = net.forward_features(torch.rand(2, 3, side, side))
    assert map_BCHW.shape == (2, 128, side // 8, side // 8)
    torch.testing.assert_close(net(torch.rand(2, 3, side, side)).shape, torch.Size([2, net.num_features]))


def test_the_feature_is_the_mean_over_places():
    net = ResNetTiny(2).eval()
    x_BCHW = torch.rand(2, 3, 32, 32)
    map_BCHW = net.forward_features(x_BCHW)
    by_hand = torch.stack([map_BCHW[:, :, i, j] for i in range(4) for j in range(4)]).mean(0)
    torch.testing.assert_close(net(x_BCHW), by_hand)


def test_a_block_without_its_branch_is_its_shortcut():
    block = BasicBlock(16, 16, 1).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x_BCHW = torch.rand(2, 16, 8, 8)
    torch.testing.assert_close(block(x_BCHW), x_BCHW)
