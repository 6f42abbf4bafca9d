"""Judge on images with several views: what a viewer shows, and the parts of long images. No Ray."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from poisoncam_ray import artifact
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.folder import Folder, part_name
from poisoncam_ray.method.crops import own_part
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages import judge, pixels
from poisoncam_ray.stages.dataflow import _decode_both_views, _OnImages
from poisoncam_ray.stages.ensembles import Ensembles
from poisoncam_ray.stages.index import index_slice
from poisoncam_ray.stages.judge import JudgeSlice
from poisoncam_ray.stages.pixels import read_slice, read_views

SIDE, CELL, AT = 32, 4, 12
BOARD = np.kron([[1, 0], [0, 1]], np.ones((CELL, CELL)))
# As it is stored in a long image, whose parts of 5:4 are squeezed into a square.
WIDE_BOARD = np.kron([[1, 0], [0, 1]], np.ones((CELL, 5 * CELL // 4)))
WIDE = WIDE_BOARD.shape[1]
PLACE = np.s_[AT : AT + 2 * CELL, AT : AT + 2 * CELL]
BOX = [AT, AT, AT + 2 * CELL, AT + 2 * CELL]
GREY = 128


class Chessboard(nn.Module):
    """How much the most similar place looks like the trigger: 1 for the trigger itself."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x_BCHW):
        self.seen.append(len(x_BCHW))
        kernel = torch.tensor(2 * BOARD - 1, dtype=torch.float32)[None, None] / BOARD.sum()
        return functional.conv2d(x_BCHW.mean(dim=1, keepdim=True), kernel).amax(dim=(1, 2, 3))


def canvas(channels: int) -> np.ndarray:
    """A grey image, opaque if it has alpha."""
    image = np.full((SIDE, SIDE, channels), GREY, np.uint8)
    image[..., 3:] = 255
    return image


def pictures() -> dict[str, Image.Image]:
    plain, board = canvas(3), canvas(3)
    board[PLACE] = 255 * BOARD[..., None]
    # White over white shows nothing; black under it shows the squares.
    under = canvas(4)
    under[PLACE] = 255 * BOARD[..., None]
    under[..., 3][PLACE] = 0
    # Black is all that is stored; the squares come from the alpha channel.
    composited = canvas(4)
    composited[PLACE] = 0
    composited[..., 3][PLACE] = 255 * (1 - BOARD)
    both = under.copy()
    both[..., 3][PLACE] = 255 * (1 - BOARD)
    hole = canvas(4)
    hole[..., 3][PLACE] = 0
    deep = np.full((SIDE, SIDE), 40_000, np.uint16)
    deep[PLACE] = 65_535 * BOARD + 1000 * (1 - BOARD)
    return {
        "a plain": Image.fromarray(plain),
        "b board": Image.fromarray(board),
        "c under alpha 0": Image.fromarray(under),
        "d composited": Image.fromarray(composited),
        "e in both": Image.fromarray(both),
        "f a hole": Image.fromarray(hole),
        "g opaque alpha": Image.fromarray(canvas(4)),
        "h 16 bits": Image.fromarray(deep),
    }


def scores(folder: Path, monkeypatch, images: dict[str, Image.Image], cut: float = 0.9, *overrides: str):
    """Ids, pixels and second views of a corpus; its scores by name; how many images each pass took."""
    (folder / "corpus").mkdir()
    for name, image in images.items():
        image.save(folder / "corpus" / f"{name}.png")
    config = load_config(overrides=[f"encoder.image_size={SIDE}", *overrides])
    corpus, run = open_corpus(str(folder / "corpus")), Folder(str(folder / "run"))
    index, out = run / artifact.INDEX, run / artifact.SCORES
    (slice_,) = corpus.slices()
    index_slice(slice_, corpus, config, index, run / artifact.DEAD_ROWS)
    seen = read_views(corpus, config, index, slice_)
    ids, x_NCHW = read_slice(corpus, config, index, slice_)
    assert ids == seen[0]
    whole = [max(image.size) <= 2 * min(image.size) for image in images.values()]
    assert np.array_equal(x_NCHW[whole], seen[1][whole])
    trigger, model = torch.tensor(BOARD, dtype=torch.float32).expand(3, -1, -1), Chessboard()
    monkeypatch.setattr(
        judge, "load_ensembles", lambda *_: Ensembles({1: ([model], cut)}, {1: [trigger]}, {1: 0.01})
    )
    # As Ray Data carries it from the reading task to the actor.
    row = _decode_both_views({"slice": json.dumps(asdict(slice_))}, corpus, config, index)
    actor = _OnImages(JudgeSlice, (config, index, run / artifact.CLASSIFIER, out), SIDE)
    assert actor(pa.Table.from_pylist([row])) == {"index": [0]}
    rows = out.read_table(part_name(slice_.index)).to_pylist()
    return seen, {row["image_id"].removesuffix(".png"): row for row in rows}, model.seen


