"""The rival without a model: patches that recur in many images."""

from __future__ import annotations

import io
import json
import runpy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.attacks import poison_corpus
from poisoncam_ray.research.attacks.trigger import generate_trigger
from poisoncam_ray.research.rivals import attacked, on_corpus
from poisoncam_ray.research.rivals.joined_windows import SAME, join
from poisoncam_ray.research.rivals.on_corpus import Look, look_at, measure_corpus
from poisoncam_ray.research.rivals.recurring import recurring, threshold
from poisoncam_ray.research.rivals.windows import CELLS, DIM, Grid, mirrored, windows

JOB = Path(__file__).parents[3] / "jobs" / "recurring.py"
N, PLANTED = 56, range(3, 56, 5)
LOOK = Look(sides=(16,), false_share=0.1)


def texture(i: int, width: int = 64, height: int = 64) -> Image.Image:
    """Waves of its own direction and length, with noise: a ground full of contrast."""
    rng = np.random.default_rng(i)
    y, x = np.mgrid[:height, :width]
    waves = [
        np.sin((x * np.cos(a) + y * np.sin(a)) * f)
        for a, f in zip(rng.random(3) * 6.3, rng.random(3), strict=True)
    ]
    picture = 128 + 60 * np.stack(waves, axis=2) + rng.normal(0, 25, (height, width, 3))
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> dict[str, str]:
    """Textures; the same with a patch on every fifth; its truth. Picture 5 is broken."""
    folder = tmp_path_factory.mktemp("recurring")
    cells = [encoded(texture(i)) if i != 5 else b"\x89PNG broken" for i in range(N)]
    (folder / "clean").mkdir()
    table = pa.table({"image": cells, "label": [i % 5 for i in range(N)]})
    pq.write_table(table, folder / "clean" / "part-00000.parquet", row_group_size=16)
    poisoned = str(folder / "poisoned")
    poison_corpus(str(folder / "clean"), poisoned, ["3"], ["generated:5"], width=20 / 64, share=1.0)
    return {
        "clean": str(folder / "clean"),
        "corpus": f"{poisoned}/corpus",
        "truth": f"{poisoned}/truth.parquet",
    }


def test_a_planted_patch_is_found_and_the_textures_are_not(corpora, tmp_path):
    row = measure_corpus(corpora["corpus"], corpora["truth"], Folder(str(tmp_path)), LOOK, {})
    assert (row["n_poisoned"], row["n_images"], row["n_unreadable"]) == (len(PLANTED), N - 1, 1)
    assert row["recall"] == 1 and row["n_flagged_clean"] == 0 and row["auc"] == 1
    assert row["on_trigger_iou"] == 1 and row["flops"] > 0
    assert Folder(str(tmp_path)).read_json(on_corpus.ROW) == row


def test_nothing_recurs_in_textures(corpora, tmp_path):
    row = measure_corpus(corpora["clean"], None, Folder(str(tmp_path)), LOOK, {})
    assert row["n_flagged_clean"] == 0 and row["recall"] is None and row["auc"] is None


def test_an_image_in_which_it_recurs_thrice_counts_once():
    x_WD = torch.randn(400, DIM, generator=torch.Generator().manual_seed(1))
    x_WD = torch.nn.functional.normalize(x_WD, dim=1)
    x_WD[1:4] = x_WD[0]  # window 0 of image 0; thrice in image 1
    x_WD[4] = x_WD[0]  # and in image 2
    image_W = torch.tensor([0, 1, 1, 1, 2, *[3] * 395])
    joined = join(x_WD, image_W, 4, seed=0)
    assert joined.look_up(x_WD[:5], image_W[:5]).tolist() == [2, 2, 2, 2, 2]
    assert joined.look_up(x_WD[:1], torch.tensor([-1])).tolist() == [
        3
    ]  # not of the sample: nothing is its own
    assert joined.look_up(x_WD[:0], image_W[:0]).tolist() == []


