"""Dropped tokens, against attention with a mask over them, in every ViT of timm that can be loaded."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from poisoncam_ray.method.encoder import Encoder, build_encoder
from poisoncam_ray.method.timm_backbone import prepared
from poisoncam_ray.method.tokens import embed_shown, patches, shown_patches

# One of each kind: by the tokens before the patches, their positions, the norms, the blocks and the pooling.
KINDS = (
    "vit_base_patch16_224", "deit_base_distilled_patch16_224", "vit_base_patch16_clip_224", "flexivit_base",
    "aimv2_1b_patch14_224", "eva_large_patch14_196", "vit_base_patch16_gap_224",
    "vit_base_patch16_siglip_224", "vit_base_patch16_rpn_224", "vit_base_patch16_18x2_224",
    "vit_base_patch16_xp_224", "vit_base_patch16_radio_v3",
    "vit_small_patch14_reg4_dinov2", "vit_so150m_patch16_reg4_gap_256",
    "vit_so150m_patch16_reg4_map_256", "vit_wee_patch16_reg1_gap_256", "vit_dwee_patch16_reg1_gap_256",
    "vit_pwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256", "test_vit", "test_vit2", "test_vit3",
)  # fmt: skip
NAMES = [
    pytest.param(name, marks=() if name in KINDS else pytest.mark.exhaustive)
    for name in timm.list_models()
    if timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1] in ("vision_transformer", "deit")
]
PATCH, SIDE = 4, 20
GRID = SIDE // PATCH


def small(name: str) -> Encoder:
    """The model with fewer, narrower layers and small patches; its kind of tokens and of pooling stay."""
    vit = timm.create_model(
        name, pretrained=False, num_classes=0, img_size=SIDE, patch_size=PATCH, depth=2, embed_dim=32,
        num_heads=2, mlp_ratio=2,
    )  # fmt: skip
    vit = prepared(vit, SIDE, frozen_patch=False)
    for weight in vit.parameters():
        # Some parts are zero before training: registers, scales of layers, the class token's position.
        nn.init.normal_(weight, std=0.3)
    return Encoder(vit, SIDE).eval()


def reference(encoder: Encoder, x_BCHW: torch.Tensor, shown_BG: torch.Tensor) -> torch.Tensor:
    """All tokens go through the blocks, but none attends to a hidden one; the shown ones are pooled."""
    vit, n_prefix = encoder.backbone, encoder.backbone.num_prefix_tokens
    with torch.no_grad():
        x_BCHW = (x_BCHW - encoder.pixel_mean) / encoder.pixel_std
        keys_BS = F.pad(shown_BG, (n_prefix, 0), value=True)
        n_tokens = keys_BS.shape[1]
        mask_B1SS = keys_BS[:, None, None, :].expand(-1, 1, n_tokens, -1)
        tokens_BSD = vit.forward_features(x_BCHW, attn_mask=mask_B1SS)
        shown = [tokens_SD[None, keys_S] for tokens_SD, keys_S in zip(tokens_BSD, keys_BS, strict=True)]
        f_BD = torch.cat([vit.forward_head(tokens_1SD, pre_logits=True) for tokens_1SD in shown])
    return F.normalize(f_BD, dim=1)


def masked_images(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_BCHW, fill_BC and masks m_BHW that show 8 of the 25 patches, some of them in part."""
    x_BCHW, fill_BC = torch.rand(3, 3, SIDE, SIDE, generator=generator), torch.rand(3, 3, generator=generator)
    shown_BG = torch.rand(3, GRID**2, generator=generator).argsort(dim=1) < 8
    m_BHW = shown_BG.view(3, GRID, GRID).repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2).float()
    m_BHW[:, ::3] *= 0.25
    m_BHW[:, :, 1::4] = 0
    return x_BCHW, fill_BC, m_BHW


def dropped(
    encoder: Encoder, x_BCHW: torch.Tensor, fill_BC: torch.Tensor, m_BHW: torch.Tensor
) -> torch.Tensor:
    i_B = torch.arange(len(x_BCHW))
    at_BT = (~shown_patches(m_BHW, PATCH)).int().argsort(dim=1, stable=True)[:, :8]
    return embed_shown(encoder, x_BCHW, fill_BC, m_BHW, i_B, i_B, at_BT)


@pytest.mark.parametrize("name", NAMES)
def test_dropped_tokens_equal_attention_with_a_mask(name):
    torch.manual_seed(0)
    encoder = small(name)
    x_BCHW, fill_BC, m_BHW = masked_images(torch.Generator().manual_seed(1))
    painted_BCHW = torch.lerp(fill_BC[:, :, None, None], x_BCHW, m_BHW[:, None])
    want_BD = reference(encoder, painted_BCHW, shown_patches(m_BHW, PATCH))
    torch.testing.assert_close(dropped(encoder, x_BCHW, fill_BC, m_BHW), want_BD, rtol=1e-4, atol=2e-5)
    # With all tokens the feature is another one.
    assert (want_BD - encoder.embed(painted_BCHW)).abs().max() > 1e-3


