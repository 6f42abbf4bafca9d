"""Masked images through an encoder, painted or with hidden tokens dropped."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

from poisoncam_ray.method import tokens
from poisoncam_ray.method.cam import (
    candidate_windows,
    masked_features,
    mean_colour,
    refine_windows,
    windows_in_one_pass,
)
from poisoncam_ray.method.clusters import assign
from poisoncam_ray.method.encoder import Encoder, build_encoder
from poisoncam_ray.method.geometry import inside
from poisoncam_ray.method.masked import Masked, embed_masked, even_parts
from poisoncam_ray.method.masks import keep_only, make_masks
from poisoncam_ray.method.score import occlusion_flips
from poisoncam_ray.method.timm_backbone import prepared
from tests.examples import examples

SIDE, PATCH = 32, 8
N_PATCHES = (SIDE // PATCH) ** 2


@pytest.fixture(scope="module")
def vit() -> Encoder:
    torch.manual_seed(0)
    backbone = VisionTransformer(
        img_size=SIDE, patch_size=PATCH, embed_dim=32, depth=2, num_heads=2, num_classes=0
    )
    return Encoder(prepared(backbone, SIDE, frozen_patch=False), SIDE).eval()


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(n))


def one_by_one(encoder: Encoder, masked: Masked) -> torch.Tensor:
    """The feature of each masked image with its hidden tokens dropped, each alone."""
    features = []
    for image, mask in zip(masked.image_A.tolist(), masked.mask_A.tolist(), strict=True):
        m_1HW = masked.m_BHW[mask][None]
        at_1T = tokens.shown_patches(m_1HW, PATCH).nonzero()[:, 1][None]
        x_1CHW, fill_1C, zero_1 = masked.x_NCHW[image][None], masked.fill_NC[image][None], torch.tensor([0])
        features.append(tokens.embed_shown(encoder, x_1CHW, fill_1C, m_1HW, zero_1, zero_1, at_1T))
    return torch.cat(features)


@pytest.mark.parametrize("strategy", ["keep_only", "sliding", "random", "mixed", "interval"])
@pytest.mark.parametrize("batch", [1, 3, 500])
def test_every_masked_image_is_embedded_once_whatever_the_batch(vit, strategy, batch):
    m_BHW = make_masks(strategy, 18, SIDE, 8, 11, torch.Generator().manual_seed(0))
    masked = Masked.product(images(2), mean_colour(images(2)), m_BHW)
    numbers, features = zip(*embed_masked(vit, masked, batch, "drop"), strict=True)
    i_A = torch.cat(numbers)
    assert i_A.sort().values.tolist() == list(range(2 * len(m_BHW)))
    want_AD = one_by_one(vit, masked)
    torch.testing.assert_close(torch.cat(features), want_AD[i_A], rtol=1e-4, atol=2e-5)


def test_a_stem_of_whole_images_reads_no_more_of_them_at_once_than_a_batch():
    torch.manual_seed(0)
    encoder, seen = build_encoder("vit_tiny_convstem", SIDE).eval(), []
    stem = encoder.backbone.patch_embed
    stem.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    masks = make_masks("keep_only", 16, SIDE, 8, 11, torch.Generator().manual_seed(0))
    masked_features(encoder, images(4), masks, mean_colour(images(4)), 5, "drop")
    assert sum(seen) == 4 * 16 and max(seen) <= 5


def test_a_mask_that_hides_no_whole_patch_gives_the_painted_feature(vit):
    m_BHW = make_masks("interval", 5, SIDE, 8, 11, torch.Generator().manual_seed(0)).clamp(min=0.01)
    x_NCHW = images(2)
    painted, dropped = (
        masked_features(vit, x_NCHW, m_BHW, mean_colour(x_NCHW), 4, hiding) for hiding in ("paint", "drop")
    )
    torch.testing.assert_close(dropped, painted, rtol=1e-4, atol=2e-5)
    m_BHW[:, :PATCH, :PATCH] = 0
    painted, dropped = (
        masked_features(vit, x_NCHW, m_BHW, mean_colour(x_NCHW), 4, hiding) for hiding in ("paint", "drop")
    )
    assert (dropped - painted).abs().max() > 1e-3


def test_as_many_tokens_go_through_at_once_as_whole_images_have(vit, monkeypatch):
    """Images with the same number of tokens share a forward pass, whichever image and mask they come from."""
    shapes, whole = [], 16 + 1

    def recorded(encoder, x_NCHW, fill_NC, m_BHW, image_M, mask_M, at_MT):
        shapes.append((len(at_MT), at_MT.shape[1] + 1, len(image_M.unique())))
        return torch.zeros(len(at_MT), encoder.dim)

    monkeypatch.setattr("poisoncam_ray.method.masked.embed_shown", recorded)
    m_BHW = make_masks("keep_only", 36, SIDE, 8, 14, torch.Generator())
    x_NCHW, batch = images(12), 8
    list(embed_masked(vit, Masked.product(x_NCHW, x_NCHW.mean((2, 3)), m_BHW), batch, "drop"))
    sizes = {n_tokens for _, n_tokens, _ in shapes}
    assert sum(n for n, _, _ in shapes) == 12 * 36 and len(sizes) > 1
    for n, n_tokens, _ in shapes:
        assert n * n_tokens <= batch * whole
        assert n * n_tokens > batch * whole / 2, "half full"
    assert max(n_images for _, _, n_images in shapes) > 1


@examples(60)
@given(n=st.integers(1, 300), most=st.integers(1, 50))
def test_parts_are_as_few_and_as_even_as_can_be(n, most):
    parts = even_parts(torch.arange(n), most)
    assert torch.cat(parts).tolist() == list(range(n))
    sizes = [len(part) for part in parts]
    assert len(parts) == math.ceil(n / most) and max(sizes) <= most and max(sizes) - min(sizes) <= 1


def test_what_has_no_tokens_or_hides_all_of_them_is_refused(vit):
    x_NCHW, m_BHW = images(1), torch.ones(2, SIDE, SIDE)
    resnet = build_encoder("resnet_tiny", SIDE).eval()
    with pytest.raises(ValueError, match="Only a ViT has tokens"):
        masked_features(resnet, x_NCHW, m_BHW, torch.zeros(1, 3), 4, "drop")
    m_BHW[1] = 0
    with pytest.raises(ValueError, match="hides the whole image"):
        masked_features(vit, x_NCHW, m_BHW, torch.zeros(1, 3), 4, "drop")


@pytest.fixture
def counts(vit):
    """The number of patch tokens of every image that goes through the encoder."""
    seen: list[int] = []

    def count(blocks, args):
        seen.extend([args[0].shape[1] - 1] * len(args[0]))

    handle = vit.backbone.blocks.register_forward_pre_hook(count)
    yield seen
    handle.remove()


def test_keep_only_and_refined_windows_cost_their_tokens_alone(vit, counts):
    x_NCHW = images(2)
    fill_NC, own_N, c_KD = mean_colour(x_NCHW), torch.tensor([0, 1]), torch.eye(vit.dim)[:3]
    m_BHW = make_masks("keep_only", 36, SIDE, 8, 14, torch.Generator())
    masked_features(vit, x_NCHW, m_BHW, fill_NC, 8, "drop")
    # 14 pixels lie in two or three patches of 8 along each side.
    assert len(counts) == 72 and set(counts) == {4, 6, 9}
    counts.clear()
    box_N4 = torch.tensor([[3, 4, 14, 15], [16, 8, 27, 19]])
    refine_windows(vit, x_NCHW, box_N4, own_N, c_KD, "distance", fill_NC, 8, "drop", n_hidden=0)
    assert len(counts) == 2 * 25 and max(counts) <= 9
    counts.clear()
    occlusion_flips(
        vit, x_NCHW, torch.tensor([[3, 4, 14, 15], [8, 8, 24, 24]]), own_N, c_KD, fill_NC, 8, "drop"
    )
    # The first window covers no whole patch, the second four.
    assert sorted(counts) == [N_PATCHES - 4, N_PATCHES]


@pytest.mark.parametrize("hiding", ["paint", "drop"])
def test_one_pass_gives_the_cluster_of_the_unmasked_image_and_the_same_window(vit, hiding):
    x_NCHW = images(4)
    c_KD = torch.nn.functional.normalize(vit.embed(images(6)).detach() + 0.01, dim=1)
    m_BHW = make_masks("mixed", 32, SIDE, 8, 11, torch.Generator().manual_seed(0))
    keep_B, fill_NC = keep_only("mixed", len(m_BHW)), mean_colour(x_NCHW)
    own_N, box_N4, a_NHW = windows_in_one_pass(
        vit, x_NCHW, c_KD, m_BHW, "distance", keep_B, 11, fill_NC, 7, hiding
    )
    assert torch.equal(own_N, assign(vit.embed(x_NCHW).detach(), c_KD)[0])
    given_N4, given_NHW = candidate_windows(
        vit, x_NCHW, own_N, c_KD, m_BHW, "distance", keep_B, 11, fill_NC, 7, hiding
    )
    torch.testing.assert_close(a_NHW, given_NHW, rtol=1e-3, atol=1e-3)
    assert (box_N4 - given_N4).abs().max() <= 1


def test_hidden_and_shown_windows_are_each_other_s_complement(vit):
    box_N4 = torch.tensor([[3, 4, 14, 15]])
    shown_1HW = inside(box_N4, SIDE)
    zero_1 = torch.tensor([0])
    x_1CHW, fill_1C = images(1), torch.zeros(1, 3)
    shown, hidden = (
        Masked(x_1CHW, fill_1C, m_1HW, zero_1, zero_1).painted(zero_1) for m_1HW in (shown_1HW, ~shown_1HW)
    )
    assert torch.equal(shown + hidden, x_1CHW)
