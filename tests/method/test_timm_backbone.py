"""timm's networks as MoCo-v3 trains them: what is frozen, and which arguments are refused."""

import pytest
import torch

from poisoncam_ray.method.timm_backbone import from_timm, vit_tiny_convstem


def test_a_vit_has_fixed_positions_and_a_frozen_patch_projection():
    vit = from_timm("vit_tiny_patch16_224", 32, 8, frozen_patch=True, ours=())
    frozen = {name for name, weight in vit.named_parameters() if not weight.requires_grad}
    assert frozen == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    # Sines and cosines of two dimensions: all patches differ, and the class token's position is zero.
    assert vit.pos_embed[0, 0].abs().sum() == 0
    assert len(vit.pos_embed[0, 1:].unique(dim=0)) == 16


def test_a_convolutional_stem_is_trained_and_gives_one_token_per_patch():
    vit = vit_tiny_convstem(32, None)
    assert all(weight.requires_grad for weight in vit.patch_embed.parameters())
    assert vit.patch_embed(torch.rand(2, 3, 32, 32)).shape == (2, 16, 128)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: vit_tiny_convstem(32, 16), "8 px patches"),
        (lambda: vit_tiny_convstem(36, None), "does not divide"),
        (lambda: from_timm("vit_tiny_patch16_224", 40, 16, True, ()), "does not divide"),
        (lambda: from_timm("resnet19", 32, None, True, ()), "did you mean"),
        (lambda: from_timm("convnext_tiny", 32, None, True, ()), "neither a ViT nor a ResNet"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make, words):
    with pytest.raises((ValueError, AssertionError), match=words):
        make()