def test_a_stem_of_overlapping_patches_sees_the_painted_image():
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_convstem", 32).eval()
    x_BCHW, m_BHW = torch.rand(2, 3, 32, 32), torch.zeros(2, 32, 32)
    m_BHW[0, :10, :14], m_BHW[1, 17:, 20:] = 1, 1
    painted_BCHW, shown_BG = x_BCHW * m_BHW[:, None], shown_patches(m_BHW, 8)
    assert shown_BG.sum(dim=1).tolist() == [4, 4]
    i_B, at_BT = torch.arange(2), shown_BG.nonzero()[:, 1].view(2, 4)
    f_BD = embed_shown(encoder, x_BCHW, torch.zeros(2, 3), m_BHW, i_B, i_B, at_BT)
    torch.testing.assert_close(f_BD, reference(encoder, painted_BCHW, shown_BG), rtol=1e-4, atol=2e-5)


def test_with_every_token_shown_nothing_changes():
    torch.manual_seed(0)
    encoder = small("vit_base_patch16_224")
    x_BCHW, every_BT = torch.rand(2, 3, SIDE, SIDE), torch.arange(GRID**2).expand(2, -1)
    i_B = torch.arange(2)
    f_BD = embed_shown(
        encoder,
        x_BCHW,
        torch.zeros(2, 3),
        torch.ones(1, SIDE, SIDE, dtype=torch.bool),
        i_B,
        0 * i_B,
        every_BT,
    )
    torch.testing.assert_close(f_BD, encoder.embed(x_BCHW).detach(), rtol=1e-4, atol=2e-5)


def test_the_order_of_the_shown_tokens_does_not_matter():
    torch.manual_seed(0)
    encoder = small("vit_base_patch16_gap_224")
    x_1CHW, m_1HW, i_1 = torch.rand(1, 3, SIDE, SIDE), torch.ones(1, SIDE, SIDE), torch.tensor([0])
    fill_1C = torch.zeros(1, 3)
    one, other = (
        embed_shown(encoder, x_1CHW, fill_1C, m_1HW, i_1, i_1, torch.tensor([at]))
        for at in ([3, 7, 24], [24, 3, 7])
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


def test_patches_are_numbered_row_by_row_and_shown_if_a_pixel_is():
    x_1CHW = torch.arange(2 * 36.0).view(1, 2, 6, 6)
    patch_1GCpp = patches(x_1CHW, 2)
    assert patch_1GCpp.shape == (1, 9, 2, 2, 2)
    for g in range(9):
        y, x = g // 3 * 2, g % 3 * 2
        assert torch.equal(patch_1GCpp[0, g], x_1CHW[0, :, y : y + 2, x : x + 2])
    m_1HW = torch.zeros(1, 6, 6)
    m_1HW[0, 1, 2], m_1HW[0, 5, 5] = 0.1, 1
    assert shown_patches(m_1HW, 2).nonzero()[:, 1].tolist() == [1, 8]
    assert torch.equal(shown_patches(m_1HW, 2), shown_patches(m_1HW > 0, 2))


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "vit_base_patch16_siglip_224"])
def test_features_are_float32_where_the_network_computes_in_bfloat16(name):
    torch.manual_seed(0)
    encoder = small(name)
    x_BCHW, fill_BC, m_BHW = masked_images(torch.Generator().manual_seed(1))
    exact_BD = dropped(encoder, x_BCHW, fill_BC, m_BHW)
    encoder.freeze(torch.bfloat16)
    rounded_BD, whole_BD = dropped(encoder, x_BCHW, fill_BC, m_BHW), encoder.embed(x_BCHW)
    assert rounded_BD.dtype == whole_BD.dtype == torch.float32
    assert (rounded_BD.norm(dim=1) - 1).abs().max() < 1e-6
    assert 0 < (rounded_BD - exact_BD).abs().max() < 0.1


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "vit_tiny_convstem"])
def test_tokens_are_dropped_at_the_precision_of_whole_images(backbone):
    """By all of its tokens or as it is, a whole image has the same feature but for rounding."""
    torch.manual_seed(0)
    encoder = build_encoder(backbone, 32, 8 if "patch16" in backbone else None).eval()
    x_NCHW, all_1HW = torch.rand(3, 3, 32, 32), torch.ones(1, 32, 32)
    i_N, zero_N = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    at_NT = torch.arange(16).expand(3, -1)
    with torch.no_grad():
        exact_ND = encoder.embed(x_NCHW)
        low_ND = encoder.freeze(torch.bfloat16).embed(x_NCHW)
        shown_ND = embed_shown(encoder, x_NCHW, x_NCHW.mean(dim=(2, 3)), all_1HW, i_N, zero_N, at_NT)
    assert shown_ND.dtype == torch.float32 and not torch.equal(shown_ND, exact_ND)
    assert float((shown_ND - low_ND).abs().max()) < 0.01


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_computes_in_low_precision(name):
    encoder = small(name)
    x_NCHW, i_N = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5)), torch.arange(4)
    all_1HW, at_NT = torch.ones(1, SIDE, SIDE), torch.arange(GRID**2).expand(4, -1)
    with torch.no_grad():
        exact_ND = encoder.embed(x_NCHW)
        low_ND = encoder.freeze(torch.bfloat16).embed(x_NCHW)
        shown_ND = embed_shown(encoder, x_NCHW, x_NCHW.mean(dim=(2, 3)), all_1HW, i_N, 0 * i_N, at_NT)
    assert not torch.equal(low_ND, exact_ND)
    assert float((low_ND * exact_ND).sum(dim=1).min()) > 0.99
    assert float((low_ND * shown_ND).sum(dim=1).min()) > 0.99
