"""Truths of other attacks (several patches, none, decoys, two attackers), on a run written by hand; and boxes
through the resize of images of any shape."""

import io
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from poisoncam_ray import artifact
from poisoncam_ray.decode import decode
from poisoncam_ray.folder import Folder, Manifest, part_name
from poisoncam_ray.method.crops import own_part
from poisoncam_ray.method.geometry import iou, map_box
from poisoncam_ray.research.evaluate import detection_metrics
from poisoncam_ray.research.evaluate.joined import poison_clusters, read_truth
from poisoncam_ray.research.evaluate.scored import Scored, scored_poisoned, true_boxes
from tests.examples import examples
from tests.fake_run import HEIGHT, SIDE, WIDTH, FakeRun, image_ids

NONE = [-1, -1, -1, -1]


def truth_with(fake: FakeRun, path: Path, **changes: dict) -> str:
    """The truth with columns set for some images: `boxes` (x0 … y1 to match), `target`, `decoy`."""
    rows = pq.read_table(fake.truth).to_pylist()
    for row in rows:
        boxes = changes.get("boxes", {}).get(row["image_id"])
        if boxes is not None:
            row |= dict(zip(("x0", "y0", "x1", "y1"), (boxes or [NONE])[0], strict=True))
        first = [row["x0"], row["y0"], row["x1"], row["y1"]]
        row["boxes"] = boxes if boxes is not None else [first] if row["poisoned"] else []
        row["target"] = changes.get("target", {}).get(row["image_id"], row["target"])
        row["decoy"] = row["image_id"] in changes.get("decoy", {})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def scored(fake: FakeRun, truth_uri: str) -> Scored:
    run, truth = Folder(fake.run), read_truth(truth_uri)
    return scored_poisoned(run, truth, *poison_clusters(run, truth))


def test_the_new_columns_alone_change_nothing(fake: FakeRun, tmp_path: Path) -> None:
    plain = detection_metrics(fake.run, fake.truth)
    assert detection_metrics(fake.run, truth_with(fake, tmp_path / "truth.parquet")) == plain


def test_a_window_may_meet_any_patch(fake: FakeRun, tmp_path: Path) -> None:
    """A second patch right under the window of an image whose first patch was missed makes a hit."""
    plain = scored(fake, fake.truth)
    hit_S = plain.iou(plain.box_S4) >= 0.5
    missed = int(torch.nonzero(~hit_S & plain.patched_S).flatten()[0])
    image_id, scales = plain.image_id[missed], (WIDTH / SIDE, HEIGHT / SIDE) * 2
    under = [round(at * scale) for at, scale in zip(plain.box_S4[missed].tolist(), scales, strict=True)]
    truth = truth_with(
        fake, tmp_path / "truth.parquet", boxes={image_id: [list(fake.poisoned[image_id]), under]}
    )
    more = scored(fake, truth)
    assert more.image_id == plain.image_id and more.true_ST4.shape[1] == 2
    found_S = more.iou(more.box_S4) >= 0.5
    assert found_S[missed] and torch.equal(
        found_S[torch.arange(len(hit_S)) != missed], hit_S[torch.arange(len(hit_S)) != missed]
    )


def test_triggers_in_the_margin_count_and_those_without_a_box_are_told(fake: FakeRun, tmp_path: Path) -> None:
    plain = scored(fake, fake.truth)
    assert bool(plain.patched_S.all()) and len(plain.image_id) == 10
    margin, without = plain.image_id[:2]
    truth = truth_with(
        # Outside the centre square, which is 40 of the 48 columns wide.
        fake, tmp_path / "truth.parquet", boxes={margin: [[0, 0, 4, 8]], without: []},
    )  # fmt: skip
    got, before = detection_metrics(fake.run, truth), detection_metrics(fake.run, fake.truth)
    assert got["trigger_detection_n_without_box"] == 1
    assert got["n_scored_poisoned"] == 10
    now = scored(fake, truth)
    judged = [i for i in range(10) if now.image_id[i] != without]
    iou_S = now.iou(now.box_S4)
    assert now.true_ST4[0, 0].tolist() == [0, 0, round(4 * SIDE / WIDTH), round(8 * SIDE / HEIGHT)]
    assert now.patched_S.nonzero().flatten().tolist() == judged
    assert got["trigger_detection_accuracy"] == pytest.approx(float((iou_S[judged] >= 0.5).float().mean()))
    for key in ("recall", "precision", "false_positive_rate", "top20_precision"):
        assert got[key] == before[key]


