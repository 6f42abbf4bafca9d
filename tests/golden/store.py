"""Store what a finished run of format 1 decided, small enough for the repository.

    PYTHONPATH=. python tests/golden/store.py OLD_RUN NAME

Writes tests/golden/NAME/: candidates.parquet (what the search found, in the words of format 2, each with its
round) and expected.json (the superclusters, the flip test, and the verdict and triggers of the old code).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from poisoncam_ray.artifact import SIDES
from poisoncam_ray.folder import Folder
from poisoncam_ray.stages.pool import assignments, lowest_of_each

NEW_WORDS = {"needed": "occlusion_flips", "group_gain": "supercluster_gain"}
LANDED = pa.list_(pa.uint16())


def flip_test_of(clusters: Folder, n_flip: int, n_clusters: int) -> dict[str, list[Any]]:
    """The flip test of format 1: the nearest image of every cluster by the clusters' numbers, then the second
    nearest, and so on."""
    everything = pa.concat_tables(list(assignments(clusters)))
    nearest = lowest_of_each(everything, "distance", -(-n_flip // n_clusters))
    y_N = nearest["cluster"].to_numpy()
    turn_N = np.arange(len(y_N)) - np.searchsorted(y_N, y_N)
    flip = nearest.take(pa.array(np.argsort(turn_N, kind="stable")[:n_flip]))
    return flip.select(["image_id", "cluster"]).to_pydict()


def store(run: Path, out: Path) -> None:
    """Store one run.

    Args:
        run: the run folder.
        out: the folder to write.
    """
    old, target = run / "04_search", Folder(str(out))
    parts = []
    for number, folder in enumerate(sorted(old.glob("round=*"))):
        table = pq.read_table(folder / "candidates.parquet")
        table = table.rename_columns([NEW_WORDS.get(name, name) for name in table.column_names])
        landed = table["landed"].combine_chunks().cast(LANDED)
        table = table.set_column(table.column_names.index("landed"), pa.field("landed", LANDED), landed)
        parts.append(table.append_column("round", pa.array([number] * len(table), pa.int32())))
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.concat_tables(parts), out / "candidates.parquet", compression="zstd", compression_level=19
    )
    supercluster_K = Folder(str(old)).read_json("groups.json")
    flip_images = Folder(str(run)).read_json("run.json")["config"]["search"]["flip_images"]
    # A run of format 1 does not store its flip test: it is drawn again, as Search drew it.
    flip_test = flip_test_of(Folder(str(run / "03_clusters")), flip_images, len(supercluster_K))
    evidence = Folder(str(old)).read_json("evidence.json")
    evidence["best_group"] = evidence.pop("best_bundle")
    evidence["group_scores"] = evidence.pop("bundle_scores")
    columns = ["image_id", *SIDES, "family"]
    expected = {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "superclusters": supercluster_K,
        "flip_test": flip_test,
        "verdict": evidence,
        "triggers": pq.read_table(old / "triggers.parquet", columns=columns).to_pydict(),
    }
    target.write_json("expected.json", expected)


if __name__ == "__main__":
    store(Path(sys.argv[1]), Path(__file__).parent / sys.argv[2])
