"""k-means, the assignment of features to centroids, and the number of clusters."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.method import clusters
from poisoncam_ray.method.clusters import assign, auto_k, kmeans, superclusters
from tests.examples import examples


def blobs(n_blobs: int, each: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """`each` points near each of `n_blobs` distant corners, and the corners."""
    generator = torch.Generator().manual_seed(seed)
    corner_KD = 10 * torch.eye(n_blobs)
    noise_ND = 0.1 * torch.randn(n_blobs * each, n_blobs, generator=generator)
    return corner_KD.repeat_interleave(each, 0) + noise_ND, corner_KD


def test_centroids_are_the_means_of_their_features():
    f_ND, _ = blobs(4, 25)
    c_KD = kmeans(f_ND, 4, iterations=20, seed=3)
    y_N, _ = assign(f_ND, c_KD)
    for k in range(len(c_KD)):
        torch.testing.assert_close(c_KD[k], f_ND[y_N == k].mean(0), rtol=0, atol=1e-4)


def test_centroids_depend_on_the_seed_only():
    f_ND = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    first, again, other = (kmeans(f_ND, 12, iterations=5, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_kmeans_uses_all_features_and_does_not_change_them():
    f_ND, corner_KD = blobs(2, 600)
    before = f_ND.clone()
    c_KD = kmeans(f_ND, 2, iterations=10, seed=0)
    assert torch.equal(f_ND, before)
    distance_KK = torch.cdist(c_KD, corner_KD)
    assert distance_KK.amin(1).max() < 0.1


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_duplicate_features_give_fewer_centroids(distinct):
    f_ND = torch.nn.functional.normalize(
        torch.randn(distinct, 6, generator=torch.Generator().manual_seed(2)), dim=1
    ).repeat(20, 1)
    c_KD = kmeans(f_ND, min(len(f_ND), 12), iterations=10, seed=0)
    assert torch.isfinite(c_KD).all()
    assert 1 <= len(c_KD) <= distinct
    assert len(c_KD.unique(dim=0)) == len(c_KD)


@examples(25)
@given(n=st.integers(2, 40), k=st.integers(1, 40), repeats=st.integers(1, 4), seed=st.integers(0, 99))
def test_no_cluster_is_empty(n, k, repeats, seed):
    f_ND = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)).repeat(repeats, 1)
    c_KD = kmeans(f_ND, min(k, n), iterations=6, seed=seed)
    y_N, _ = assign(f_ND, c_KD)
    assert torch.isfinite(c_KD).all()
    assert y_N.unique().tolist() == list(range(len(c_KD)))


def test_more_clusters_than_features_are_refused():
    with pytest.raises(ValueError, match="5 clusters from 4 features"):
        kmeans(torch.randn(4, 3), 5, iterations=3, seed=0)


def test_features_that_are_not_finite_are_refused():
    f_ND = torch.randn(4, 3)
    f_ND[2, 1] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        kmeans(f_ND, 2, iterations=3, seed=0)


@examples(30)
@given(n=st.integers(1, 30), k=st.integers(1, 12), seed=st.integers(0, 999), at_once=st.integers(1, 40))
def test_assign_equals_a_double_loop_whatever_the_chunks(n, k, seed, at_once):
    generator = torch.Generator().manual_seed(seed)
    f_ND, c_KD = torch.randn(n, 5, generator=generator), torch.randn(k, 5, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "DISTANCES_AT_ONCE", at_once)
        y_N, distance_N = assign(f_ND, c_KD)
    for i in range(n):
        slow = [float((f_ND[i] - c_KD[j]).pow(2).sum().sqrt()) for j in range(k)]
        assert slow[int(y_N[i])] == pytest.approx(min(slow), abs=1e-4)
        assert float(distance_N[i]) == pytest.approx(min(slow), abs=1e-4)


def test_among_equal_distances_the_lowest_index_wins():
    c_KD = torch.tensor([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0]])
    assert assign(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), c_KD)[0].tolist() == [1, 1]


def test_auto_k_at_the_papers_size_and_at_its_bounds():
    assert auto_k(126_689) == 1068
    assert auto_k(3000) == 164
    assert auto_k(2) == auto_k(8) == 2
    assert auto_k(100) == 25
    with pytest.raises(ValueError, match="at least 2 images"):
        auto_k(1)


@given(st.integers(2, 10**9))
def test_auto_k_never_exceeds_the_images(n):
    assert 2 <= auto_k(n) <= n


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
