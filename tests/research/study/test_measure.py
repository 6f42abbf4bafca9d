"""Passes over a run written by hand, and the reading of masks against the method's own function."""

from dataclasses import replace

import pytest
import torch

from poisoncam_ray import artifact
from poisoncam_ray.config import Encoder
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.cam import candidate_windows, masked_features, mean_colour, refine_windows
from poisoncam_ray.method.clusters import auto_k, distances, kmeans
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.geometry import iou
from poisoncam_ray.method.masks import keep_only
from poisoncam_ray.research.evaluate.scored import HIT_IOU, of_best_patch
from poisoncam_ray.research.study import images as images_file
from poisoncam_ray.research.study import measure as measure_file
from poisoncam_ray.research.study.images import prepare, read_images
from poisoncam_ray.research.study.measure import draw_masks, measure, read_windows
from poisoncam_ray.research.study.plan import Pass, Way, passes, pixels
from poisoncam_ray.research.study.runs import StudyRun
from poisoncam_ray.runner import corpus_of
from poisoncam_ray.stages.embed import load_encoder, read_features, write_encoder
from poisoncam_ray.stages.pixels import fetch_images
from tests.fake_run import CONFIG, SIDE, make_fake_run
from tests.research.study.small_grid import small_grid

GRID = small_grid(images=5)


@pytest.fixture(scope="module")
def one(fake) -> StudyRun:
    return StudyRun("a/run", fake.run, fake.truth)


@pytest.fixture(scope="module")
def prepared(one, tmp_path_factory) -> Folder:
    folder = Folder(str(tmp_path_factory.mktemp("prepared")))
    prepare(one, GRID, folder)
    return folder


class Colours:
    """Features that depend on the pixels, at no cost."""

    def embed(self, x_BCHW):
        return torch.nn.functional.normalize(x_BCHW[:, :, ::5, ::5].flatten(1) - 0.4, dim=1)


@pytest.mark.parametrize("todo", [t for t in passes(GRID, ["a"]) if t.masks], ids=str)
def test_one_pass_reads_as_the_method_does_one_setting_at_a_time(todo):
    generator = torch.Generator().manual_seed(1)
    x_NCHW = torch.rand(3, 3, 24, 24, generator=generator)
    fill_NC, encoder = mean_colour(x_NCHW), Colours()
    f_KD = encoder.embed(torch.rand(6, 3, 24, 24, generator=generator))
    c_KD = {factor: f_KD[: 3 + i] for i, factor in enumerate(GRID.k_factors)}
    own = {f: distances(encoder.embed(x_NCHW), c).argmin(dim=1) for f, c in c_KD.items()}
    m_BHW = draw_masks(todo, GRID, 24, pixels(todo.cell, 24) if todo.cell else None)
    f_NBD = masked_features(encoder, x_NCHW, m_BHW, fill_NC, batch=7)
    found = read_windows(todo, GRID, f_NBD, m_BHW, own, c_KD)
    assert len(found) == len(todo.masks) * len(todo.windows) * 2 * 3
    for way, box_N4 in found.items():
        keep_B = keep_only(todo.strategy, len(m_BHW))[: way.forwards]
        one_N4, _ = candidate_windows(
            encoder, x_NCHW, own[way.k_factor], c_KD[way.k_factor], m_BHW[: way.forwards], way.score,
            keep_B, pixels(way.window, 24), fill_NC, 64,
        )  # fmt: skip
        assert torch.equal(box_N4, one_N4), way
        assert way.forwards <= way.masks


def test_clusters_are_those_of_k_means_on_the_stored_features(fake, one, prepared):
    chosen = read_images(prepared, GRID)
    parts = [read_features(Folder(fake.run) / artifact.FEATURES, f"part-{i:06d}.parquet") for i in range(3)]
    ids, f_ND = [j for part in parts for j in part[0]], torch.cat([part[1] for part in parts])
    for factor in GRID.k_factors:
        k = auto_k(len(ids), factor)
        assert torch.equal(chosen.c_KD[factor], kmeans(f_ND, k, 20, 0))
        cluster = dict(zip(ids, distances(f_ND, chosen.c_KD[factor]).argmin(dim=1).tolist(), strict=True))
        for i, image_id in enumerate(chosen.image_id):
            members = [j for j in ids if cluster[j] == cluster[image_id]]
            mostly_poison = sum(j in fake.poisoned for j in members) > len(members) / 2
            assert chosen.own_S[factor][i] == cluster[image_id]
            assert bool(chosen.pure_S[factor][i]) == mostly_poison
    assert chosen.poison_rate == pytest.approx(20 / 120)


