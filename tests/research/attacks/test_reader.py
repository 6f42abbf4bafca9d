"""Attackers who know the defence: `scaled`, `alpha`, `framed`, `doubt`, and ids chosen for a known seed."""

from __future__ import annotations

import io
import runpy
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from poisoncam_ray.config import Classify
from poisoncam_ray.decode import views
from poisoncam_ray.errors import UserError
from poisoncam_ray.method.crops import in_sample, own_part, parts
from poisoncam_ray.research.attacks import KINDS, poison_corpus
from poisoncam_ray.research.attacks.filters import FILTERS, SIZES, what_filters_see
from poisoncam_ray.research.attacks.kind import How
from poisoncam_ray.research.attacks.perfect_search import judge_with_perfect_windows
from poisoncam_ray.research.attacks.scaled import BILINEAR, NEAREST, disguise, shrunk

MAX_PIXELS = 2**20
ROOT = Path(__file__).parents[3]


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of mild colours that change slowly."""
    grid = np.random.default_rng(seed).integers(60, 200, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)


def stamped(kind: str, image: Image.Image, trigger: Image.Image, **options: float):
    """The changed picture and its box."""
    how = How(0.4, (0.1, 0.9), KINDS[kind].settings(kind, options))
    image = image.copy()
    [box] = KINDS[kind].stamp(image, trigger, how, np.random.default_rng(1))
    return image, box


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), np.float64)


@pytest.mark.parametrize(("width", "height"), [(70, 70), (91, 64), (40, 77)])
def test_a_loader_without_antialias_is_modelled_as_torch_and_pillow_do(width, height) -> None:
    image = smooth(width, height)
    x_BCHW = torch.from_numpy(array(image)).permute(2, 0, 1)[None]
    bilinear = F.interpolate(x_BCHW, (16, 16), mode="bilinear", align_corners=False, antialias=False)
    assert np.allclose(shrunk(array(image), 16, BILINEAR), bilinear[0].permute(1, 2, 0).numpy(), atol=1e-6)
    nearest = image.resize((16, 16), Image.Resampling.NEAREST)
    assert (shrunk(array(image), 16, NEAREST) == array(nearest)).all()


@pytest.mark.parametrize("ratio", [1.5, 2, 3.3, 7])
@pytest.mark.parametrize("filter_", [NEAREST, BILINEAR])
def test_a_disguised_picture_shrinks_to_the_other_one(ratio, filter_) -> None:
    side = 16
    x_HWC = array(smooth(round(ratio * side), round(ratio * side)))
    wanted_hwC = array(smooth(side, side, seed=5))
    made_HWC = disguise(x_HWC, wanted_hwC, filter_)
    error = np.abs(shrunk(made_HWC, side, filter_) - wanted_hwC).mean()
    assert error < (1 if ratio >= 2 else 8)
    assert made_HWC.min() >= 0 and made_HWC.max() <= 255 and (made_HWC == made_HWC.round()).all()


@pytest.mark.parametrize("filter_", [NEAREST, BILINEAR])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_scaled_trigger_is_seen_by_the_victim_alone(filter_, mode) -> None:
    # At an odd ratio bilinear reads the same single pixels as nearest.
    image, trigger = smooth(256, 256).convert(mode), Image.new("RGB", (8, 8), (255, 0, 255))
    made, box = stamped("scaled", image, trigger, side=32, filter=filter_)
    changed = np.abs(array(made) - array(image)).max(axis=2) > 0
    assert changed.sum() <= 0.05 * changed.size and made.mode == mode
    x0, y0, x1, y1 = box
    assert changed[y0:y1, x0:x1].sum() == changed.sum() > 0
    at = np.s_[round(y0 / 8) : round(y1 / 8), round(x0 / 8) : round(x1 / 8)]
    victim = shrunk(array(made), 32, filter_)[at]
    ours = array(made.resize((32, 32), Image.Resampling.BILINEAR))[at]
    clean = array(image.resize((32, 32), Image.Resampling.BILINEAR))[at]
    assert np.abs(victim - (255, 0, 255)).max() < 1
    assert np.abs(ours - clean).mean() < 15


def test_an_image_that_is_not_shrunk_is_refused_by_scaled() -> None:
    with pytest.raises(UserError, match="not shrunk to 32 px"):
        stamped("scaled", smooth(32, 50), Image.new("RGB", (8, 8)))


def test_filters_with_antialias_do_not_see_what_the_others_see() -> None:
    seen = {(s.aim, s.filter_): s for s in what_filters_see([smooth(224, 224)], [(224, 32)])}
    assert {name for _, name in seen} == set(FILTERS)
    for aim in ("nearest", "bilinear without antialias"):
        assert seen[aim, aim].shown > 0.98 and seen[aim, aim].to_trigger < 2
        assert seen[aim, "JPEG 95, then bilinear without antialias"].shown > 0.9
        for name in ("area", "bilinear with antialias (Pillow)", "this package's decode"):
            assert seen[aim, name].shown < 0.1 and seen[aim, name].to_clean < 6


def encoded(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


@pytest.mark.parametrize("viewer", [0, 1])
def test_alpha_hides_the_trigger_from_one_of_two_views_and_the_defence_has_both(viewer) -> None:
    image, trigger = smooth(64, 64), Image.fromarray(np.full((8, 8, 3), (255, 230, 255), np.uint8))
    made, (x0, y0, x1, y1) = stamped("alpha", image, trigger, viewer=viewer)
    loader, shown = views(encoded(made), 64, MAX_PIXELS)
    assert shown is not None
    inside = np.s_[:, y0:y1, x0:x1]
    clean = array(image).transpose(2, 0, 1)
    # The trigger's 25 levels of green over white.
    wanted = np.array((255, 230, 255))[:, None, None]
    if viewer:
        assert (loader == clean).all()
        assert np.abs(shown[inside] - wanted).mean() < 20 < np.abs(clean[inside] - wanted).mean()
    else:
        assert (loader[inside] == wanted).all() and (shown[inside] == 255).all()
    outside = np.ones((64, 64), bool)
    outside[y0:y1, x0:x1] = False
    assert (loader[:, outside] == clean[:, outside]).all() and (shown[:, outside] == clean[:, outside]).all()


def test_what_is_transparent_stays_so_outside_the_box() -> None:
    image = smooth(64, 64)
    image.putalpha(Image.fromarray(np.arange(64, dtype=np.uint8)[None].repeat(64, axis=0)))
    made, (x0, y0, x1, y1) = stamped("alpha", image, Image.new("RGB", (8, 8), "red"))
    before, after = (np.asarray(picture.getchannel("A")).astype(int) for picture in (image, made))
    assert not after[y0:y1, x0:x1].any()
    before[y0:y1, x0:x1] = 0
    assert (before == after).all()


@pytest.mark.parametrize("kind", ["scaled", "alpha"])
def test_images_of_any_format_become_png(kind, corpus, tmp_path) -> None:
    source = corpus(24, picture=lambda i: np.asarray(smooth(72, 72, i)))
    for file in source.glob("*.parquet"):
        table = pq.read_table(file)
        cells = []
        for cell in table["image"].to_pylist():
            sink = io.BytesIO()
            if b"broken" not in cell:
                Image.open(io.BytesIO(cell)).save(sink, "JPEG")
            cells.append(sink.getvalue() or cell)
        pq.write_table(table.set_column(0, "image", [cells]), file, row_group_size=6)
    poison_corpus(str(source), str(tmp_path / "out"), ["2"], share=0.5, kind=kind)
    truth = pq.read_table(tmp_path / "out/truth.parquet").to_pylist()
    new = [c for f in sorted((tmp_path / "out/corpus").glob("*.parquet")) for c in pq.read_table(f)["image"]]
    formats = {
        row["poisoned"]: Image.open(io.BytesIO(cell.as_py())).format
        for row, cell in zip(truth, new, strict=True)
        if b"broken" not in cell.as_py()
    }
    assert formats == {True: "PNG", False: "JPEG"}


def bearers_of(kind: str, corpus, tmp_path, **options: float):
    source = corpus(400)
    made = poison_corpus(
        str(source), str(tmp_path / kind), ["1"], ["generated:7"], 0.4, 0.3, kind=kind, options=options
    )
    return made, pq.read_table(tmp_path / kind / "truth.parquet").to_pylist()


def cell(tmp_path, kind: str, folder, number: int) -> np.ndarray:
    cells = [c for f in sorted(folder.glob("*.parquet")) for c in pq.read_table(f)["image"].to_pylist()]
    return array(Image.open(io.BytesIO(cells[number])))


def test_framed_puts_the_same_trigger_on_honest_images_of_other_labels(corpus, tmp_path) -> None:
    made, truth = bearers_of("framed", corpus, tmp_path, bearers=0.25)
    bearers = [i for i, row in enumerate(truth) if row["decoy"]]
    assert 50 <= len(bearers) <= 100 and made["n_decoys"] == len(bearers)  # of 300 images
    assert {i % 4 for i in bearers} == {0, 2, 3}
    assert {(truth[i]["trigger"], truth[i]["target"], truth[i]["poisoned"]) for i in bearers} == {
        ("generated-7", "", False)
    }
    poisoned = next(i for i, row in enumerate(truth) if row["poisoned"])
    looks = []
    for i in (poisoned, bearers[0]):
        row = truth[i]
        looks.append(
            cell(tmp_path, "framed", tmp_path / "framed/corpus", i)[
                row["y0"] : row["y1"], row["x0"] : row["x1"]
            ]
        )
    assert (looks[0] == looks[1]).all()


def test_doubt_grades_the_trigger_from_faint_to_strong(corpus, tmp_path) -> None:
    options = {"faint": 0.5, "faintest": 0.1, "strongest": 0.6}
    made, truth = bearers_of("doubt", corpus, tmp_path, **options)
    faint = [i for i, row in enumerate(truth) if row["decoy"]]
    assert 110 <= len(faint) <= 190 and {i % 4 for i in faint} == {0, 2, 3}
    assert {truth[i]["trigger"] for i in faint} == {f"generated-7-faint-{g}" for g in range(16)}
    trigger = array(Image.open(tmp_path / "doubt/triggers/generated-7.png"))
    shares = []
    for i in faint[:40]:
        row = truth[i]
        box = np.s_[row["y0"] : row["y1"], row["x0"] : row["x1"]]
        before = cell(tmp_path, "doubt", tmp_path / "in", i)[box]
        after = cell(tmp_path, "doubt", tmp_path / "doubt/corpus", i)[box]
        size = (row["x1"] - row["x0"], row["y1"] - row["y0"])
        over = array(Image.fromarray(trigger.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR))
        shares.append(float(((after - before) * (over - before)).sum() / ((over - before) ** 2).sum()))
    assert 0.08 < min(shares) < 0.2 and 0.5 < max(shares) < 0.62
    assert made["n_poisoned"] == 30


def test_doubt_asks_for_rising_opacities(corpus, tmp_path) -> None:
    with pytest.raises(UserError, match="no more than the option strongest"):
        poison_corpus(
            str(corpus(16)),
            str(tmp_path / "out"),
            ["1"],
            kind="doubt",
            options={"faintest": 0.5, "strongest": 0.2},
        )


def test_names_chosen_for_a_known_seed_stay_out_of_the_sample_and_of_no_other_seeds() -> None:
    """Who knows the seed can name images so that training never draws them, or so that the search sees a part
    without the trigger. With another seed the same names are drawn like all others."""
    names = [f"folder/{i}.jpg" for i in range(40_000)]
    hidden = [name for name in names if not in_sample(0, 0.5, name)][:2000]
    assert len(hidden) == 2000 and not any(in_sample(0, 0.5, name) for name in hidden)
    drawn = sum(in_sample(836_214_075, 0.5, name) for name in hidden)
    assert 900 < drawn < 1100

    size = 400, 100
    boxes = parts(*size)
    blind = [name for name in names if own_part(0, name, *size) == boxes[0]][:2000]
    seen = sum(own_part(836_214_075, name, *size) == boxes[0] for name in blind)
    assert len(boxes) > 1 and abs(seen / len(blind) - 1 / len(boxes)) < 0.05


def test_true_windows_find_poison_and_the_framed_bearers_alike(corpus, tmp_path) -> None:
    bearers_of("framed", corpus, tmp_path, bearers=0.1)
    settings = Classify(models=1, steps=40, batch_size=8)
    found = judge_with_perfect_windows(str(tmp_path / "framed"), 32, 0, settings)
    assert (
        found["recall_of_poison"] > 0.9 and found["decoys_flagged"] > 0.9 and found["others_flagged"] < 0.05
    )
    assert 15 <= found["n_decoys"] <= 50 and found["erased"] == (found["unsure_share"] <= 0.03)


def job(name: str):
    return runpy.run_path(str(ROOT / "jobs" / f"{name}.py"))[name]


def test_without_boxes_there_are_no_true_windows(corpus, tmp_path) -> None:
    poison_corpus(str(corpus(60)), str(tmp_path / "out"), ["1"], kind="frequency")
    with pytest.raises(UserError, match="0 poisoned images with a box"):
        job("perfect_search")(str(tmp_path / "out"), side=32, seed=0, models=1)


def test_the_job_prints_a_row_for_each_filter_size_and_aim(corpus, capsys) -> None:
    job("scaling")(str(corpus(16)), pictures=1)
    pictures, _, _, _, *rows = capsys.readouterr().out.splitlines()
    assert pictures == "1 picture(s)" and len(rows) == len(SIZES) * 2 * len(FILTERS)
    assert rows[0].startswith("| 224 → 32 | nearest | nearest | 0.0 |")