def test_look_ups_agree_with_all_pairs():
    generator = torch.Generator().manual_seed(2)
    near_WD = torch.randn(12, DIM, generator=generator).repeat(50, 1)
    x_WD = torch.nn.functional.normalize(near_WD + 0.007 * torch.randn(600, DIM, generator=generator), dim=1)
    image_W = torch.randint(0, 40, (600,), generator=generator)
    joined = join(x_WD, image_W, 40, seed=0)
    z_WD = joined.whiten(x_WD)
    same_WW = z_WD @ z_WD.T >= SAME
    seen = [set(image_W[same_W].tolist()) for same_W in same_WW]
    expected = [len(images - {own}) for images, own in zip(seen, image_W.tolist(), strict=True)]
    assert joined.look_up(x_WD, image_W).tolist() == expected and max(expected) > 3


def test_no_truth_sets_the_threshold(corpora, tmp_path):
    """The same corpus gives the same scores with its truth, with none, and with a truth that lies."""
    one, other = Folder(str(tmp_path / "one")), Folder(str(tmp_path / "other"))
    honest = measure_corpus(corpora["corpus"], corpora["truth"], one, LOOK, {})
    truth = pq.read_table(corpora["truth"])
    flipped = truth.set_column(3, "poisoned", pa.array([not p for p in truth["poisoned"].to_pylist()]))
    pq.write_table(flipped, tmp_path / "truth.parquet")
    lying = measure_corpus(corpora["corpus"], str(tmp_path / "truth.parquet"), other, LOOK, {})
    assert honest["thresholds"] == lying["thresholds"] and lying["recall"] == 0
    assert one.read_table("side-16.parquet").equals(other.read_table("side-16.parquet"))


def test_the_threshold_keeps_the_share_of_chance():
    score_N = np.array([*[0] * 50, *[-1] * 8, *[1] * 9, -3, *[5] * 20, -9])
    # At 2 … 5 two of 22 images are expected to be chance and one more; at 1: eleven of 29.
    assert threshold(score_N, 0.15) == 2 and threshold(score_N, 0.05) is None and threshold(score_N, 0.5) == 1
    # However high they score, fewer than 1 / share images are no evidence.
    assert threshold(np.array([*[0] * 50, *[99] * 9]), 0.1) is None
    assert threshold(np.array([*[0] * 50, *[99] * 10]), 0.1) == 1
    assert threshold(np.zeros(10, int), 0.5) is None and threshold(np.zeros(0, int), 0.5) is None


