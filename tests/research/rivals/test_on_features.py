"""Scores of images from features, and scores against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from poisoncam_ray.research.rivals.measure import auc, figures, recall_at
from poisoncam_ray.research.rivals.on_features import (
    LEAST,
    SMALL,
    activation_clustering,
    local_outlier_factor,
    neighbour_distance,
    neighbour_flops,
    spectral_signature,
    svd_flops,
)


def normal(n: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_an_image_far_from_all_is_the_farthest():
    f_ND = torch.cat([normal(100), torch.full((1, 8), 9.0)])
    score_N = neighbour_distance(f_ND, k=5)
    assert int(score_N.argmax()) == 100
    d_NN = torch.cdist(f_ND, f_ND)
    expected_N = d_NN.sort(dim=1).values[:, 1:6].mean(dim=1)
    assert torch.allclose(score_N, expected_N, atol=1e-3)


def test_the_local_outlier_factor_knows_how_dense_it_is_around():
    """A point beside a dense group is an outlier though a sparse group's points are farther apart."""
    dense_nD, sparse_nD = normal(60) * 0.01, normal(60, seed=1) + 50
    f_ND = torch.cat([dense_nD, sparse_nD, torch.full((1, 8), 0.3)])
    factor_N = local_outlier_factor(f_ND, k=10)
    assert int(factor_N.argmax()) == 120 and factor_N[120] > 3
    assert factor_N[:120].max() < 2
    assert int(neighbour_distance(f_ND, k=10).argmax()) != 120


def test_equal_images_have_finite_scores():
    f_ND = torch.cat([torch.zeros(30, 8), normal(10)])
    assert (
        torch.isfinite(local_outlier_factor(f_ND, k=5)).all()
        and (neighbour_distance(f_ND, 5)[:30] == 0).all()
    )


def planted() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Two clusters of 80; eight of the second lie together, apart from the rest; and one image alone."""
    f_ND = torch.cat([normal(80), normal(80, seed=1) + 20, torch.full((1, 8), -40.0)])
    f_ND[152:160, 0] += 12
    y_N = torch.tensor([0] * 80 + [1] * 80 + [2])
    return f_ND, y_N, np.array([False] * 152 + [True] * 8 + [False])


@pytest.mark.parametrize("rival", [spectral_signature, activation_clustering])
def test_what_lies_apart_in_its_cluster_is_found(rival):
    f_ND, y_N, poisoned_N = planted()
    score_N = rival(f_ND, y_N)
    assert auc(score_N.numpy(), poisoned_N) > 0.97
    # A cluster of fewer than LEAST images has no directions.
    assert LEAST > 1 and score_N[-1] == 0


def test_activation_clustering_suspects_no_half():
    """Of two equal parts neither is small."""
    f_ND = torch.cat([normal(40), normal(40, seed=1) + 30])
    assert SMALL < 0.5 and (activation_clustering(f_ND, torch.zeros(80, dtype=torch.int64)) == 0).all()


def test_operations_grow_with_the_images():
    assert neighbour_flops(100, 8) == 2 * 100 * 100 * 8
    y_N = torch.tensor([0] * 50 + [1] * 50)
    assert svd_flops(torch.cat([y_N, y_N + 2]), 8) == 2 * svd_flops(y_N, 8) > 0


def test_auc_is_the_share_of_pairs_in_order():
    score_N, poisoned_N = np.array([3, 1, 2, 2, 0.5]), np.array([True, False, True, False, False])
    pairs = [(p > c) + (p == c) / 2 for p in score_N[poisoned_N] for c in score_N[~poisoned_N]]
    assert auc(score_N, poisoned_N) == pytest.approx(np.mean(pairs))
    assert auc(score_N, np.zeros(5, bool)) is None


def test_recall_is_taken_at_a_rate_of_false_positives():
    score_N = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], float)
    poisoned_N = np.array([True, False, True, False, *[False] * 5, True])
    assert recall_at(score_N, poisoned_N, 0.0) == pytest.approx(1 / 3)
    assert recall_at(score_N, poisoned_N, 1 / 7) == pytest.approx(2 / 3)
    assert recall_at(score_N, poisoned_N, 1.0) == 1
    # Equal scores are flagged together or not at all.
    assert recall_at(np.zeros(4), np.array([True, True, False, False]), 0.5) == 0


def test_figures_of_a_corpus_without_poison():
    found = figures(np.arange(4.0), np.array([False, False, False, True]), np.zeros(4, bool))
    assert found["recall"] is None and found["auc"] is None
    assert (found["false_positive_rate"], found["n_flagged_clean"]) == (0.25, 1)
