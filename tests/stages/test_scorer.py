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
from poisoncam_ray.stages.scorer import Chunk, Contestant, Pastes, Scorer
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


def scorer_of(place, *overrides: str) -> Scorer:
    corpus, encoders, clusters, _, flip, supercluster_K = place
    return Scorer(config(*overrides), corpus, encoders, clusters, flip, supercluster_K)


def work(place, *overrides: str, chunk: slice = slice(None), first: int | None = None) -> list[dict]:
    """The rows of the images `chunk`, pasted on the first flip-test images."""
    scorer = scorer_of(place, *overrides)
    return scorer.work(Chunk(place[3][chunk], scorer.flip_clusters()[0][:first]))


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
    rows, scorer = place[3], scorer_of(place, f"search.strategy={strategy}", "search.refine=true")
    y_F, _ = scorer.flip_clusters()
    moved = [(image_id, (cluster + 3) % 16) for image_id, cluster in rows]
    found = scorer.work(Chunk(moved, y_F))
    assert [row["cluster"] for row in found] == [cluster for _, cluster in moved]
    without = [{key: value for key, value in row.items() if key != "cluster"} for row in found]
    assert without == [
        {key: value for key, value in row.items() if key != "cluster"}
        for row in scorer.work(Chunk(rows, y_F))
    ]
    assert [row["own"] for row in found] == [cluster for _, cluster in rows]


@pytest.mark.parametrize("scales", ["[1]", "[0.5, 1, 2]"])
def test_pastes_on_the_first_images_and_on_the_others_add_up_to_those_on_all(place, scales):
    """From the stored windows alone: the images are not read again."""
    scorer, by = scorer_of(place, f"search.scales={scales}"), f"search.scales={scales}"
    y_F, _ = scorer.flip_clusters()
    first = work(place, by, first=5)
    assert {row["n_flip"] for row in first} == {5} and {len(row["landed"]) for row in first} == {5}
    boxes = [[row[side] for side in artifact.SIDES] for row in first]
    places = [9, 3, 1, 0, 2, 7]
    contestants = [
        Contestant(place, row["image_id"], row["own"], row["crop"])
        for place, row in zip(places, first, strict=True)
    ]
    scorer.corpus = None
    given, rest = scorer.paste(Pastes(contestants, 5, 12, y_F))
    assert given == places
    assert any(any(counts) for counts in rest.values())
    for i, row in enumerate(work(place, by)):
        # Over more images another scale may be the best.
        if [row[side] for side in artifact.SIDES] == boxes[i]:
            for name in artifact.READINGS:
                assert first[i][name] + rest[name][i] == row[name]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_unchanged_images_stay_where_they_are(place, precision):
    scorer = scorer_of(place, f"resources.precision={precision}", "search.batch_size=5")
    y_F, flips = scorer.flip_clusters()
    assert len(y_F) == 12 and flips == 0
    assert scorer_of(place, f"resources.precision={precision}").flip_clusters() == (y_F, 0)


def test_the_flip_test_and_the_images_are_computed_at_the_decided_precision(place):
    """Own cluster, masks, occlusion and pastes: no pass of the network stays in float32."""
    scorer = scorer_of(place, "resources.precision=bfloat16", "search.refine=true")

    def refuse(*_: object) -> None:
        raise AssertionError("a pass in float32")

    scorer.encoder.backbone.forward_features = refuse
    y_F, _ = scorer.flip_clusters()
    rows = scorer.work(Chunk(place[3], y_F))
    scorer.paste(Pastes([Contestant(0, rows[0]["image_id"], rows[0]["own"], rows[0]["crop"])], 3, 9, y_F))


def test_scales_are_sizes_within_the_image_each_once():
    assert config("search.scales=[1, 0.01, 8, 7.5, 1.0]").scales_px == [11, 2, 32]
