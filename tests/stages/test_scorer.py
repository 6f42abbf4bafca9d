"""One actor of the search, called as a plain object: windows of several scales, each image's best."""

from __future__ import annotations

import pytest
import torch

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.clusters import assign, kmeans, superclusters
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.crops import from_png
from poisoncam_ray.stages.embed import embed_images, write_encoder
from poisoncam_ray.stages.pixels import fetch_images
from poisoncam_ray.stages.search import Scorer
from tests.small import draw_small

LIGHT = ["search.masks=8", "search.refine=false", "cluster.k=16"]


def config(*overrides: str) -> Config:
    return load_config(overrides=[*LIGHT, *overrides])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(corpus, encoder folder, clusters folder, chunk, flip-test images, superclusters) of drawn images."""
    folder = tmp_path_factory.mktemp("scorer")
    corpus = open_corpus(str(draw_small(folder / "corpus", 48)), "auto", None)
    ids = [row.image_id for slice_ in corpus.slices() for row in corpus.read(slice_)]
    torch.manual_seed(0)
    encoder = build_encoder("resnet_tiny_s2", 32).eval()
    encoders, clusters = Folder(str(folder / "encoder")), Folder(str(folder / "clusters"))
    write_encoder(config(), encoder, encoders)
    x_NCHW = fetch_images(corpus, config(), ids)
    f_ND = embed_images(encoder, torch.from_numpy(x_NCHW), 64)
    c_KD = kmeans(f_ND, 16, 10, 0)
    clusters.write_tensors(artifact.CENTROIDS, {"centroids_KD": c_KD})
    chunk = list(zip(ids, assign(f_ND, c_KD)[0].tolist(), strict=True))
    return corpus, encoders, clusters, chunk[:6], x_NCHW[-12:], superclusters(c_KD, 0)


def work(place, *overrides: str, chunk: slice = slice(None)) -> list[dict]:
    corpus, encoders, clusters, rows, flip, supercluster_K = place
    return Scorer(config(*overrides), corpus, encoders, clusters, flip, supercluster_K).work(rows[chunk])


def test_a_row_holds_what_the_search_writes(place):
    rows = work(place)
    assert [set(row) for row in rows] == [set(artifact.CANDIDATE_SCHEMA.names)] * 6
    window = config().window_px
    for row in rows:
        assert (row["x1"] - row["x0"], row["y1"] - row["y0"]) == (window, window)
        assert row["n_flip"] == len(row["landed"]) == 12
        assert row["score"] == pytest.approx(max(0, row["supercluster_gain"]) / 12)
        x_CHW = torch.from_numpy(fetch_images(place[0], config(), [row["image_id"]]))[0] / 255
        cut = x_CHW[:, row["y0"] : row["y1"], row["x0"] : row["x1"]]
        assert torch.allclose(from_png(row["crop"]), cut)


@pytest.mark.parametrize("reading", ["changed", "gain", "supercluster_gain"])
def test_each_image_keeps_its_best_scale_and_the_first_of_equals(place, reading):
    reads = f"search.reading={reading}"
    small, large = (work(place, reads, f"search.scales=[{scale}]") for scale in (0.5, 2))
    both = work(place, reads, "search.scales=[0.5, 2]")
    assert both == [a if a["score"] >= b["score"] else b for a, b in zip(small, large, strict=True)]
    sizes = {row["x1"] - row["x0"] for row in [*small, *large]}
    assert sizes == {6, 22}


def test_a_row_does_not_depend_on_its_neighbours(place):
    assert work(place, chunk=slice(2, 4)) == work(place)[2:4]


@pytest.mark.parametrize("strategy", ["mixed", "gradcam"])
def test_an_image_whose_stored_feature_lies_in_another_cluster_is_no_evidence(place, strategy):
    """Masks and pastes are compared with the cluster found in their own pass."""
    corpus, encoders, clusters, rows, flip, supercluster_K = place
    by = config(f"search.strategy={strategy}", "search.refine=true")
    scorer = Scorer(by, corpus, encoders, clusters, flip, supercluster_K)
    moved = [(image_id, (cluster + 3) % 16) for image_id, cluster in rows]
    found = scorer.work(moved)
    assert [row["cluster"] for row in found] == [cluster for _, cluster in moved]
    without = [{key: value for key, value in row.items() if key != "cluster"} for row in found]
    assert without == [
        {key: value for key, value in row.items() if key != "cluster"} for row in scorer.work(rows)
    ]


def test_scales_are_sizes_within_the_image_each_once():
    assert config("search.scales=[1, 0.01, 8, 7.5, 1.0]").scales_px == [11, 2, 32]