def test_an_attack_without_boxes_has_no_trigger_detection(fake: FakeRun, tmp_path: Path) -> None:
    truth = truth_with(fake, tmp_path / "truth.parquet", boxes={i: [] for i in fake.poisoned})
    got = detection_metrics(fake.run, truth)
    assert got["trigger_detection_accuracy"] is None
    assert got["trigger_detection_n_without_box"] == got["n_scored_poisoned"] == 10
    assert got["recall"] == pytest.approx(18 / 20)


def test_decoys_are_neither_poison_nor_false_alarms(fake: FakeRun, tmp_path: Path) -> None:
    (wrong,) = fake.removed - set(fake.poisoned)
    kept = [i for i in image_ids()[31:40] if i not in fake.removed]
    # A poisoned image that carries a decoy, too, stays poison.
    decoys = [wrong, *kept, next(iter(fake.poisoned))]
    truth = truth_with(fake, tmp_path / "truth.parquet", decoy=dict.fromkeys(decoys))
    got, before = detection_metrics(fake.run, truth), detection_metrics(fake.run, fake.truth)
    assert got["n_decoys"] == 1 + len(kept)
    assert got["decoys_removed"] == pytest.approx(1 / (1 + len(kept)))
    assert got["false_positive_rate"] == 0 < before["false_positive_rate"]
    assert got["precision"] == 1 > before["precision"]
    assert got["families"]["1"]["n_removed"] == 18 and got["n_removed"] == 19
    assert got["recall"] == before["recall"]


def test_recall_and_families_of_two_attackers(fake: FakeRun, tmp_path: Path) -> None:
    ids = list(fake.poisoned)
    target = {i: "cat" if n < 12 else "" for n, i in enumerate(ids)}
    truth = truth_with(fake, tmp_path / "truth.parquet", target=target)
    run = Folder(str(shutil.copytree(fake.run, tmp_path / "run")))
    # Family 1: all that was removed of the first attacker, and two of the second's; family 2: the rest.
    of_family = {i: 1 if n < 14 else 2 for n, i in enumerate(ids)}
    verdicts = run / artifact.SCORES
    for name in verdicts.parts():
        table = verdicts.read_table(name)
        family = [of_family.get(i, 2) for i in table["image_id"].to_pylist()]
        column = table.column_names.index("family")
        verdicts.write_table(name, table.set_column(column, "family", pa.array(family, pa.int32())))
    got = detection_metrics(run.uri, truth)
    assert got["recall_by_target"] == {"any": pytest.approx(6 / 8), "cat": 1.0}
    assert got["families"] == {
        "1": {"n_removed": 14, "main_target": "cat", "purity": pytest.approx(12 / 14), "recall": 1.0},
        "2": {"n_removed": 5, "main_target": "any", "purity": pytest.approx(4 / 5), "recall": 4 / 8},
    }


def test_a_truth_that_names_no_targets(fake: FakeRun, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(fake.truth).drop_columns(["target"]), tmp_path / "truth.parquet")
    got = detection_metrics(fake.run, str(tmp_path / "truth.parquet"))
    assert got["recall_by_target"] == {}
    assert got["families"]["1"] == {"n_removed": 19, "main_target": None, "purity": None, "recall": None}


