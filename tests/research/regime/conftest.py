"""A labelled corpus of two plain colours, the same under attack, and its validation images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from poisoncam_ray.research.attacks import patch_corpus, poison_corpus
from poisoncam_ray.research.regime.curve import Corpora


def draw(folder: Path, n: int, seed: int) -> str:
    """n noisy images of 48 × 32 px: those of label 1 are red, those of label 0 blue."""
    rng = np.random.default_rng(seed)
    cells = []
    for i in range(n):
        x_HWC = rng.integers(0, 90, (32, 48, 3))
        x_HWC[..., 0 if i % 2 else 2] += 150
        sink = io.BytesIO()
        Image.fromarray(x_HWC.astype(np.uint8)).save(sink, "PNG")
        cells.append(sink.getvalue())
    folder.mkdir()
    labels = [i % 2 for i in range(n)]
    pq.write_table(pa.table({"image": cells, "label": labels}), folder / "0.parquet")
    return str(folder)


@pytest.fixture
def corpora(tmp_path) -> Corpora:
    clean, validation = draw(tmp_path / "clean", 48, 0), draw(tmp_path / "validation", 20, 1)
    attacked, patched = str(tmp_path / "attacked"), str(tmp_path / "patched")
    poison_corpus(clean, attacked, ["1"], ["generated:7"], 0.5, 0.5, 0, "label", None)
    patch_corpus(validation, patched, "1", "generated:7", 0.5, 0, None)
    return Corpora(attacked, clean, validation, f"{patched}/corpus", "1")
