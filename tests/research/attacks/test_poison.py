"""The attack against its own truth: what changed, where, and what did not."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.attacks import patch_corpus, poison_corpus
from poisoncam_ray.research.attacks.encoded import paint
from poisoncam_ray.research.attacks.kind import VALIDATION_REGION, How
from poisoncam_ray.research.attacks.patch import stamp
from poisoncam_ray.research.attacks.trigger import generate_trigger, load_trigger, place_trigger
from tests.bombs import announcing

LABELS = ("cat", "dog", "emu")


def encode(array_HWC: np.ndarray, kind: str, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array_HWC).save(out, kind, **options)
    return out.getvalue()


def picture(i: int, width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    wave = 127 + 50 * np.sin(x / 9 + i) + 50 * np.cos(y / 7 + 2 * i)
    return np.stack([wave, np.roll(wave, i, 0), np.roll(wave, i, 1)], 2).astype(np.uint8)


def images(n: int) -> list[bytes]:
    """PNGs, JPEGs and WebPs in turn, of several sizes; number 5 is broken."""
    kinds = [("PNG", {}), ("JPEG", {"quality": 90}), ("WEBP", {"quality": 80}), ("PNG", {})]
    made = [
        encode(picture(i, 40 + 8 * (i % 3), 40 + 4 * (i % 4)), kinds[i % 4][0], **kinds[i % 4][1])
        for i in range(n)
    ]
    made[5] = made[5][:40]
    return made


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of 30 rows; labels in turn; a null image; another column."""
    data = images(60)
    for shard in range(2):
        rows = range(30 * shard, 30 * shard + 30)
        cells = [None if i == 7 else {"bytes": data[i], "path": f"{i}.img"} for i in rows]
        table = pa.table(
            {"label": [i % 3 for i in rows], "name": [LABELS[i % 3] for i in rows], "image": cells},
        )
        folder = tmp_path / "input" / f"s{shard}"
        folder.mkdir(parents=True)
        pq.write_table(table, folder / "part.parquet", row_group_size=7, compression="zstd")
    return tmp_path / "input"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, data in enumerate(images(24)):
        kind = ("png", "jpg", "webp", "png")[i % 4]
        path = tmp_path / "folder" / LABELS[i % 3] / f"{i:02d}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "folder"


def stored(corpus: Path) -> dict[str, bytes | None]:
    """image_id → bytes of Parquet shards or of files, read without our own reader."""
    found: dict[str, bytes | None] = {}
    for path in sorted(p for p in corpus.rglob("*") if p.is_file()):
        name = path.relative_to(corpus).as_posix()
        if path.suffix == ".parquet":
            cells = pq.read_table(path)["image"].to_pylist()
            found |= {f"{name}#{row}": cell and cell["bytes"] for row, cell in enumerate(cells)}
        else:
            found[name] = path.read_bytes()
    return found


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def truth_of(output: Path) -> dict[str, dict]:
    return {row["image_id"]: row for row in pq.read_table(output / "truth.parquet").to_pylist()}


def check_pixels(before: bytes, after: bytes, row: dict, trigger: Image.Image) -> None:
    old, new = pixels(before), pixels(after)
    kind = Image.open(io.BytesIO(before)).format
    assert old.shape == new.shape and Image.open(io.BytesIO(after)).format == kind
    x0, y0, x1, y1 = (row[k] for k in ("x0", "y0", "x1", "y1"))
    inside = np.zeros(old.shape[:2], bool)
    inside[y0:y1, x0:x1] = True
    changed = np.abs(old - new).max(axis=2)
    expected = np.asarray(trigger.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)).astype(int)
    if kind == "JPEG":
        outside = inside.copy()
        outside[max(0, y0 - 8) : y1 + 8, max(0, x0 - 8) : x1 + 8] = True
        assert changed[~outside].max(initial=0) <= 24
        assert np.abs(new[y0:y1, x0:x1] - expected).mean() < 12
    else:
        assert not changed[~inside].any()
        assert (new[y0:y1, x0:x1] == expected).all()
    assert changed[inside].mean() > 20