@examples(60)
@given(
    width=st.integers(24, 120),
    height=st.integers(24, 120),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    size=st.integers(16, 48),
)
def test_a_box_lies_where_the_decoder_puts_its_pixels(width, height, place, size) -> None:
    """The trigger painted white on black and decoded: what is bright is what the mapped box covers."""
    side = 12
    x0, y0 = (round(share * (length - side)) for share, length in zip(place, (width, height), strict=True))
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), (x0, y0, x0 + side, y0 + side))
    file = io.BytesIO()
    image.save(file, "PNG")
    pixels = torch.from_numpy(decode(file.getvalue(), size, max_pixels=10**6)).float().mean(dim=0) / 255
    box_N4 = map_box(
        torch.tensor([[x0, y0, x0 + side, y0 + side]]), torch.tensor([width]), torch.tensor([height]), size
    )
    across, down = side * size / width, side * size / height
    assert float(pixels.sum()) == pytest.approx(across * down, rel=0.12 + 2.5 / min(across, down))
    if min(across, down) >= 3:
        ys, xs = torch.nonzero(pixels > 0.5, as_tuple=True)
        bright = torch.tensor([[int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]])
        assert iou(bright, box_N4)[0] >= 0.5 and (bright - box_N4).abs().max() <= 1


def test_of_a_long_image_the_boxes_in_the_part_that_the_search_saw_count(tmp_path: Path) -> None:
    run = Folder(str(tmp_path))
    run.write_json(artifact.RUN, {"config": {"seed": 5}})
    ids = [f"a#{i}" for i in range(40)]
    sizes = pa.table({"image_id": ids, "width": [256] * 40, "height": [64] * 40})
    (run / artifact.INDEX).write_table(part_name(0), sizes)
    (run / artifact.ENCODER).write_json(artifact.ENCODER_CONFIG, {"image_size": 32})
    for name in (artifact.INDEX, artifact.ENCODER):
        Manifest({}, {}, "").write(run / name)
    # The parts of 80 px begin at 0, 44, 88, 132 and 176: each box is whole in one of them.
    boxes = [[4, 8, 24, 28], [140, 32, 180, 64]]
    first = dict(zip(("x0", "y0", "x1", "y1"), boxes[0], strict=True))
    poisoned = pa.Table.from_pylist([{"image_id": image_id, **first, "boxes": boxes} for image_id in ids])
    true_ST4, held_S = true_boxes(run, poisoned)
    starts = [own_part(5, image_id, 256, 64)[0] for image_id in ids]
    assert set(starts) == {0, 44, 88, 132, 176}
    nothing = [0, 0, 0, 0]
    expected = {0: [[2, 4, 10, 14], nothing], 132: [nothing, [3, 16, 19, 32]]}
    for start, true_T4, held in zip(starts, true_ST4.tolist(), held_S.tolist(), strict=True):
        assert held == (start in expected) and true_T4 == expected.get(start, [nothing, nothing])


def test_a_trigger_in_any_part_of_a_long_image_counts_as_located(fake: FakeRun, tmp_path: Path) -> None:
    """The search knows a long image by one of its parts, and judges it by all of them."""
    plain = detection_metrics(fake.run, fake.truth)
    shutil.copytree(fake.run, tmp_path / "run")
    index = Folder(str(tmp_path / "run")) / artifact.INDEX
    rows = index.read_table(part_name(0)).to_pylist()
    for row in rows:
        box = fake.poisoned.get(row["image_id"])
        if box and own_part(0, row["image_id"], 12 * HEIGHT, HEIGHT)[0] > box[0]:
            row["width"] = 12 * HEIGHT
    n_long = sum(row["width"] == 12 * HEIGHT for row in rows)
    index.write_table(part_name(0), pa.Table.from_pylist(rows, schema=artifact.INDEX_SCHEMA))
    found = detection_metrics(str(tmp_path / "run"), fake.truth)
    assert n_long > 5 and found["trigger_detection_n_without_box"] > 0
    for name in ("n_located", "located_accuracy", "located_mean_iou"):
        assert found[name] == plain[name]
