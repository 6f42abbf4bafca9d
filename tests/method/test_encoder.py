"""The encoder: features, their map, the backbones, and checkpoints of other layouts."""

import pytest
import timm
import torch

from poisoncam_ray.method.encoder import (
    BasicBlock,
    Encoder,
    ResNetTiny,
    build_encoder,
    encoder_state_from,
    load_encoder_state,
)

SMALL = [
    ("resnet_tiny", 32, None, 128, (4, 4)),
    ("vit_tiny_convstem", 32, None, 128, (4, 4)),
    ("vit_tiny_patch16_224", 32, 8, 192, (4, 4)),
    ("resnet18", 64, None, 512, (2, 2)),
]


@pytest.fixture(params=SMALL, ids=[case[0] for case in SMALL])
def case(request):
    torch.manual_seed(0)
    name, size, patch, dim, grid = request.param
    return build_encoder(name, size, patch).eval(), dim, grid


def test_the_feature_is_one_vector_per_image_and_embed_is_its_direction(case):
    encoder, dim, _ = case
    x = torch.rand(3, 3, encoder.image_size, encoder.image_size)
    f, e = encoder(x), encoder.embed(x)
    assert f.shape == (3, dim) and encoder.dim == dim
    assert torch.allclose(e.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(e * f.norm(dim=1, keepdim=True), f, atol=1e-5)


def test_low_precision_changes_the_feature_by_rounding_and_nothing_else(case):
    encoder, _, _ = case
    x = torch.rand(6, 3, encoder.image_size, encoder.image_size)
    with torch.no_grad():
        before, whole = encoder.embed(x), encoder(x)
        f_before, map_before = encoder.feature_map(x[:2])
        assert encoder.freeze(torch.bfloat16) is encoder
        low = encoder.embed(x)
        assert low.dtype == torch.float32 and not torch.equal(low, before)
        assert float((low - before).abs().max()) < 0.01
        # In other batches an image stays where it is.
        parts = torch.cat([encoder.embed(part) for part in x.split([1, 2, 3])])
        assert float((parts - low).abs().max()) < float((low - before).abs().max())
        # Gradients, heat maps and training stay as they are.
        assert torch.equal(encoder(x), whole) and encoder.backbone is not encoder.inference
        f_after, map_after = encoder.feature_map(x[:2])
        assert torch.equal(f_after, f_before) and torch.equal(map_after, map_before)
        assert torch.equal(encoder.freeze(torch.float32).embed(x), before)


def test_weights_are_cast_once(case):
    encoder, _, _ = case
    encoder.freeze(torch.bfloat16)
    layers = [m for m in encoder.inference.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    assert layers and {layer.weight.dtype for layer in layers} == {torch.bfloat16}
    assert {weight.dtype for weight in encoder.backbone.parameters()} == {torch.float32}
    if not encoder.is_vit:
        assert all(layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in layers)


def test_the_encoder_normalises_pixels(case):
    encoder, _, _ = case
    x = torch.rand(2, 3, encoder.image_size, encoder.image_size)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.allclose(encoder(x), encoder.backbone(normalised), atol=1e-5)


def test_the_feature_depends_on_the_feature_map(case):
    encoder, _, grid = case
    x = torch.rand(2, 3, encoder.image_size, encoder.image_size)
    f, m = encoder.feature_map(x)
    assert torch.allclose(f, encoder(x), atol=1e-5)
    assert m.shape[2:] == grid
    (gradient,) = torch.autograd.grad((f * torch.randn_like(f)).sum(), m)
    assert gradient.abs().sum() > 0


def test_cells_of_the_feature_map_lie_where_their_pixels_are():
    encoder = build_encoder("vit_tiny_patch16_224", 32, patch_size=8).eval()
    # Before any attention a cell depends on its own patch only.
    encoder.backbone.blocks = encoder.backbone.blocks[-1:]
    x = torch.rand(1, 3, 32, 32)
    changed = x.clone()
    changed[:, :, 8:16, 24:32] = 0
    differs = (encoder.feature_map(x)[1] - encoder.feature_map(changed)[1]).abs().sum(1)[0] > 1e-4
    assert differs.nonzero().tolist() == [[1, 3]]


def test_the_feature_map_has_gradients_with_frozen_weights_and_inside_no_grad(case):
    encoder, _, _ = case
    encoder.requires_grad_(False)
    with torch.no_grad():
        f, m = encoder.feature_map(torch.rand(1, 3, encoder.image_size, encoder.image_size))
    torch.autograd.grad(f.sum(), m)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_patch_projection_is_frozen_on_request_and_positions_always(frozen):
    vit = build_encoder("vit_tiny_patch16_224", 32, 8, frozen_patch=frozen).backbone
    assert vit.patch_embed.proj.weight.requires_grad is not frozen
    assert not vit.pos_embed.requires_grad
    assert torch.equal(vit.pos_embed[0, 0], torch.zeros(192))
    assert len(vit.pos_embed[0].unique(dim=0)) == 17


def test_every_block_of_the_tiny_resnet_contributes_before_training():
    encoder = build_encoder("resnet_tiny", 32).eval()
    x = torch.rand(2, 3, 32, 32)
    before = encoder(x)
    for stage in range(1, 5):
        block = getattr(encoder.backbone, f"layer{stage}")
        kept = block.conv2.weight.data.clone()
        block.conv2.weight.data.zero_()
        assert not torch.allclose(encoder(x), before, atol=1e-3), stage
        block.conv2.weight.data.copy_(kept)


def test_a_convolutional_stem_always_trains():
    stem = build_encoder("vit_tiny_convstem", 32, frozen_patch=True).backbone.patch_embed
    assert all(p.requires_grad for p in stem.parameters())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("resnet_tinny", 32), "did you mean 'resnet_tiny' or 'resnet_tiny_s2' or"),
        (("vit_bse_patch16_224", 224), "did you mean 'vit_base_patch16_224'"),
        (("vit_tiny_patch16_224", 40), "does not divide an image of 40 px"),
        (("vit_tiny_patch16_224", 32, 5), "patch of 5 px does not divide"),
        (("vit_tiny_convstem", 36), "does not divide an image of 36 px"),
        (("vit_tiny_convstem", 32, 4), "leave patch_size out"),
        (("resnet18", 64, 8), "leave patch_size out"),
        (("convnext_tiny", 64), "neither a ViT nor a ResNet"),
    ],
)
def test_mistakes_are_explained_in_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_encoder(*arguments)


