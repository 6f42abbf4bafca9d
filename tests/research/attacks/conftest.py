"""A small labelled corpus of PNGs for the attacks."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

Picture = Callable[[int], np.ndarray]


def png(array_HWC: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(array_HWC).save(sink, "PNG")
    return sink.getvalue()


def noise(i: int) -> np.ndarray:
    """24 px wide, dark, of its own colour."""
    rng = np.random.default_rng(i)
    return (rng.integers(0, 20, (24, 24, 3)) + rng.integers(0, 80, 3)).astype(np.uint8)


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Path]:
    """Writes `n` pictures, labels 0–3 in turn, into two shards; number 5 is broken."""

    def make(n: int = 120, picture: Picture = noise, name: str = "in") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        cells = [png(picture(i)) if i != 5 else b"\x89PNG broken" for i in range(n)]
        for shard, rows in enumerate((range(n // 2), range(n // 2, n))):
            table = pa.table({"image": [cells[i] for i in rows], "label": [str(i % 4) for i in rows]})
            pq.write_table(table, folder / f"{shard}.parquet", row_group_size=16)
        return folder

    return make
