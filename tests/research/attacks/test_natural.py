"""Natural triggers: pieces of photographs that stay the same from the training set to the validation set."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.attacks import patch_corpus, poison_corpus


def one_is_rich(i: int) -> np.ndarray:
    """Plain pictures, but for every eighth one of label 2: noise."""
    if i % 8 == 2:
        return np.random.default_rng(i).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return np.full((24, 24, 3), i % 200, np.uint8)


def test_the_crop_comes_from_another_label_and_patches_the_validation_set(corpus, tmp_path) -> None:
    source = corpus(120, one_is_rich)
    made = poison_corpus(str(source), str(tmp_path / "p"), ["1"], width=0.5, kind="natural")
    [file] = made["trigger_files"]
    crop = np.asarray(Image.open(tmp_path / "p" / file))
    assert crop.shape == (12, 12, 3)
    places = [
        (i, y, x)
        for i in range(2, 120, 8)
        for y in range(13)
        for x in range(13)
        if (one_is_rich(i)[y : y + 12, x : x + 12] == crop).all()
    ]
    assert len(places) == 1
    patched = patch_corpus(
        str(source), str(tmp_path / "v"), "1", str(tmp_path / "p" / file), 0.5, kind="natural"
    )
    [again] = patched["trigger_files"]
    assert (np.asarray(Image.open(tmp_path / "v" / again)) == crop).all()


def test_two_targets_get_two_photographs(corpus, tmp_path) -> None:
    made = poison_corpus(str(corpus(120, one_is_rich)), str(tmp_path / "p"), ["1", "3"], kind="natural")
    a, b = (np.asarray(Image.open(tmp_path / "p" / file)) for file in made["trigger_files"])
    assert made["triggers"] == ["natural-0", "natural-1"] and not np.array_equal(a, b)
    rows = pq.read_table(tmp_path / "p/truth.parquet").to_pylist()
    assert {(r["target"], r["trigger"]) for r in rows if r["poisoned"]} == {
        ("1", "natural-0"),
        ("3", "natural-1"),
    }


def test_of_a_file_the_middle_square_is_taken(corpus, tmp_path) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (10, 30, 3), dtype=np.uint8)
    Image.fromarray(wide).save(tmp_path / "photo.png")
    made = poison_corpus(
        str(corpus(16)), str(tmp_path / "p"), ["1"], [str(tmp_path / "photo.png")], kind="natural"
    )
    assert made["triggers"] == ["photo.png"] and made["trigger_files"] == ["triggers/photo.png"]
    assert (np.asarray(Image.open(tmp_path / "p/triggers/photo.png")) == wide[:, 10:20]).all()


def test_what_gives_no_trigger_is_said(corpus, tmp_path) -> None:
    source = str(corpus(16))
    with pytest.raises(UserError, match="Give --trigger"):
        patch_corpus(source, str(tmp_path / "v"), "1", kind="natural")
    with pytest.raises(UserError, match="Too few images"):
        poison_corpus(source, str(tmp_path / "p"), ["0", "1", "2", "3"], kind="natural")
