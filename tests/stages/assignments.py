"""Made-up assignments of images to clusters, for tests of what draws from them."""

from __future__ import annotations

import pyarrow as pa

from poisoncam_ray.folder import Folder, part_name
from poisoncam_ray.stages.pool import image_seed

N, K = 300, 7


def clusters(folder: Folder, rows_per_part: int, n: int = N, seed: int = 3) -> Folder:
    """Assignments of n images to K clusters, cluster 6 empty; image i lies i / n from its centroid."""
    ids = [f"a.parquet#{i}" for i in range(n)]
    for part, first in enumerate(range(0, n, rows_per_part)):
        rows = range(first, min(n, first + rows_per_part))
        columns = {
            "image_id": [ids[i] for i in rows],
            "cluster": pa.array([i * i % 6 for i in rows], pa.int32()),
            "distance": pa.array([i / n for i in rows], pa.float32()),
            "draw": pa.array([image_seed(seed, ids[i]) for i in rows], pa.int64()),
        }
        folder.write_table(part_name(part), pa.table(columns))
    return folder


def number(image_id: str) -> int:
    return int(image_id.partition("#")[2])