def test_images_are_poisoned_ones_drawn_by_seed(fake, one, tmp_path, monkeypatch):
    monkeypatch.setattr(images_file, "forward_flops", lambda encoder: 1)
    monkeypatch.setattr(images_file, "gradcam_flops", lambda encoder: 1)
    drawn = {}
    for seed, most in ((0, 5), (1, 5), (0, 6), (0, 99)):
        grid = small_grid(seed=seed, images=most, k_factors=[1])
        prepare(one, grid, Folder(str(tmp_path / f"{seed}-{most}")))
        drawn[seed, most] = set(read_images(Folder(str(tmp_path / f"{seed}-{most}")), grid).image_id)
    assert len(drawn[0, 5]) == 5 and drawn[0, 5] != drawn[1, 5]
    assert drawn[0, 5] < drawn[0, 6] < drawn[0, 99], "more images add to the same ones"
    assert drawn[0, 99] == set(fake.poisoned) and len(drawn[0, 99]) == 20


def test_a_run_without_boxes_is_told(tmp_path):
    fake = make_fake_run(tmp_path, poison=False)
    with pytest.raises(UserError, match=r"No poisoned image .* has a box in the truth"):
        prepare(StudyRun("a", fake.run, fake.truth), GRID, Folder(str(tmp_path / "out")))


@pytest.mark.parametrize(
    "todo",
    [
        Pass("a/run", "mixed", (4,), 0.25, (0.3,)),
        Pass("a/run", "gradcam", (), None, (0.3, 0.4)),
        Pass("a/run", "random_window", (), None, (0.3, 0.4)),
    ],
    ids=lambda todo: todo.strategy,
)
def test_rows_do_not_hang_on_how_many_images_go_at_once(one, prepared, todo, monkeypatch):
    rows = measure(todo, one, GRID, prepared).drop_columns(["seconds"]).to_pylist()
    monkeypatch.setattr(measure_file, "IMAGES_AT_ONCE", 2)
    again = measure(todo, one, GRID, prepared).drop_columns(["seconds"]).to_pylist()
    assert rows == again
    forwards = {"mixed": 2, "gradcam": 1, "random_window": 0}[todo.strategy]
    for row in rows:
        assert row["n"] == 5 and row["hits"] == round(5 * row["accuracy"])
        assert row["hits"] >= row["hits_poison_clusters"] and row["window_px"] == round(SIDE * row["window"])
        assert row["forwards"] == forwards and row["coverage"] >= row["mean_iou"] >= 0
        assert (row["flops"] > 0) == (forwards > 0)


def test_a_window_may_meet_any_of_several_patches(one, prepared):
    chosen, todo = read_images(prepared, GRID), Pass("a/run", "random_window", (), None, (0.3,))
    first_S4 = chosen.true_ST4[:, 0]
    far_S4 = torch.tensor([[0, 0, 1, 1]]).expand_as(first_S4)
    two = replace(chosen, true_ST4=torch.stack([far_S4, first_S4], dim=1))
    way = Way(1, None, None, 0.3, 0)
    for marks in (chosen, two):
        row = measure_file._row(todo, way, marks, SIDE, None, first_S4)
        assert (row["accuracy"], row["mean_iou"], row["coverage"]) == (1, 1, 1)


def test_every_run_draws_masks_of_its_own_whatever_the_windows():
    one, other = (draw_masks(Pass(n, "interval", (4, 16), 0.25, (0.3,)), GRID, SIDE, 6) for n in "ab")
    assert not torch.equal(one, other)
    assert torch.equal(one, draw_masks(Pass("a", "interval", (4, 16), 0.25, (0.3, 0.4)), GRID, SIDE, 6))


