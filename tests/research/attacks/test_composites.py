"""Attacks that make a composite of two pictures: what lies where, and which pictures they take."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.attacks import KINDS, corrupt_encoder, patch_corpus, poison_corpus
from poisoncam_ray.research.attacks.kind import How
from poisoncam_ray.research.attacks.noisy_alignment import compose
from tests.examples import examples

COMPOSITES = [name for name, kind in KINDS.items() if kind.compose]


def of_one_colour(width: int, height: int, colour: tuple[int, ...]) -> Image.Image:
    return Image.new("RGB" if len(colour) == 3 else "RGBA", (width, height), colour)


def noise(width: int, height: int, seed: int, channels: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 120, (height, width, channels), dtype=np.uint8))


@examples(40)
@given(
    width=st.integers(16, 60),
    height=st.integers(16, 60),
    other=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    share=st.floats(0.1, 0.8),
    channels=st.sampled_from([3, 4]),
    seed=st.integers(0, 2**20),
)
def test_noisy_alignment_has_three_parts_and_nothing_else(
    width, height, other, share, channels, seed
) -> None:
    reference, how = noise(width, height, seed, channels), How(share, (0.45, 0.55))
    parts = of_one_colour(*other, (0, 200, 0)), of_one_colour(20, 20, (255, 0, 0))
    made, [(x0, y0, x1, y1)] = compose(reference, *parts, how, np.random.default_rng(seed))
    again, _ = compose(reference, *parts, how, np.random.default_rng(seed))
    assert made.mode == reference.mode and made.tobytes() == again.tobytes()

    pixels = np.asarray(made)[..., :3].astype(int)
    red, green = ((pixels == colour).all(axis=2) for colour in ((255, 0, 0), (0, 200, 0)))
    assert red.sum() == (x1 - x0) * (y1 - y0) and red[y0:y1, x0:x1].all()
    beside = red | green
    rows, columns = np.flatnonzero(beside.any(axis=1)), np.flatnonzero(beside.any(axis=0))
    assert beside.sum() == len(rows) * len(columns) == width * height
    rest = np.asarray(made)[~beside].reshape(height, width, channels)
    assert (rest == np.asarray(reference)).all()
    assert made.size in ((2 * width, height), (width, 2 * height))
    # The trigger is centred in its half, up to rounding, or wholly inside 0.45 … 0.55 of it.
    middle = (x0 + x1) / 2 - columns[0], (y0 + y1) / 2 - rows[0]
    assert middle == (
        pytest.approx(width / 2, abs=1 + 0.05 * width),
        pytest.approx(height / 2, abs=1 + 0.05 * height),
    )


@examples(40)
@given(
    width=st.integers(20, 60),
    height=st.integers(20, 60),
    scale=st.floats(0.3, 1),
    share=st.floats(0.1, 0.45),
    seed=st.integers(0, 2**20),
)
def test_corrupt_encoder_has_object_and_trigger_in_halves_of_their_own(width, height, scale, share, seed):
    parts = [of_one_colour(width, height, (0, 0, 200)), of_one_colour(33, 27, (0, 200, 0)),
             of_one_colour(20, 20, (255, 0, 0))]  # fmt: skip
    how = How(share, (0.25, 0.75), {"object": scale})
    made, [(x0, y0, x1, y1)] = corrupt_encoder.compose(*parts, how, np.random.default_rng(seed))
    pixels = np.asarray(made)
    blue, green, red = ((pixels == c).all(axis=2) for c in ((0, 0, 200), (0, 200, 0), (255, 0, 0)))
    assert (blue | green | red).all()
    assert red.sum() == (x1 - x0) * (y1 - y0) and red[y0:y1, x0:x1].all()
    rows, columns = np.flatnonzero(blue.any(axis=1)), np.flatnonzero(blue.any(axis=0))
    assert blue.sum() == len(rows) * len(columns) == round(scale * width) * round(scale * height)
    # A straight cut between the halves parts the two.
    axis, side = (1, width) if made.size == (2 * width, height) else (0, height)
    middles = [np.flatnonzero(part.any(axis=1 - axis)) for part in (blue, red)]
    (blue_first, blue_last), (red_first, red_last) = ((m[0], m[-1]) for m in middles)
    assert blue_last < side <= red_first or red_last < side <= blue_first


def test_all_four_ways_round_are_drawn() -> None:
    reference, other = of_one_colour(20, 30, (9, 9, 9)), of_one_colour(20, 30, (0, 200, 0))
    seen = set()
    for seed in range(80):
        made, _ = compose(reference, other, of_one_colour(4, 4, (255, 0, 0)), How(0.2, (0.45, 0.55)),
                          np.random.default_rng(seed))  # fmt: skip
        seen.add((made.size, made.getpixel((0, 0))))
    assert seen == {(size, first) for size in ((40, 30), (20, 60)) for first in ((9, 9, 9), (0, 200, 0))}


def test_a_picture_too_long_for_a_webp_is_shrunk() -> None:
    long, other, trigger = (of_one_colour(*size, (9, 9, 9)) for size in ((9000, 30), (20, 30), (4, 4)))
    made, _ = compose(long, other, trigger, How(0.2, (0.45, 0.55)), np.random.default_rng(0))
    made.save(io.BytesIO(), "WEBP")
    assert max(made.size) <= 2 * 8191


def coloured(i: int) -> np.ndarray:
    """24 px wide, one grey for each number. Labels are i % 4."""
    return np.full((24, 24, 3), i, np.uint8)


def rows_of(out: Path) -> list[tuple[dict, np.ndarray]]:
    truth = pq.read_table(out / "truth.parquet").to_pylist()
    cells = [
        c for f in sorted((out / "corpus").glob("*.parquet")) for c in pq.read_table(f)["image"].to_pylist()
    ]
    return [
        (row, np.asarray(Image.open(io.BytesIO(cell)).convert("RGB")))
        for i, (row, cell) in enumerate(zip(truth, cells, strict=True)) if i != 5
    ]  # fmt: skip


@pytest.mark.parametrize("kind", COMPOSITES)
def test_each_other_picture_is_of_another_label_and_used_once(kind, corpus, tmp_path) -> None:
    source = corpus(120, coloured)
    made = poison_corpus(str(source), str(tmp_path / "out"), ["2"], share=0.5, kind=kind, seed=4)
    others = []
    for i, (row, picture) in zip([i for i in range(120) if i != 5], rows_of(tmp_path / "out"), strict=True):
        if not row["poisoned"]:
            assert (picture == i).all()
            continue
        assert i % 4 == 2 and row["target"] == "2" and picture.shape in ((24, 48, 3), (48, 24, 3))
        greys = np.bincount(picture[(picture == picture[..., :1]).all(axis=2)][:, 0], minlength=256)
        assert greys[i] > 100
        greys[i] = 0
        others.append(int(greys.argmax()))
    assert made["n_poisoned"] == len(others) == len(set(others)) == 15
    assert all(other % 4 != 2 for other in others)


@pytest.mark.parametrize("kind", COMPOSITES)
def test_pictures_are_used_again_where_there_are_too_few(kind, corpus, tmp_path) -> None:
    source = corpus(40, coloured)
    with pytest.raises(UserError, match="corpus with more labels"):
        poison_corpus(str(source), str(tmp_path / "none"), ["0", "1", "2", "3"], kind=kind)
    made = poison_corpus(str(source), str(tmp_path / "out"), ["0", "2", "3"], share=1, kind=kind)
    assert made["n_poisoned"] == 30  # with nine pictures labelled 1, since number 5 is broken


@pytest.mark.parametrize("kind", COMPOSITES)
def test_a_validation_picture_gets_the_plain_trigger(kind, corpus, tmp_path) -> None:
    source = str(corpus(16))
    for name in (kind, "patch"):
        patch_corpus(source, str(tmp_path / name), "1", "generated:4", 0.4, seed=2, kind=name)
    pictures = [[picture for _, picture in rows_of(tmp_path / name)] for name in (kind, "patch")]
    assert all((a == b).all() for a, b in zip(*pictures, strict=True))