def moco_v3_checkpoint(model: torch.nn.Module, head: str) -> dict[str, torch.Tensor]:
    """The layout that moco-v3's main_moco.py saves: both networks, with heads in place of the classifier."""
    body = {k: v for k, v in model.state_dict().items() if not k.startswith(("head.", "fc."))}
    return {
        **{f"module.base_encoder.{k}": v for k, v in body.items()},
        **{f"module.momentum_encoder.{k}": v + 1 for k, v in body.items()},
        f"module.base_encoder.{head}.0.weight": torch.rand(8, 4),
        f"module.base_encoder.{head}.1.running_mean": torch.rand(8),
        f"module.momentum_encoder.{head}.0.weight": torch.rand(8, 4),
        "module.predictor.0.weight": torch.rand(8, 4),
    }


@pytest.mark.parametrize(
    ("name", "options", "head"),
    [
        ("resnet18", {}, "fc"),
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}, "head"),
    ],
)
def test_moco_v3_checkpoints_load_into_the_encoder(name, options, head):
    model = timm.create_model(name, num_classes=10, **options).eval()
    encoder = build_encoder(name, 32, options.get("patch_size")).eval()
    load_encoder_state(encoder, moco_v3_checkpoint(model, head))
    x = torch.rand(2, 3, 32, 32)
    model.reset_classifier(0)
    assert torch.allclose(encoder.backbone(x), model(x), atol=1e-5)


def test_other_layouts_give_the_same_weights():
    encoder = build_encoder("resnet_tiny", 32)
    plain = encoder.backbone.state_dict()
    layouts = {
        "ours": encoder.state_dict(),
        "plain": plain,
        "data parallel": {f"module.{k}": v for k, v in plain.items()} | {"module.fc.weight": torch.rand(1)},
        "backbone": {f"backbone.{k}": v for k, v in plain.items()} | {"projector.0.weight": torch.rand(1)},
        "momentum only": {f"module.momentum_encoder.{k}": v for k, v in plain.items()},
    }
    for layout, state in layouts.items():
        found = encoder_state_from(state)
        assert found.keys() == plain.keys(), layout
        assert encoder_state_from(found).keys() == plain.keys(), layout


def test_loading_an_encoders_own_state_gives_the_same_encoder():
    one, two = build_encoder("resnet_tiny", 32).eval(), build_encoder("resnet_tiny", 32).eval()
    x = torch.rand(2, 3, 32, 32)
    assert not torch.allclose(one(x), two(x), atol=1e-4)
    load_encoder_state(two, one.state_dict())
    assert torch.equal(one(x), two(x))


def test_a_checkpoint_that_does_not_fit_is_refused_with_its_keys_and_changes_nothing():
    encoder: Encoder = build_encoder("resnet_tiny", 32)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    state = {k: v + 1 for k, v in before.items()}
    state["backbone.surprise"] = state.pop("backbone.bn1.weight")
    state["backbone.conv1.weight"] = torch.zeros(16, 3, 7, 7)
    with pytest.raises(ValueError) as caught:
        load_encoder_state(encoder, state)
    for part in (
        "1 missing (bn1.weight)",
        "1 unexpected (surprise)",
        "conv1.weight (16, 3, 7, 7) instead of",
    ):
        assert part in str(caught.value)
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [16, 32, 64])
def test_the_last_map_has_an_eighth_of_the_images_side(stride, side):
    net = ResNetTiny(stride).eval()
    map_BCHW = net.forward_features(torch.rand(2, 3, side, side))
    assert map_BCHW.shape == (2, 128, side // 8, side // 8)
    torch.testing.assert_close(net(torch.rand(2, 3, side, side)).shape, torch.Size([2, net.num_features]))


def test_the_feature_is_the_mean_of_the_last_map():
    net = ResNetTiny(2).eval()
    x_BCHW = torch.rand(2, 3, 32, 32)
    map_BCHW = net.forward_features(x_BCHW)
    by_hand = torch.stack([map_BCHW[:, :, i, j] for i in range(4) for j in range(4)]).mean(0)
    torch.testing.assert_close(net(x_BCHW), by_hand)


def test_a_block_with_a_zero_branch_equals_its_shortcut():
    block = BasicBlock(16, 16, 1).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x_BCHW = torch.rand(2, 16, 8, 8)
    torch.testing.assert_close(block(x_BCHW), x_BCHW)