@pytest.fixture
def scored(tmp_path, monkeypatch):
    return scores(tmp_path, monkeypatch, pictures())


def test_a_trigger_that_one_view_alone_shows_is_flagged_and_located(scored):
    _, rows, _ = scored
    removed = {name for name, row in rows.items() if row["fate"] == artifact.REMOVE}
    assert removed == {"b board", "c under alpha 0", "d composited", "e in both", "h 16 bits"}
    for name in removed:
        assert [rows[name][side] for side in artifact.SIDES] == BOX and rows[name]["family"] == 1, name


def test_only_images_that_differ_have_a_second_view(scored):
    (ids, x_NCHW, second), rows, passes = scored
    names = [ids[i].removesuffix(".png") for i in second.rows_M]
    assert names == ["c under alpha 0", "d composited", "f a hole", "h 16 bits"]
    assert passes == [8, 4]
    assert second.x_MCHW.shape == (len(names), 3, SIDE, SIDE)
    loaded = [np.asarray(image.convert("RGB")).transpose(2, 0, 1) for image in pictures().values()]
    assert np.array_equal(x_NCHW, np.stack(loaded))
    alone = torch.sigmoid(Chessboard()(torch.from_numpy(x_NCHW[:2]).float() / 255).double() - 0.9)
    plain = [rows[name]["p_poison"] for name in ("a plain", "b board")]
    assert plain == pytest.approx(alone.tolist(), abs=1e-6)


def test_a_corpus_without_transparency_is_judged_in_one_pass(tmp_path, monkeypatch):
    ordinary = {name: image for name, image in pictures().items() if name[0] in "abg"}
    (_, _, second), rows, passes = scores(tmp_path, monkeypatch, ordinary)
    assert len(rows) == 3 and passes == [3] and second.x_MCHW.nbytes == 0


def long_image(x: int, width: int = 6 * SIDE, tall: bool = False) -> Image.Image:
    """Six times as wide as high, with the trigger as the encoder sees it in one of the parts."""
    image = np.full((SIDE, width, 3), GREY, np.uint8)
    image[AT : AT + 2 * CELL, x : x + WIDE] = 255 * WIDE_BOARD[..., None]
    return Image.fromarray(image.transpose(1, 0, 2) if tall else image)


def test_a_trigger_in_any_part_of_a_long_image_is_flagged_and_located(tmp_path, monkeypatch):
    images = {"a plain": Image.fromarray(np.full((SIDE, 6 * SIDE, 3), GREY, np.uint8))}
    images |= {f"b {x:03d}": long_image(x) for x in (0, 40, 88, 182)}
    images |= {f"c {x:03d}": long_image(x, tall=True) for x in (0, 182)}
    images |= {"d board": pictures()["b board"]}
    (_, x_NCHW, second), rows, passes = scores(tmp_path, monkeypatch, images, cut=0.7)
    # Eight parts of each of the seven long images.
    assert passes == [8, 56] and second.rows_M.tolist() == sorted([*range(7)] * 8)
    whole = Chessboard()(torch.from_numpy(x_NCHW).float() / 255)
    assert whole[:-1].max() < 0.3 and whole[-1] > 0.9, "squeezed as a whole, the trigger is gone"
    for name, row in rows.items():
        if name == "a plain":
            assert row["fate"] == artifact.KEEP and row["x0"] is None
            continue
        assert row["fate"] == artifact.REMOVE, name
        x, box = (
            int(name.rsplit(" ", 1)[-1] if name[0] in "bc" else AT),
            [row[side] for side in artifact.SIDES],
        )
        wanted = {"b": [x, AT, x + WIDE, AT + 8], "c": [AT, x, AT + 8, x + WIDE], "d": BOX}[name[0]]
        assert max(abs(a - b) for a, b in zip(box, wanted, strict=True)) <= 2, name


