"""Classify and Judge on photographs of all shapes, without Ray: clean wide and long ones are no more often
removed than squares, and the trigger in the margins of the others is found.

The windows are cut where the search would find them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from poisoncam_ray import artifact
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.folder import Folder, part_name
from poisoncam_ray.method.crops import own_part
from poisoncam_ray.research.abreast import set_abreast
from poisoncam_ray.research.attacks import poison_corpus
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.classify import aspects_of, train_model, validate_family
from poisoncam_ray.stages.crops import to_png
from poisoncam_ray.stages.index import index_slice
from poisoncam_ray.stages.judge import JudgeSlice
from poisoncam_ray.stages.pixels import fetch_images, read_views

# The first is the target. The test was written on the first six; the others were looked at once.
CORPORA = [
    ("20 22 29 31 57 89", "generated:921"),
    pytest.param("50 51 52 53 54 55", "generated:950", marks=pytest.mark.exhaustive),
    pytest.param("60 61 62 63 64 65", "generated:960", marks=pytest.mark.exhaustive),
]
SIDE, WINDOW = 32, 11
N_TRAIN, N_HELD = 15, 5


def windows(ids: list[str], truth: dict[str, dict], size: dict[str, tuple[int, int]], x_NCHW: np.ndarray):
    """The window around the trigger on each image whose seen part holds one whole."""
    found = []
    for image_id, x_CHW in zip(ids, x_NCHW, strict=True):
        left, top, right, bottom = own_part(0, image_id, *size[image_id])
        for x0, y0, x1, y1 in truth[image_id]["boxes"]:
            if left <= x0 and x1 <= right and top <= y0 and y1 <= bottom:
                x = ((x0 + x1) / 2 - left) * SIDE / (right - left) - WINDOW / 2
                y = ((y0 + y1) / 2 - top) * SIDE / (bottom - top) - WINDOW / 2
                x, y = (int(np.clip(round(at), 0, SIDE - WINDOW)) for at in (x, y))
                found.append(x_CHW[:, y : y + WINDOW, x : x + WINDOW])
                break
    return torch.from_numpy(np.stack(found[: N_TRAIN + N_HELD]))


@pytest.mark.photographs
@pytest.mark.parametrize(("names", "trigger"), CORPORA)
def test_clean_wide_and_long_photographs_are_removed_no_more_often_than_squares(
    photographs: Path, tmp_path: Path, capsys, names: str, trigger: str
) -> None:
    labels = names.split()
    set_abreast(str(photographs / "train"), str(tmp_path / "mixed"), (1, 2, 4), labels=labels)
    poison_corpus(
        str(tmp_path / "mixed"),
        str(tmp_path / "made"),
        labels[:1],
        [trigger],
        0.45,
        1.0,
        921,
        kind="margin",
    )
    truth = {row["image_id"]: row for row in pq.read_table(tmp_path / "made/truth.parquet").to_pylist()}
    corpus = open_corpus(str(tmp_path / "made/corpus"))
    config = load_config(overrides=["classify.models=1"])
    run = Folder(str(tmp_path / "run"))
    index, made, out = (run / name for name in (artifact.INDEX, artifact.CLASSIFIER, artifact.SCORES))
    size: dict[str, tuple[int, int]] = {}
    for slice_ in corpus.slices():
        index_slice(slice_, corpus, config, index, run / artifact.DEAD_ROWS)
        table = index.read_table(part_name(slice_.index), ["image_id", "width", "height"]).to_pylist()
        size |= {row["image_id"]: (row["width"], row["height"]) for row in table}

    poisoned = [image_id for image_id, row in truth.items() if row["poisoned"]]
    crops = windows(poisoned, truth, size, fetch_images(corpus, config, poisoned))
    assert len(crops) == N_TRAIN + N_HELD
    clean = [image_id for image_id in truth if not truth[image_id]["poisoned"]]
    x_NCHW, whole_NCHW = (fetch_images(corpus, config, ids) for ids in (clean[::2], list(truth)))
    aspects = aspects_of(index)
    assert aspects == pytest.approx(1.25)
    train_model(1, 0, config, x_NCHW, crops[:N_TRAIN], aspects, made)
    figures = validate_family(1, config, x_NCHW, whole_NCHW, crops[N_TRAIN:], made)
    made.write_json(artifact.VALIDATION, {"families": {"1": {**figures, "erased": True}}})
    picture = {"family": 1, "picture": to_png(crops[0].float() / 255), "aspect": 1.25}
    table = pa.Table.from_pylist([picture], schema=artifact.WHOLE_TRIGGER_SCHEMA)
    made.write_table(artifact.WHOLE_TRIGGERS, table)
    actor = JudgeSlice(config, index, made, out)
    p = {}
    for slice_ in corpus.slices():
        actor(slice_.index, *read_views(corpus, config, index, slice_))
        rows = out.read_table(part_name(slice_.index), ["image_id", "p_poison"]).to_pylist()
        p |= {row["image_id"]: row["p_poison"] for row in rows}

    aspect = {image_id: max(of) // min(of) for image_id, of in size.items()}
    clean_p = {a: np.array([p[i] for i in clean if aspect[i] == a]) for a in (1, 2, 4)}
    found = {a: np.array([p[i] > 0.5 for i in poisoned if aspect[i] == a]) for a in (2, 4)}
    high = np.quantile(clean_p[1], 0.98)  # so high are 2 of 100 squares
    removed = {a: int((of > 0.5).sum()) for a, of in clean_p.items()}
    above = {a: float((of > high).mean()) for a, of in clean_p.items()}
    recall = {a: float(of.mean()) for a, of in found.items()}
    n_clean, n_found = ({a: len(x) for a, x in of.items()} for of in (clean_p, found))
    with capsys.disabled():
        print(f"\nclean {n_clean}, removed {removed}, above 98 % of the squares {above}; {n_found}: {recall}")
    assert min(recall.values()) >= 0.9
    assert max(removed[2] / n_clean[2], removed[4] / n_clean[4]) <= removed[1] / n_clean[1] + 0.01