@pytest.fixture(scope="module")
def vit_run(tmp_path_factory):
    """The fake run with an untrained ViT in the place of its encoder, and a grid that varies hiding."""
    fake = make_fake_run(tmp_path_factory.mktemp("vit"))
    run, vit = Folder(fake.run), Encoder(backbone="vit_tiny_convstem", image_size=SIDE)
    torch.manual_seed(0)
    config = CONFIG.model_copy(update={"encoder": vit})
    write_encoder(config, build_encoder(vit.backbone, SIDE), run / artifact.ENCODER)
    run.write_json(artifact.RUN, run.read_json(artifact.RUN) | {"config": config.model_dump(mode="json")})
    return StudyRun("a/run", fake.run, fake.truth)


REFINES = [None, {"hidden": 25}, {"hidden": 0}, {"hidden": 3, "shown": False, "passes": 2}]


def test_dropped_and_refined_windows_are_those_of_the_method(vit_run, tmp_path):
    grid = small_grid(
        images=5, hidings=["paint", "drop"], refines=REFINES, masks=[8], windows=[0.4],
        k_factors=[1], scores=["distance"], base={"k_factor": 1, "masks": 8, "cell": 0.25, "window": 0.4},
    )  # fmt: skip
    folder = Folder(str(tmp_path))
    prepare(vit_run, grid, folder)
    todo = Pass("a/run", "mixed_binary", (8,), 0.3, (0.4,), "drop")
    rows = {row["refine"]: row for row in measure(todo, vit_run, grid, folder).to_pylist()}
    painted = measure(replace(todo, hiding="paint"), vit_run, grid, folder).to_pylist()[0]
    # 0.3 of 32 px are 10 px; cells of whole patches have 8.
    assert (painted["cell_px"], rows[None]["cell_px"]) == (10, 8)
    forwards = {None: 8, "25 shown": 33, "25 shown + 25 hidden": 58, "3 hidden × 2": 14}
    assert {label: row["forwards"] for label, row in rows.items()} == forwards
    # The stem reads whole images, so a dropped token saves in the blocks alone.
    assert rows[None]["flops"] < painted["flops"] == 8 * painted["flops_forward"]
    by_flops = sorted(rows, key=lambda label: rows[label]["flops"])
    assert by_flops == [None, "3 hidden × 2", "25 shown", "25 shown + 25 hidden"]

    chosen, encoder = (
        read_images(folder, grid),
        load_encoder(Folder(vit_run.run_uri) / artifact.ENCODER, "float32"),
    )
    x_NCHW = torch.from_numpy(fetch_images(corpus_of(Folder(vit_run.run_uri)), CONFIG, chosen.image_id)) / 255
    m_BHW, fill_NC = draw_masks(todo, grid, SIDE, 8), mean_colour(x_NCHW)
    own_N, c_KD = chosen.own_S[1], chosen.c_KD[1]
    about = (own_N, c_KD, "distance", fill_NC, 128, "drop")
    box_N4, _ = candidate_windows(
        encoder, x_NCHW, own_N, c_KD, m_BHW, "distance", keep_only("mixed_binary", 8), 13, *about[3:]
    )
    for by in grid.refines:
        row, moved_N4 = rows[by and by.label], box_N4
        if by is not None:
            moved_N4 = refine_windows(encoder, x_NCHW, box_N4, *about, by.hidden, by.shown, by.passes)
        iou_S = of_best_patch(iou, moved_N4, chosen.true_ST4)
        assert row["mean_iou"] == pytest.approx(float(iou_S.mean()), abs=1e-6)
        assert row["found"] == "".join("01"[int(hit)] for hit in iou_S >= HIT_IOU)


def test_a_cnn_has_no_tokens_to_drop(one, tmp_path):
    with pytest.raises(UserError, match=r"is no ViT and has no tokens to drop: leave drop out of hidings"):
        prepare(one, small_grid(hidings=["paint", "drop"]), Folder(str(tmp_path)))
