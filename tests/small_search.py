"""A small made-up artifact of the search: benign windows and two triggers."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import torch

from poisoncam_ray import artifact, facts
from poisoncam_ray.folder import Folder, Manifest
from poisoncam_ray.stages.crops import to_png

N_CLUSTERS, N_FLIP, SIDE = 16, 20, 6
SUPERCLUSTER_K = torch.arange(N_CLUSTERS) // 2
Y_F = torch.arange(N_FLIP) % N_CLUSTERS
PICTURES = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(8)).round()


def candidate(i: int, cluster: int, count: int, picture: int | None = None) -> dict[str, Any]:
    """Window i moves `count` flip-test images into its cluster; without a picture it is noise."""
    generator = torch.Generator().manual_seed(1000 + i)
    t_CHW = torch.rand(3, SIDE, SIDE, generator=generator) if picture is None else PICTURES[picture]
    landed = [cluster] * count + Y_F[count:].tolist()
    numbers = dict.fromkeys(("x0", "y0", "x1", "y1", "changed", "gain", "supercluster_gain"), 0)
    return numbers | {
        "image_id": f"a#{i:04d}",
        "cluster": cluster,
        "n_flip": N_FLIP,
        "score": count / N_FLIP,
        "occlusion_flips": True,
        "crop": to_png(t_CHW),
        "landed": landed,
    }


def benign(n: int = 96) -> list[dict[str, Any]]:
    return [candidate(i, i % N_CLUSTERS, i // 7 % 3) for i in range(n)]


def poisoned() -> list[dict[str, Any]]:
    """Benign windows, eight of one trigger in clusters 2 and 3, and ten weaker ones of another in 9."""
    one = [candidate(200 + i, 2 + (i > 0), 18 - i, picture=0) for i in range(8)]
    return benign() + one + [candidate(300 + i, 9, 12, picture=1) for i in range(10)]


def write_search(
    search: Folder,
    rows: list[dict[str, Any]],
    rounds: int = 2,
    supercluster_K: torch.Tensor = SUPERCLUSTER_K,
) -> None:
    """The committed artifact of a search that scored `rows` in so many rounds."""
    size = -(-len(rows) // rounds)
    for i in range(rounds):
        table = pa.Table.from_pylist(rows[i * size : (i + 1) * size], schema=artifact.CANDIDATE_SCHEMA)
        (search / artifact.round_name(i)).write_table(artifact.CANDIDATES, table)
    search.write_json(artifact.SUPERCLUSTERS, supercluster_K.tolist())
    flip_test = {"image_id": [f"f#{i}" for i in range(N_FLIP)], "cluster": Y_F.tolist()}
    search.write_table(artifact.FLIP_TEST, pa.table(flip_test, schema=artifact.FLIP_TEST_SCHEMA))
    searched = facts.Searched(len(rows), rounds, "max_rounds", 1.0)
    Manifest({}, {}, "", facts=searched.as_json()).write(search)
