"""Superclusters: clusters that lie together."""

import pytest
import torch

from poisoncam_ray.method.clusters import superclusters


def cones(n_cones: int, per_cone: int) -> torch.Tensor:
    """Clusters in a few narrow cones of directions, cone after cone."""
    generator = torch.Generator().manual_seed(n_cones)
    axis_GD = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q[:n_cones]
    spread_KD = 0.1 * torch.randn(n_cones * per_cone, 16, generator=generator) / 4
    return axis_GD.repeat_interleave(per_cone, 0) + spread_KD


@pytest.mark.parametrize("seed", range(5))
def test_clusters_that_lie_together_are_one_supercluster(seed):
    supercluster_K = superclusters(cones(2, 8), seed)
    assert supercluster_K.dtype == torch.int64
    assert (
        len(supercluster_K[:8].unique()) == len(supercluster_K[8:].unique()) == 1
        and supercluster_K[0] != supercluster_K[8]
    )


def test_superclusters_follow_directions_and_the_seed():
    c_KD = cones(5, 16)
    supercluster_K = superclusters(c_KD, 3)
    length_K1 = torch.rand(len(c_KD), 1, generator=torch.Generator().manual_seed(0)) + 0.5
    assert torch.equal(superclusters(c_KD * length_K1, 3), supercluster_K)
    assert torch.equal(superclusters(c_KD, 3), supercluster_K)


@pytest.mark.parametrize(("k", "most"), [(1, 1), (2, 2), (7, 2), (16, 2), (80, 10)])
def test_an_eighth_as_many_superclusters_as_clusters(k, most):
    supercluster_K = superclusters(torch.randn(k, 6, generator=torch.Generator().manual_seed(1)), 0)
    assert supercluster_K.unique().tolist() == list(range(most))


def test_clusters_in_one_place_are_one_supercluster():
    assert superclusters(torch.ones(20, 4), 0).tolist() == [0] * 20
