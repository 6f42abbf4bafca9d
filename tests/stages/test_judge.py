"""Judge on images that a viewer shows otherwise than a training loader reads them. No Ray."""

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
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages import judge
from poisoncam_ray.stages.dataflow import _decode_both_views, _OnImages
from poisoncam_ray.stages.ensembles import Ensembles
from poisoncam_ray.stages.index import index_slice
from poisoncam_ray.stages.judge import JudgeSlice
from poisoncam_ray.stages.pixels import read_slice, read_views

SIDE, CELL, AT = 32, 4, 12
BOARD = np.kron([[1, 0], [0, 1]], np.ones((CELL, CELL)))
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


def scores(folder: Path, monkeypatch, images: dict[str, Image.Image]):
    """Ids, pixels and second views of a corpus; its scores by name; how many images each pass took."""
    (folder / "corpus").mkdir()
    for name, image in images.items():
        image.save(folder / "corpus" / f"{name}.png")
    config = load_config(overrides=[f"encoder.image_size={SIDE}"])
    corpus, run = open_corpus(str(folder / "corpus")), Folder(str(folder / "run"))
    index, out = run / artifact.INDEX, run / artifact.SCORES
    (slice_,) = corpus.slices()
    index_slice(slice_, corpus, config, index, run / artifact.DEAD_ROWS)
    seen = read_views(corpus, config, index, slice_)
    ids, x_NCHW = read_slice(corpus, config, index, slice_)
    assert ids == seen[0] and np.array_equal(x_NCHW, seen[1])
    trigger, model = torch.tensor(BOARD, dtype=torch.float32).expand(3, -1, -1), Chessboard()
    monkeypatch.setattr(judge, "load_ensembles", lambda *_: Ensembles({1: ([model], 0.9)}, {1: [trigger]}))
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
