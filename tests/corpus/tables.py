"""Parquet tables of many column types, for tests of what reads and writes them."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tests.tars import image


def structs(n: int, first: int = 0) -> pa.Array:
    return pa.array([{"bytes": image(i), "path": f"{i}.png"} for i in range(first, first + n)])


def rich_table(n: int = 23) -> pa.Table:
    """Columns of many types, a null image, and pandas' and Hugging Face's metadata."""
    frame = pd.DataFrame(
        {
            "key": ["same"] * n,
            "when": pd.date_range("2026-01-01", periods=n, tz="Europe/Berlin"),
            "shade": pd.Categorical(["b", "a", None][: n % 3 + 1] * n, ["c", "b", "a"], ordered=True)[:n],
            "label": np.arange(n, dtype=np.int16),
        },
        index=pd.Index(np.arange(n) * 10, name="number"),
    )
    table = pa.Table.from_pandas(frame)
    images = structs(n).to_pylist()
    images[2] = None
    images[3] = {"bytes": None, "path": "gone.png"}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = table.add_column(1, pa.field("image", kind, metadata={"unit": "px"}), pa.array(images, kind))
    extra = {
        "boxes": pa.array(
            [[{"x": j, "tags": ["t"] * j} for j in range(i % 4)] if i % 5 else None for i in range(n)]
        ),
        "nothing": pa.nulls(n),
        "words": pa.array([["one", "two", None][i % 3] for i in range(n)]).dictionary_encode(),
        "map": pa.array([[("k", i)] for i in range(n)], pa.map_(pa.string(), pa.int8())),
        "price": pa.array([Decimal(i) / 4 for i in range(n)], pa.decimal128(12, 3)),
        "vector": pa.array([[float(i), -1.0] for i in range(n)], pa.list_(pa.float32(), 2)),
        "half": pa.array(np.arange(n, dtype=np.float16)),
        "blobs": pa.array([[b"x" * i, None] for i in range(n)], pa.list_(pa.large_binary())),
    }
    for name, values in extra.items():
        table = table.append_column(name, values)
    return table.replace_schema_metadata({**table.schema.metadata, b"huggingface": b'{"info": 1}'})


def write_rich(folder: Path) -> None:
    """Three shards of rows of many types, the second of them empty."""
    train = folder / "train"
    train.mkdir(parents=True)
    pq.write_table(rich_table(), train / "a.parquet", row_group_size=5, compression="zstd")
    pq.write_table(rich_table().slice(0, 0), train / "b.parquet")
    pq.write_table(rich_table(7), train / "c.parquet", compression={"image.bytes": "none", "key": "gzip"})
