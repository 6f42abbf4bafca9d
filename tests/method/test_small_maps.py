"""Convolutions as matrix products: the same function and gradients as torch's own, in training only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from poisoncam_ray.method import small_maps
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.small_maps import SmallMapConv2d, use_products
from tests.examples import examples


def both(conv: nn.Conv2d) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The convolution, and its replacement with the same weights."""
    torch.manual_seed(0)
    holder = nn.Sequential(conv).to(memory_format=torch.channels_last)
    use_products(holder)
    return conv, holder[0]


def passes(conv: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = conv(x)
    return [
        y,
        *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), (x, conv.weight)),
    ]


@examples(40)
@given(
    k=st.sampled_from([1, 2, 3, 5]),
    stride=st.integers(1, 3),
    pad=st.integers(0, 2),
    height=st.integers(1, 8),
    width=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_all_passes_equal_those_of_torch(k, stride, pad, height, width, seed):
    if min(height, width) + 2 * pad < k:
        return
    torch.manual_seed(seed)
    plain, products = both(nn.Conv2d(3, 5, k, stride, pad, bias=False).double())
    assert type(products) is SmallMapConv2d and products.weight is plain.weight
    x = torch.randn(2, 3, height, width, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(passes(products, x), passes(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", [2, 4, 8])
def test_under_autocast_passes_are_in_bfloat16_and_gradients_in_the_weights_type(side):
    plain, products = both(nn.Conv2d(8, 16, 3, 1, 1, bias=False))
    x = torch.randn(4, 8, side, side).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = passes(products, x), passes(plain, x)
    assert [t.dtype for t in ours] == [t.dtype for t in theirs] == [torch.bfloat16, *[torch.float32] * 2]
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).float().norm() < 0.01 * b.float().norm()


def test_evaluation_is_torchs_own_to_the_bit(monkeypatch):
    monkeypatch.setattr(small_maps._Convolved, "apply", lambda *_: pytest.fail("products in evaluation"))
    plain, products = both(nn.Conv2d(3, 5, 3, 1, 1, bias=False))
    x = torch.randn(2, 3, 2, 2)
    assert torch.equal(products.eval()(x), plain(x))
    # Large maps are torch's own in training, too.
    assert products.train()(torch.randn(2, 3, 8, 8)).shape == (2, 5, 8, 8)


@pytest.mark.parametrize("backbone", ["resnet_tiny", "resnet18"])
def test_an_encoder_keeps_its_weights_names_and_values(backbone):
    torch.manual_seed(0)
    encoder = build_encoder(backbone, 32).train().to(memory_format=torch.channels_last)
    before = dict(encoder.named_parameters())
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        plain = encoder(x)
        use_products(encoder)
        assert any(type(module) is SmallMapConv2d for module in encoder.modules())
        torch.testing.assert_close(encoder(x), plain, rtol=1e-3, atol=1e-4)
    after = dict(encoder.named_parameters())
    assert list(after) == list(before) and all(after[key] is before[key] for key in before)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(4, 4, (3, 1), bias=False),
        nn.Conv2d(4, 4, 3, padding="same", bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False),
    ],
)
def test_other_convolutions_are_left_alone(conv):
    assert both(conv)[1] is conv