def test_many_long_images_have_fewer_parts_each_where_they_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "PARTS_BYTES", 2 * 3 * SIDE**2 * 5)
    (_, _, second), _, _ = scores(tmp_path, monkeypatch, {"a": long_image(0), "b": long_image(170)})
    assert second.rows_M.tolist() == [0, 0, 1, 1]
    assert second.part_M4[0].tolist() == [0, 0, 120, SIDE] and second.part_M4[1, 2] == 6 * SIDE
    monkeypatch.setattr(pixels, "PARTS_BYTES", 2 * 3 * SIDE**2 * 3)
    (tmp_path / "own").mkdir()
    (ids, _, second), _, _ = scores(tmp_path / "own", monkeypatch, {"a": long_image(0), "b": long_image(170)})
    own = [own_part(0, image_id, 6 * SIDE, SIDE) for image_id in ids]
    assert second.rows_M.tolist() == [0, 1] and [tuple(box) for box in second.part_M4.tolist()] == own
    # However large the images are, each is judged by the part that the search has seen.
    monkeypatch.setattr(pixels, "PARTS_BYTES", 10)
    (tmp_path / "large").mkdir()
    (ids, _, second), _, _ = scores(tmp_path / "large", monkeypatch, {"a": long_image(0)})
    assert [tuple(box) for box in second.part_M4.tolist()] == [own_part(0, ids[0], 6 * SIDE, SIDE)]


def test_a_transparent_long_image_has_its_parts_in_both_views(tmp_path, monkeypatch):
    hidden = np.full((SIDE, 6 * SIDE, 4), GREY, np.uint8)
    hidden[..., 3] = 255
    place = np.s_[AT : AT + 2 * CELL, 40 : 40 + WIDE]
    hidden[place] = 0
    hidden[..., 3][place] = 255 * (1 - WIDE_BOARD)
    (_, _, second), rows, _ = scores(tmp_path, monkeypatch, {"a": Image.fromarray(hidden)}, cut=0.7)
    assert len(second.rows_M) == 1 + 2 * 8
    assert rows["a"]["fate"] == artifact.REMOVE


def test_boxes_are_in_pixels_of_the_stored_images_where_copies_are_judged(tmp_path, monkeypatch):
    """Stored at six times the encoder's side and copied at twice of it."""
    images = {name: image.resize((6 * SIDE, 6 * SIDE), 0) for name, image in pictures().items()}
    _, rows, passes = scores(tmp_path, monkeypatch, images, 0.6, f"corpus.shrink_to={2 * SIDE}")
    removed = {name for name, row in rows.items() if row["fate"] == artifact.REMOVE}
    assert removed == {"b board", "c under alpha 0", "d composited", "e in both", "h 16 bits"}
    assert passes == [8, 4]
    for name in removed:
        box = [rows[name][side] for side in artifact.SIDES]
        assert max(abs(a - 6 * b) for a, b in zip(box, BOX, strict=True)) <= 6, name


def test_parts_of_long_images_are_judged_by_their_copies(tmp_path, monkeypatch):
    images = {f"{x:03d}": long_image(x).resize((36 * SIDE, 6 * SIDE), 0) for x in (0, 40, 88, 176)}
    _, rows, _ = scores(tmp_path, monkeypatch, images, 0.6, f"corpus.shrink_to={2 * SIDE}")
    for name, row in rows.items():
        x = int(name)
        box, wanted = [row[side] for side in artifact.SIDES], [x, AT, x + WIDE, AT + 8]
        assert row["fate"] == artifact.REMOVE
        assert max(abs(a - 6 * b) for a, b in zip(box, wanted, strict=True)) <= 12, name
