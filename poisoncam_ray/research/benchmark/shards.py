"""Index and Clean on Ray, against a plain copy of the same Parquet shards by pyarrow."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.parquet as pq

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.benchmark.compare import Measured, Row, Setting, alternate
from poisoncam_ray.research.benchmark.images import draw_images, megabytes
from poisoncam_ray.research.benchmark.made_up import DrawnFates
from poisoncam_ray.research.benchmark.timed_stage import TimedStage, stage_config
from poisoncam_ray.stages.clean import Clean
from poisoncam_ray.stages.index import Index


@dataclass(frozen=True)
class Sizes:
    """Of the part `shards`.

    Attributes:
        images: in the corpus.
        stored: the side of a stored image in pixels.
        shards: files.
    """

    images: int = 16_384
    stored: int = 224
    shards: int = 8


def measure_shards(setting: Setting, sizes: Sizes) -> Measured:
    """MB a second of the shards that are read."""
    corpus = draw_images(setting.out / "corpora", sizes.images, sizes.stored, sizes.stored, sizes.shards)
    config, folder = stage_config(setting, "encoder.image_size=32"), setting.out / "shards"
    index = TimedStage(corpus, folder / "index", config, [Index()])
    clean = TimedStage(corpus, folder / "clean", config, [Index(), DrawnFates(), Clean()])
    copied = folder / "copied"
    seconds, _ = alternate((index.again, clean.again, lambda: copy(corpus, copied)), setting.rounds)
    size = megabytes(corpus)
    same = _rows(clean.run_folder / artifact.CLEAN_ROWS) + _rows(clean.run_folder / artifact.REMOVED_ROWS)
    answers = f"{same:,} of {_rows(copied):,} rows written"
    regime = f"{sizes.images:,} JPEGs of {sizes.stored} px, {size:,.0f} MB in {sizes.shards} shards"
    ways = ("stage on Ray", "copy by pyarrow, one process")
    rows = [
        Row(
            "Clean: every row to its fate",
            ways, (seconds[1], seconds[2]), regime, units=size, unit="MB", answers=answers,
        ),
        Row(
            "Index: every image decoded once",
            ways, (seconds[0], seconds[2]), f"{regime}, {setting.threads} readers", units=size, unit="MB",
        ),
    ]  # fmt: skip
    return Measured(rows)


def copy(corpus: Folder, out: Folder) -> None:
    """Copy the shards of a corpus, row group by row group, decompressed and compressed again."""
    out.filesystem.makedirs(out.path, exist_ok=True)
    for name in corpus.parts():
        with (
            pq.ParquetFile(f"{corpus.path}/{name}") as shard,
            pq.ParquetWriter(f"{out.path}/{name}", shard.schema_arrow) as writer,
        ):
            for group in range(shard.num_row_groups):
                writer.write_table(shard.read_row_group(group))


def _rows(folder: Folder) -> int:
    return sum(folder.rows(name) for name in folder.parts())