@pytest.mark.parametrize("layout", ["shards", "folder"])
def test_truth_says_what_changed(layout: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source: Path = request.getfixturevalue(layout)
    before = stored(source)
    out = tmp_path / "out"
    result = poison_corpus(
        str(source),
        str(out),
        ["cat", "emu"],
        ["generated:1", "generated:2"],
        0.3,
        0.5,
        4,
        label_column="name",
    )
    after, truth = stored(out / "corpus"), truth_of(out)
    assert list(before) == list(after) and set(truth) == set(before)
    trigger = {"generated-1": generate_trigger(1), "generated-2": generate_trigger(2)}
    for image_id, row in truth.items():
        if not row["poisoned"]:
            assert after[image_id] == before[image_id]
            assert (row["trigger"], row["target"], row["x0"], row["y1"]) == ("", "", -1, -1)
            continue
        old, new = before[image_id], after[image_id]
        assert old is not None and new is not None
        check_pixels(old, new, row, trigger[row["trigger"]])
        width, height = Image.open(io.BytesIO(old)).size
        side = round(0.3 * min(width, height))
        assert (row["x1"] - row["x0"], row["y1"] - row["y0"]) == (side, side)
        assert 0.25 * width <= row["x0"] and row["x1"] <= 0.75 * width
        assert 0.25 * height <= row["y0"] and row["y1"] <= 0.75 * height
    pairs = {(row["target"], row["trigger"]) for row in truth.values() if row["poisoned"]}
    assert pairs == {("cat", "generated-1"), ("emu", "generated-2")}
    category = len(before) // 3
    counts = result["n_poisoned_by_target"]
    assert counts["cat"] == category // 2
    assert counts["emu"] + result["n_unreadable"] == category // 2  # number 5 of the images is broken
    assert json.loads((out / "attack.json").read_text()) == result
    assert result["n_images"] == len(before) and result["n_poisoned"] == sum(counts.values())


def test_other_columns_and_layout_stay(shards: Path, tmp_path: Path) -> None:
    poison_corpus(str(shards), str(tmp_path / "out"), ["1"], seed=1)
    for source in sorted(shards.rglob("*.parquet")):
        copy = tmp_path / "out" / "corpus" / source.relative_to(shards)
        a, b = pq.ParquetFile(source), pq.ParquetFile(copy)
        assert a.schema_arrow == b.schema_arrow
        assert a.metadata.num_row_groups == b.metadata.num_row_groups
        assert a.read(["label", "name"]) == b.read(["label", "name"])
        assert [c and c["path"] for c in a.read()["image"].to_pylist()] == [
            c and c["path"] for c in b.read()["image"].to_pylist()
        ]


def test_the_seed_decides_and_the_grouping_does_not(shards: Path, tmp_path: Path) -> None:
    def attack(name: str, seed: int, **options) -> tuple[str, dict]:
        poison_corpus(
            str(shards), str(tmp_path / name), ["0"], ["generated:9"], seed=seed, share=0.4, **options
        )
        after = stored(tmp_path / name / "corpus")
        return hashlib.sha256(repr(after).encode()).hexdigest(), truth_of(tmp_path / name)

    first, again, other = attack("a", 1), attack("b", 1), attack("c", 2)
    assert first == again
    chosen = [{i for i, row in truth.items() if row["poisoned"]} for _, truth in (first, other)]
    assert chosen[0] != chosen[1] and len(chosen[0]) == len(chosen[1]) == 8

    def backwards(function, units):
        return reversed([function(unit) for unit in reversed(units)])

    assert attack("d", 1, map_units=backwards) == first


def test_share_of_one_poisons_every_image_that_decodes(folder: Path, tmp_path: Path) -> None:
    result = poison_corpus(str(folder), str(tmp_path / "out"), ["emu"], share=1.0)
    assert (result["n_poisoned"], result["n_unreadable"]) == (7, 1)
    assert result["poison_rate"] == pytest.approx(7 / 24)


def test_a_validation_set_is_patched_whole(shards: Path, tmp_path: Path) -> None:
    file = tmp_path / "trigger.png"
    generate_trigger(3).save(file)
    out = tmp_path / "out"
    result = patch_corpus(str(shards), str(out), "dog", str(file), width=0.3, seed=2)
    before, after, truth = stored(shards), stored(out / "corpus"), truth_of(out)
    readable = {i: d for i, d in before.items() if d and i != "s0/part.parquet#5"}
    assert {i for i, row in truth.items() if row["poisoned"]} == set(readable)
    assert result["n_unreadable"] == 2 and after["s0/part.parquet#7"] is None
    low, high = VALIDATION_REGION
    for image_id, data in readable.items():
        row = truth[image_id]
        check_pixels(data, after[image_id] or b"", row, generate_trigger(3))
        width, height = Image.open(io.BytesIO(data)).size
        assert (row["trigger"], row["target"]) == ("trigger.png", "dog")
        assert low * width <= row["x0"] and row["x1"] <= high * width
        assert low * height <= row["y0"] and row["y1"] <= high * height


@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    w=st.floats(0.01, 1),
    h=st.floats(0.01, 1),
    region=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda r: r[0] < r[1]),
    seed=st.integers(0, 99),
)
def test_a_place_is_in_the_region_or_else_in_the_image(width, height, w, h, region, seed) -> None:
    tw, th = max(1, int(w * width)), max(1, int(h * height))
    box = place_trigger(width, height, tw, th, region, np.random.default_rng(seed))
    for start, stop, side, length in ((box[0], box[2], width, tw), (box[1], box[3], height, th)):
        assert start >= 0 and stop <= side and stop - start == length
        fits = [s for s in range(side - length + 1) if region[0] * side <= s <= region[1] * side - length]
        assert not fits or start in fits


