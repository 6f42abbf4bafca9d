"""Counting operations, against counts by hand."""

import torch
from torch import nn

from poisoncam_ray.method.encoder import Encoder, build_encoder
from poisoncam_ray.research.study.flops import forward_flops, gradcam_flops


class OneConvolution(nn.Module):
    """8 filters of 3 × 3 over 3 channels, then the mean, which has no product."""

    num_features = 8

    def __init__(self):
        super().__init__()
        self.layer4 = nn.Conv2d(3, 8, 3, padding=1)

    def forward_features(self, x):
        return self.layer4(x)

    def forward_head(self, x, pre_logits):
        return x.mean(dim=(2, 3))


def test_a_convolution_is_counted_by_hand():
    encoder = Encoder(OneConvolution(), image_size=16)
    assert forward_flops(encoder) == 2 * 8 * 3 * 9 * 16 * 16
    assert gradcam_flops(encoder) == forward_flops(encoder), "the gradient of a mean multiplies nothing"


def test_attention_is_counted_and_is_quadratic_in_the_tokens():
    def flops(size):
        return forward_flops(build_encoder("vit_tiny_convstem", size).eval())

    # A block without attention is linear in tokens: at 4 times the tokens, 4 times the operations.
    small, large = flops(32), flops(64)
    assert large > 4 * small
    encoder = build_encoder("vit_tiny_convstem", 32).eval()
    assert gradcam_flops(encoder) > forward_flops(encoder)


def test_counting_does_not_change_weights_or_gradients():
    encoder = build_encoder("resnet_tiny", 16).eval()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert forward_flops(encoder) == forward_flops(encoder) > 0
    gradcam_flops(encoder)
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    assert all(p.grad is None for p in encoder.parameters())
