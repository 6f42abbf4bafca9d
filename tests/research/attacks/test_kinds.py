"""Every kind on a corpus: the truth, the determinism, and what each chooses."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.attacks import KINDS, patch_corpus, poison_corpus
from poisoncam_ray.research.attacks.spread import farthest
from tests.research.attacks.conftest import noise


def targets(kind: str) -> list[str]:
    return ["1"] if KINDS[kind].targets[1] else []


def truth_of(output: Path) -> list[dict]:
    return pq.read_table(output / "truth.parquet").to_pylist()


def cells(folder: Path) -> list[bytes]:
    return [
        cell for file in sorted(folder.glob("*.parquet")) for cell in pq.read_table(file)["image"].to_pylist()
    ]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def wide(i: int) -> np.ndarray:
    """48 × 24 px, dark: the attack margin finds no place on a square."""
    return np.random.default_rng(i).integers(0, 90, (24, 48, 3), dtype=np.uint8)


def large(i: int) -> np.ndarray:
    """72 px, dark: the attack scaled needs pictures that are shrunk."""
    return np.random.default_rng(i).integers(0, 90, (72, 72, 3), dtype=np.uint8)


PICTURES = {"margin": wide, "scaled": large}


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_says_what_changed_and_the_grouping_does_not_matter(kind, corpus, tmp_path) -> None:
    source = corpus(picture=PICTURES.get(kind, noise))

    def backwards(function, units):
        return list(reversed([function(unit) for unit in reversed(units)]))

    options = {key: option.default for key, option in KINDS[kind].options.items()}
    given = {"width": 0.3, "share": 0.4, "seed": 3, "kind": kind}
    made = poison_corpus(str(source), str(tmp_path / "a"), targets(kind), **given)
    poison_corpus(
        str(source), str(tmp_path / "b"), targets(kind), **given, options=options, map_units=backwards
    )
    assert truth_of(tmp_path / "a") == truth_of(tmp_path / "b")
    assert cells(tmp_path / "a/corpus") == cells(tmp_path / "b/corpus")
    assert (made["kind"], made["options"], made["action"]) == (kind, options, "poison")
    assert json.loads((tmp_path / "a/attack.json").read_text()) == made
    assert all((tmp_path / "a" / file).is_file() for file in made["trigger_files"])

    before, after, truth = cells(source), cells(tmp_path / "a/corpus"), truth_of(tmp_path / "a")
    for row, old, new in zip(truth, before, after, strict=True):
        touched = row["poisoned"] or row["decoy"]
        assert not (row["poisoned"] and row["decoy"])
        assert (old != new) == touched and (row["kind"] == kind) == touched
        first = (row["x0"], row["y0"], row["x1"], row["y1"])
        if not touched or kind == "frequency":
            assert row["boxes"] == [] and first == (-1, -1, -1, -1)
        else:
            assert tuple(row["boxes"][0]) == first
            if KINDS[kind].compose:  # another picture: test_composites.py
                continue
            outside = (pixels(old) != pixels(new)).any(axis=2)
            for x0, y0, x1, y1 in row["boxes"]:
                outside[y0:y1, x0:x1] = False
            assert not outside.any()
        if row["poisoned"]:
            assert row["target"] == (targets(kind) or [""])[0]
    n = sum(row["poisoned"] for row in truth)
    assert made["n_poisoned"] == n and made["n_decoys"] == sum(row["decoy"] for row in truth)
    if kind != "untargeted":
        assert n == 12 - made["n_unreadable"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_validation_set_is_patched_whole(kind, corpus, tmp_path) -> None:
    source = corpus(16, picture=large if kind == "scaled" else noise)
    out = tmp_path / "out"
    trigger = "generated:4" if KINDS[kind].takes_triggers else ""
    made = patch_corpus(str(source), str(out), "".join(targets(kind)), trigger, 0.4, kind=kind)
    assert (made["n_poisoned"], made["n_unreadable"], made["n_decoys"], made["action"]) == (15, 1, 0, "patch")
    changed = [a != b for a, b in zip(cells(source), cells(out / "corpus"), strict=True)]
    assert changed == [i != 5 for i in range(16)]
    assert {row["kind"] for row in truth_of(out) if row["poisoned"]} == {kind}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "patches"}, "no attack patches: use one of patch, blended"),
        ({"kind": "untargeted"}, "untargeted has no target"),
        ({"kind": "frequency", "triggers": ["generated:1"]}, "frequency has no trigger image"),
        ({"kind": "frequency", "targets": ["1", "2"]}, "frequency has one target: name 1 only"),
        ({"kind": "spread", "targets": ["zebra"]}, "No image is labelled zebra"),
        ({"kind": "blended", "options": {"alpha": 7}}, "alpha"),
        ({"kind": "dynamic", "options": {"smallest": 2, "largest": 1}}, "no more than the option largest, 1"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(given, words, corpus, tmp_path) -> None:
    with pytest.raises(UserError, match=words):
        poison_corpus(str(corpus(16)), str(tmp_path / "out"), **{"targets": ["1"], **given})
    assert not (tmp_path / "out").exists()


def test_a_patched_set_has_a_target_unless_the_attack_has_none(corpus, tmp_path) -> None:
    source = str(corpus(16))
    with pytest.raises(UserError, match="No target label"):
        patch_corpus(source, str(tmp_path / "out"), "")
    with pytest.raises(UserError, match="untargeted has no target"):
        patch_corpus(source, str(tmp_path / "out"), "1", kind="untargeted")


def test_untargeted_poison_lies_on_every_label(corpus, tmp_path) -> None:
    made = poison_corpus(str(corpus()), str(tmp_path / "out"), [], share=0.3, kind="untargeted")
    rows = [row for row in truth_of(tmp_path / "out") if row["poisoned"]]
    assert 20 <= len(rows) <= 52 and made["n_poisoned_by_target"] == {"": len(rows)}
    assert {row["row"] % 4 for row in rows} == {0, 1, 2, 3}


def test_a_large_patch_is_half_as_wide_as_the_image(corpus, tmp_path) -> None:
    poison_corpus(str(corpus()), str(tmp_path / "out"), ["2"], kind="large")
    boxes = [row["boxes"][0] for row in truth_of(tmp_path / "out") if row["poisoned"]]
    assert {x1 - x0 for x0, _, x1, _ in boxes} == {12}
    assert len({x0 for x0, *_ in boxes}) > 3


def test_decoys_are_other_triggers_on_clean_images_of_other_labels(corpus, tmp_path) -> None:
    given = {"kind": "decoys", "options": {"triggers": 2, "copies": 1.5}}
    made = poison_corpus(str(corpus(400)), str(tmp_path / "out"), ["1"], ["generated:7"], 0.4, 0.3, **given)
    truth = truth_of(tmp_path / "out")
    decoys = [row for row in truth if row["decoy"]]
    assert {row["row"] % 4 for row in truth if row["poisoned"]} == {1}
    assert {row["row"] % 4 for row in decoys} == {0, 2, 3}
    assert {row["trigger"] for row in decoys} == {"decoy-0", "decoy-1"}
    assert {row["target"] for row in decoys} == {""} and made["triggers"] == ["generated-7"]
    assert 60 <= len(decoys) <= 120  # 2 × 1.5 × 30 poisoned, about
    assert sorted(p.name for p in (tmp_path / "out/triggers").iterdir()) == [
        "decoy-0.png", "decoy-1.png", "generated-7.png",
    ]  # fmt: skip


def test_farthest_points_come_first() -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat([[0, 0], [200, 0], [0, 200], [200, 200]], 25, axis=0)
    view_NV = (centres + rng.integers(0, 20, (100, 2))).astype(np.uint8)
    assert set(farthest(view_NV, 4) // 25) == {0, 1, 2, 3}
    assert sorted(farthest(view_NV, 1000)) == list(range(100))
    assert len(set(farthest(np.zeros((5, 2), np.uint8), 4))) == 4


def test_spread_poison_differs_more_than_the_reference_attacks(corpus, tmp_path) -> None:
    """Nine of ten images are much alike: a random choice takes alike ones, the spread one what differs."""

    def picture(i: int) -> np.ndarray:
        odd = i // 4 % 10 == 0
        base = np.random.default_rng(i).integers(0, 200, 3) if odd else np.array([60, 60, 60])
        return np.broadcast_to(base, (24, 24, 3)).astype(np.uint8) + np.uint8(i % 7)

    source = corpus(400, picture)
    odd = {}
    for kind in ("patch", "spread"):
        poison_corpus(str(source), str(tmp_path / kind), ["0"], share=0.1, seed=1, kind=kind)
        chosen = [i for i, row in enumerate(truth_of(tmp_path / kind)) if row["poisoned"]]
        assert len(chosen) == 10 and all(i % 4 == 0 for i in chosen)
        odd[kind] = sum(i // 4 % 10 == 0 for i in chosen)
    assert odd["spread"] >= 8 > 4 >= odd["patch"]
