"""Counting operations, against counts by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from poisoncam_ray.method.encoder import Encoder, build_encoder
from poisoncam_ray.method.geometry import inside
from poisoncam_ray.method.race import RaceRules
from poisoncam_ray.method.tokens import shown_patches
from poisoncam_ray.research.benchmark.candidate import FULL, shipped_way
from poisoncam_ray.research.study.flops import (
    NAIVE,
    Way,
    bill,
    forward_flops,
    gradcam_flops,
    savers,
    shown_flops,
    window_patches,
)


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


@pytest.fixture(scope="module")
def vit() -> Encoder:
    encoder = build_encoder("vit_tiny_patch16_224", 64, 8).eval()
    encoder.backbone.blocks = encoder.backbone.blocks[:2]
    return encoder


def by_hand(encoder: Encoder, n_shown: int) -> int:
    """Projection of the patches; per block: keys, queries, values, attention, projection and the MLP."""
    dim, tokens, patch = encoder.dim, n_shown + 1, encoder.patch_size
    block = 2 * tokens * (3 + 1 + 8) * dim**2 + 2 * 2 * tokens**2 * dim
    return 2 * n_shown * 3 * patch**2 * dim + len(encoder.backbone.blocks) * block


@pytest.mark.parametrize("n_shown", [1, 7, 64])
def test_a_dropped_token_costs_nothing(vit, n_shown):
    assert shown_flops(vit, n_shown) == by_hand(vit, n_shown)
    assert shown_flops(vit, 64) == forward_flops(vit)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("side", "window", "patch"), [(24, 11, 8), (24, 3, 8), (32, 16, 4), (16, 16, 8)])
def test_patches_of_every_place_of_a_window_equal_a_count_over_masks(side, window, patch, keep):
    places = [(x, y) for y in range(side - window + 1) for x in range(side - window + 1)]
    box_N4 = torch.tensor([[x, y, x + window, y + window] for x, y in places])
    m_NHW = inside(box_N4, side) if keep else ~inside(box_N4, side)
    counted = torch.bincount(shown_patches(m_NHW, patch).sum(dim=1)).tolist()
    found = window_patches(side, window, patch, keep)
    assert {n: times for n, times in found.items() if times} == {n: t for n, t in enumerate(counted) if t}


def test_the_naive_bill_is_one_whole_forward_for_each_mask_and_paste(vit):
    naive = bill(vit, Way(**{**NAIVE.__dict__, "cell": 8, "window": 17}))
    assert naive.forwards == 1256 and naive.total == 1256 * forward_flops(vit)
    assert (naive.masks, naive.pastes) == (256 * forward_flops(vit), 1000 * forward_flops(vit))


def test_a_bill_by_hand(vit):
    # Windows of one patch, on 8 × 8 places which are all patches of their own.
    way = Way(
        "keep_only",
        64,
        8,
        8,
        "drop",
        refine=False,
        checks=1,
        flip_images=100,
        rules=RaceRules(10, 10, 0.5),
        candidates=4,
    )
    found = bill(vit, way)
    whole = forward_flops(vit)
    assert found.masks == 64 * by_hand(vit, 1)
    # Four candidates on 10 images, two on 90 more.
    assert found.pastes == (4 * 10 + 2 * 90) / 4 * whole and found.checks == whole
    assert found.forwards == 64 + 1 + 55
    assert bill(vit, Way("keep_only", 64, 8, 8, refine=False)).masks == 64 * whole


def test_refinement_is_billed_by_its_shifts_and_passes(vit):
    whole = forward_flops(vit)
    way = Way("keep_only", 4, 8, 20, "paint", True, 13, False, 2, checks=0, flip_images=1)
    assert bill(vit, way).refinement == 26 * whole and bill(vit, way).forwards == 4 + 26 + 1
    assert bill(vit, replace(way, refine_shown=True)).refinement == 76 * whole
    dropped = bill(vit, replace(way, hiding="drop")).refinement
    places = window_patches(64, 20, 8, keep=False)
    mean = sum(n * by_hand(vit, shown) for shown, n in places.items()) / places.total()
    assert dropped == pytest.approx(26 * mean)


def test_every_saver_saves_and_a_cnn_drops_nothing(vit):
    ours = Way(
        "mixed_binary",
        64,
        32,
        60,
        "drop",
        True,
        13,
        False,
        checks=2,
        rules=RaceRules(keep=1 / 16),
        candidates=16,
    )
    found = savers(vit, NAIVE, ours)
    totals = [bill_of.total for _, bill_of in found]
    assert len(totals) == 7 and found[-1][1] == bill(vit, ours)
    dropped = totals[2:5]
    assert dropped == sorted(dropped, reverse=True) and totals[-1] == min(totals)
    painted = savers(vit, NAIVE, replace(ours, hiding="paint"))
    assert [name for name, _ in painted] == [name for name, _ in found if "dropped" not in name]
    resnet = build_encoder("resnet_tiny", 64).eval()
    painted, drop = (bill(resnet, Way(masks=64, cell=8, window=20, hiding=h)) for h in ("paint", "drop"))
    assert painted == drop


def test_the_preset_costs_a_tenth_of_the_naive_bill():
    """The mark: a ViT-S/16 at 224 px, 16 candidates in a race."""
    encoder = build_encoder("vit_small_patch16_224", 224).eval()
    ours = bill(encoder, shipped_way(FULL, encoder.patch_size))
    assert 10 * ours.total <= bill(encoder, NAIVE).total