def test_after_a_kill_the_sides_that_are_done_are_kept(corpora, tmp_path, monkeypatch):
    look, asked = Look(sides=(24, 16), false_share=0.1), []

    def killed(pictures, n_images, sample, grid, seed):
        asked.append(grid.side)
        if grid.side == 16 and len(asked) == 2:
            raise KeyboardInterrupt
        return recurring(pictures, n_images, sample, grid, seed)

    monkeypatch.setattr(on_corpus, "recurring", killed)
    broken, whole = Folder(str(tmp_path / "broken")), Folder(str(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        look_at(corpora["corpus"], broken, look)
    resumed = look_at(corpora["corpus"], broken, look)
    assert asked == [24, 16, 16]
    again = look_at(corpora["corpus"], whole, look)
    assert np.array_equal(resumed.score_N, again.score_N) and resumed.image_ids == again.image_ids
    with pytest.raises(UserError, match="sample"):
        look_at(corpora["corpus"], broken, Look(sides=(16,), sample=50))


def test_a_sample_bounds_what_is_compared_with(corpora, tmp_path):
    scored = look_at(corpora["corpus"], Folder(str(tmp_path)), Look(sides=(16,), sample=30, false_share=0.1))
    table = Folder(str(tmp_path)).read_table("side-16.parquet")
    most = max(table["count"].to_pylist())
    assert 1 < most < len(PLANTED) - 1  # about half of the poisoned are in the sample
    assert len(scored.image_ids) == N - 1  # all are looked up


def test_windows_are_means_of_cells_at_fractions_of_pixels():
    image = texture(4)
    x_1D = windows(image, Grid(side=20)).x_WD[:1]
    pixels_HLC = np.asarray(image, float).repeat(2, 0).repeat(2, 1)  # cells of 2.5 px are 5 half pixels
    cells = pixels_HLC[:40, :40].reshape(CELLS, 5, CELLS, 5, 3).mean(axis=(1, 3)).reshape(-1, 3)
    centred = (cells - cells.mean(axis=0)).ravel()
    assert np.allclose(x_1D[0], centred / np.linalg.norm(centred), atol=1e-4)


def test_a_mirrored_picture_has_mirrored_windows():
    image, flipped = texture(4), texture(4).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    grid = Grid(side=16)  # its stride of 3 px divides 64 - 16
    there, back = windows(image, grid), windows(flipped, grid)
    side = (64 - 16) // grid.stride + 1
    assert len(there.x_WD) == len(back.x_WD) == side**2
    assert there.box_W4[1].tolist() == [3, 0, 19, 16] and there.box_W4[side].tolist() == [0, 3, 16, 19]
    again_WD = mirrored(back.x_WD).view(side, side, DIM).flip(1).reshape(-1, DIM)
    assert torch.allclose(again_WD, there.x_WD, atol=1e-5)


def test_plain_ground_has_no_windows_and_boxes_are_in_stored_pixels():
    assert len(windows(Image.new("RGB", (64, 64), (200, 30, 90)), Grid(20)).x_WD) == 0
    wide = Image.new("RGB", (256, 128), (9, 9, 9))
    wide.paste(generate_trigger(3, 36), (120, 48))
    found = windows(wide, Grid(18))
    assert [120, 48, 156, 84] in found.box_W4.tolist()  # 18 px of the 64 that 128 px become
    assert (found.box_W4[:, 2] <= 256).all() and (found.box_W4[:, 3] <= 128).all()


def test_the_job_attacks_measures_and_lists(corpora, tmp_path, capsys):
    job = runpy.run_path(str(JOB))["recurring"]
    common = {
        "input": None, "truth": None, "name": "", "trigger": "generated:5", "seed": 1, "first_label": 0,
        "last_label": 4, "classes": 5, "per_class": 12, "side": [16], "sample": 100, "false_share": 0.2,
        "output": str(tmp_path), "train": corpora["clean"],
    }  # fmt: skip
    job(attack=["patch@1"], **common)
    assert "patch@1" in capsys.readouterr().out
    job(attack=["patch@1", "logo@0.5", "clean"], **common)
    rows = {row["attack"]: row for row in map(json.loads, (tmp_path / "recurring.jsonl").open())}
    assert set(rows) == {"patch@1", "logo@0.5", "clean"}
    assert rows["patch@1"]["recall"] == 1 and rows["clean"]["n_flagged_clean"] == 0
    # A logo is no poison: what is flagged of it is flagged wrongly, and told apart.
    logo = rows["logo@0.5"]
    assert logo["n_poisoned"] == 0 and logo["carriers_flagged"] == 1
    assert logo["n_flagged_clean"] == logo["n_carriers"] == 6
    assert "images with the logo flagged" in (tmp_path / "recurring.md").read_text()


def test_rows_of_the_table_are_written_as_kind_share_and_options():
    spec = attacked.parse("blended@0.5:alpha=0.3,width=0.2")
    assert (spec.kind, spec.share, spec.options) == ("blended", 0.5, {"alpha": 0.3, "width": 0.2})
    assert attacked.parse("several").share == 1 and "/" not in spec.name and "@" not in spec.name
    for wrong, why in {
        "Patch": "KIND@SHARE",
        "sticker": "no attack",
        "patch@1:width=wide": "no number",
    }.items():
        with pytest.raises(UserError, match=why):
            attacked.parse(wrong)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"sides": (4,)}, "side"),
        ({"sides": (20, 20)}, "once"),
        ({"sample": 1}, "sample"),
        ({"false_share": 0.0}, "between"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, why):
    with pytest.raises(UserError, match=why):
        Look(**settings)
