"""Search outside the cluster: its checks, its superclusters, its windows."""

from __future__ import annotations

import pytest
import torch

from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.cam import gradcam_windows
from poisoncam_ray.method.clusters import assign, superclusters
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.masked import embed_masked
from poisoncam_ray.method.masks import make_masks
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.scorer import find_windows, search_masks
from poisoncam_ray.stages.search import Search, superclusters_of


def test_a_budget_too_small_for_one_round_is_refused_before_the_work():
    config = load_config(overrides=["search.max_candidates=99", "cluster.k=50"])
    Search().check(config, None)
    with pytest.raises(UserError, match=r"search.max_candidates=99 does not allow one round.* set it to 100"):
        Search().check(config, 60_000)
    Search().check(load_config(overrides=["search.max_candidates=100", "cluster.k=50"]), 60_000)


def test_superclusters_are_computed_once(tmp_path):
    out, c_KD = Folder(str(tmp_path)), torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    supercluster_K = superclusters_of(out, c_KD, 0)
    assert supercluster_K.dtype == torch.int64 and torch.equal(supercluster_K, superclusters(c_KD, 0))
    assert not torch.equal(superclusters(c_KD, 5), supercluster_K)
    assert torch.equal(superclusters_of(out, c_KD, 5), supercluster_K)


def test_windows_are_found_by_the_configured_strategy_and_refined():
    torch.manual_seed(0)
    encoder = build_encoder("resnet_tiny_s2", 32).eval()
    x_NCHW = torch.rand(3, 3, 32, 32)
    c_KD = torch.nn.functional.normalize(torch.randn(4, encoder.dim), dim=1)
    own_N, found = assign(encoder.embed(x_NCHW).detach(), c_KD)[0], {}
    for strategy in ("gradcam", "mixed"):
        for refine in (False, True):
            config = load_config(
                overrides=[f"search.strategy={strategy}", f"search.refine={refine}", "search.masks=8"]
            )
            masks = search_masks(config, encoder)
            assert (masks is None) == (strategy == "gradcam")
            found_N, found[strategy, refine] = find_windows(config, encoder, x_NCHW, c_KD, masks)
            assert torch.equal(found_N, own_N)
    peer_N4 = gradcam_windows(encoder, x_NCHW, own_N, c_KD, config.window_px)
    assert torch.equal(found["gradcam", False], peer_N4)
    assert not torch.equal(found["mixed", False], peer_N4)
    for strategy in ("gradcam", "mixed"):
        coarse_N4, fine_N4 = found[strategy, False], found[strategy, True]
        assert not torch.equal(fine_N4, coarse_N4)
        assert int((fine_N4 - coarse_N4).abs().max()) <= config.window_px // 2


@pytest.mark.parametrize(
    ("backbone", "patch", "window", "drops"),
    [
        ("vit_tiny_patch16_224", 4, 0.35, True),
        ("vit_tiny_convstem", 8, 0.625, True),
        ("vit_tiny_convstem", 8, 0.6, False),
        ("resnet_tiny_s2", None, 0.35, False),
    ],
)
def test_tokens_are_dropped_where_there_are_any_and_windows_hold_some(
    backbone, patch, window, drops, monkeypatch
):
    torch.manual_seed(0)
    encoder, x_NCHW = build_encoder(backbone, 32, patch).eval(), torch.rand(2, 3, 32, 32)
    c_KD = torch.nn.functional.normalize(torch.randn(4, encoder.dim), dim=1)
    seen: list[tuple[str, int]] = []

    def spy(encoder, masked, batch, hiding="paint"):
        for i_M, f_MD in embed_masked(encoder, masked, batch, hiding):
            seen.append((hiding, len(i_M)))
            yield i_M, f_MD

    monkeypatch.setattr("poisoncam_ray.method.cam.embed_masked", spy)
    for refine_hidden in (25, 5, 0):
        seen.clear()
        config = load_config(
            overrides=[
                "search.strategy=mixed_binary",
                "search.masks=8",
                "search.hiding=drop",
                f"search.window={window}",
                f"search.refine_hidden={refine_hidden}",
            ]
        )
        masks = search_masks(config, encoder)
        # 0.125 of 32 px are 4 px; a cell is made of whole patches.
        side = patch if drops else 4
        assert torch.equal(
            masks[:, ::side, ::side].repeat_interleave(side, 1).repeat_interleave(side, 2)[:4], masks[:4]
        )
        find_windows(config, encoder, x_NCHW, c_KD, masks)
        # One mask more hides nothing.
        assert {hiding for hiding, _ in seen} == {"drop" if drops else "paint"}
        assert sum(n for _, n in seen) == 2 * (9 + 25 + refine_hidden)


@pytest.mark.parametrize(
    ("strategy", "cell"), [("interval", 5), ("mixed", 5), ("random", 4), ("mixed_binary", 4)]
)
def test_only_cells_that_hide_tokens_are_made_of_whole_patches(strategy, cell):
    encoder = build_encoder("vit_tiny_patch16_224", 32, 4).eval()
    config = load_config(
        overrides=[f"search.strategy={strategy}", "search.masks=8", "search.hiding=drop", "search.cell=0.15"]
    )
    wanted = make_masks(strategy, 8, 32, cell, config.window_px, torch.Generator().manual_seed(config.seed))
    assert config.cell_px == 5 and torch.equal(search_masks(config, encoder), wanted)
