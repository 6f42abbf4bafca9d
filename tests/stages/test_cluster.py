"""Cluster: the bounded sample, the cluster of every image, and the error for too few images."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray import artifact
from poisoncam_ray.config import Resources
from poisoncam_ray.corpus import Slice
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, part_name
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.cluster import Cluster, assign_slice, fit_centroids, read_centroids, sample_parts
from poisoncam_ray.stages.embed import feature_table, read_features
from poisoncam_ray.stages.pretrain import Pretrain

DIM = 6
SIZES = [30, 0, 50, 20]


@pytest.fixture
def features(tmp_path) -> Folder:
    """Four orthogonal directions in every part, and some noise; the second part is empty."""
    folder, generator = Folder(str(tmp_path / artifact.FEATURES)), torch.Generator().manual_seed(0)
    for i, n in enumerate(SIZES):
        f_ND = torch.eye(4, DIM)[torch.arange(n) % 4] + 0.01 * torch.randn(n, DIM, generator=generator)
        unit_ND = torch.nn.functional.normalize(f_ND, dim=1)
        folder.write_table(part_name(i), feature_table([f"{i}#{row}" for row in range(n)], unit_ND))
    return folder


def trained(features: Folder, out: Folder, sample: int = 1000, seed: int = 0) -> torch.Tensor:
    fit_centroids(features, out, sample_parts(SIZES, sample, seed), 4, 10, seed, Resources())
    return read_centroids(out)


def assigned(features: Folder, out: Folder) -> dict[str, tuple[int, float]]:
    for i, n in enumerate(SIZES):
        assign_slice(Slice(i, "a", 0, n), features, out, seed=0)
    rows = [row for name in out.parts() for row in out.read_table(name).to_pylist()]
    return {row["image_id"]: (row["cluster"], row["distance"]) for row in rows}


def test_features_survive_their_file(features):
    ids, f_ND = read_features(features, part_name(0))
    assert ids == [f"0#{row}" for row in range(30)] and f_ND.dtype == torch.float32
    assert torch.allclose(f_ND.norm(dim=1), torch.ones(30), atol=1e-3)
    ids, f_ND = read_features(features, part_name(1))
    assert ids == [] and f_ND.shape == (0, DIM)


def test_every_image_gets_its_nearest_centroid(features, tmp_path):
    out = Folder(str(tmp_path / artifact.CLUSTERS))
    c_KD = trained(features, out)
    found = assigned(features, out)
    assert c_KD.shape == (4, DIM) and len(found) == sum(SIZES)
    for i in range(len(SIZES)):
        for image_id, f_D in zip(*read_features(features, part_name(i)), strict=True):
            distances = [float(((f_D - c_D) ** 2).sum().sqrt()) for c_D in c_KD]
            cluster, distance = found[image_id]
            assert cluster == min(range(4), key=distances.__getitem__)
            assert distance == pytest.approx(distances[cluster], abs=1e-3)
    # Each direction is a cluster, the same in every part.
    direction = {cluster: int(image_id.partition("#")[2]) % 4 for image_id, (cluster, _) in found.items()}
    assert all(direction[cluster] == int(i.partition("#")[2]) % 4 for i, (cluster, _) in found.items())


def test_the_same_seed_gives_the_same_centroids_also_of_a_sample(features, tmp_path):
    for sample in (1000, 40):
        one, two = (trained(features, Folder(str(tmp_path / f"{sample}{x}")), sample) for x in "ab")
        assert torch.equal(one, two)
    assert pa.table(assigned(features, Folder(str(tmp_path / "40a")))).num_columns == sum(SIZES)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20), st.integers(1, 3000))
def test_a_sample_is_bounded_and_an_equal_share_of_every_part(rows, most):
    chosen = dict(sample_parts(rows, most, seed=0))
    filled = {part_name(i): n for i, n in enumerate(rows) if n}
    assert chosen.keys() == filled.keys()
    assert all(1 <= chosen[name] <= filled[name] for name in chosen)
    # A part gives at least one row, however small its share.
    assert sum(chosen.values()) <= max(most, 1) + len(chosen)
    if most >= sum(rows):
        assert chosen == filled


def test_k_means_reads_a_bounded_number_of_parts(monkeypatch):
    monkeypatch.setattr("poisoncam_ray.stages.cluster.PARTS_READ", 10)
    rows = [0, *[100] * 50]
    chosen = sample_parts(rows, 200, seed=1)
    assert len(chosen) == 10 and {n for _, n in chosen} == {20}
    assert chosen == sample_parts(rows, 200, seed=1) != sample_parts(rows, 200, seed=2)
    assert part_name(0) not in dict(chosen)


def test_more_clusters_than_images_and_batches_larger_than_the_corpus():
    config = load_config(overrides=["cluster.k=50", "pretrain.batch_size=64"])
    Cluster().check(config, None)
    Cluster().check(config, 50)
    with pytest.raises(UserError, match=r"cluster.k=50 is more than the 49 images there are"):
        Cluster().check(config, 49)
    with pytest.raises(UserError, match="1 images"):
        Cluster().check(load_config(), 1)
    Pretrain().check(config, 64)
    with pytest.raises(UserError, match=r"pretrain.batch_size=64 is more than the 63 images there are"):
        Pretrain().check(config, 63)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["encoder.backbone=resnet_tinny"], "did you mean 'resnet_tiny'"),
        (
            ["encoder.backbone=vit_tiny_convstem", "encoder.image_size=36"],
            "does not divide an image of 36 px",
        ),
        (["encoder.patch_size=8"], "has no patches"),
        (["encoder.checkpoint=/nowhere/x.safetensors"], "cannot be read"),
    ],
)
def test_impossible_encoders_are_refused_before_the_work(overrides, words):
    with pytest.raises(UserError, match=words):
        Pretrain().check(load_config(overrides=overrides), None)