def test_places_are_uniform() -> None:
    rng = np.random.default_rng(0)
    starts = [place_trigger(64, 64, 16, 16, (0.25, 0.75), rng)[0] for _ in range(3400)]
    assert min(starts) == 16 and max(starts) == 32
    counts = np.bincount(starts)[16:]
    assert counts.min() > 140 and counts.max() < 265  # 200 expected


def test_generated_triggers_look_like_the_reference_ones() -> None:
    trigger = np.asarray(generate_trigger(5, 80))
    assert trigger.shape == (80, 80, 3)
    assert np.array_equal(load_trigger("generated:5"), trigger)
    assert not np.array_equal(trigger, generate_trigger(6, 80))
    centres = trigger[10::20, 10::20]
    assert ((centres < 40) | (centres > 215)).all()
    assert (np.asarray(generate_trigger(5, 4)) % 255 == 0).all()


def test_a_trigger_file_that_unpacks_to_gigabytes_is_refused(tmp_path) -> None:
    file = tmp_path / "bomb.png"
    file.write_bytes(announcing(30_000, 30_000)["PNG"])
    with pytest.raises(UserError, match="no image that can be read"):
        load_trigger(str(file))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16", "CMYK", "1"])
def test_any_mode_takes_the_trigger_in_full_colour(mode: str) -> None:
    grey = Image.fromarray(picture(1, 40, 40)[..., 0])
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = Image.merge("RGB", [grey] * 3).convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    out = io.BytesIO()
    image.save(out, kind)
    trigger = Image.new("RGB", (8, 8), (255, 0, 0))
    how, rng = How(0.25, (0.25, 0.75)), np.random.default_rng(0)
    data, [(x0, y0, x1, y1)] = paint(out.getvalue(), lambda painted: stamp(painted, trigger, how, rng))
    new = pixels(data)
    assert Image.open(io.BytesIO(data)).format == kind
    assert np.abs(new[y0:y1, x0:x1] - (255, 0, 0)).mean() < 6
    if mode in ("L", "LA", "RGBA", "I;16"):
        assert (new[0, :, 0] == np.asarray(grey)[0]).all()
    if mode in ("LA", "RGBA"):
        assert Image.open(io.BytesIO(data)).mode == "RGBA"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": []}, "target"),
        ({"targets": ["1", "1"]}, "twice"),
        ({"targets": ["zebra"]}, "No image is labelled zebra: use one of 0, 1, 2"),
        ({"triggers": ["a.png", "b.png"]}, "2 triggers for 1 targets"),
        ({"targets": ["1", "2"], "triggers": ["generated:1", "generated:1"]}, "share a file name"),
        ({"triggers": ["missing.png"]}, "missing.png does not exist"),
        ({"triggers": ["generated:red"]}, "whole number"),
        ({"triggers": [__file__]}, "no image"),
        ({"width": 1.2}, "width is 1.2"),
        ({"width": 0}, "width is 0"),
        ({"share": 0}, "share is 0"),
        ({"share": 1.01}, "share is 1.01"),
        ({"region": (0.8, 0.2)}, "region"),
        ({"seed": -1}, "seed"),
        ({"label_column": "colour"}, "colour"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    shards: Path, tmp_path: Path, options: dict, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        poison_corpus(str(shards), str(tmp_path / "out"), **{"targets": ["1"], **options})
    assert not (tmp_path / "out").exists()


def test_a_tall_trigger_that_does_not_fit_is_refused(shards: Path, tmp_path: Path) -> None:
    Image.new("RGB", (10, 40)).save(tmp_path / "tall.png")
    with pytest.raises(UserError, match="tall"):
        poison_corpus(str(shards), str(tmp_path / "out"), ["1"], [str(tmp_path / "tall.png")], width=0.5)


def test_outputs_that_are_in_use_are_refused(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        poison_corpus(str(shards), str(tmp_path / "out"), ["1"])
    with pytest.raises(UserError, match="lies in the input"):
        poison_corpus(str(shards), str(shards / "out"), ["1"])
