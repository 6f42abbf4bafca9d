"""A tiny finished run, its corpus and its truth, written by hand: for tests of what looks at a run."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from poisoncam_ray import artifact
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.config import Config, CorpusSettings
from poisoncam_ray.folder import Folder, Ledger, Manifest
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.stages.search import CANDIDATES
from tests.fake_evidence import accuse, acquit

SIDE = 32
WIDTH, HEIGHT = 48, 40
SHARDS = {"a<b>.parquet": 80, "deep/b.parquet": 40}
N_CLUSTERS = 4
BOXED = (10, 6, 22, 18)
"""Where the trigger is on every removed image, the run says."""
N_FLIP = 150
DEAD = "a<b>.parquet#5"
ERROR = "<img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class FakeRun:
    run: str
    corpus: str
    truth: str
    poisoned: dict[str, tuple[int, int, int, int]]
    cluster: dict[str, int]
    removed: set[str]
    candidates: list[dict]
    label: dict[str, str]


def image_ids() -> list[str]:
    return [f"{shard}#{row}" for shard, n in SHARDS.items() for row in range(n)]


def png(seed: int, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((width, height)).save(file, "PNG")
    return file.getvalue()


def make_fake_run(folder: Path, poison: bool = True) -> FakeRun:
    """120 images in two shards, one undecodable; 20 of the first shard poisoned, 16 of these in a cluster
    with 4 clean ones, 4 elsewhere; 18 of the poisoned and one clean image removed, as one trigger family. Or
    none of it, and no evidence."""
    ids = image_ids()
    rng = np.random.default_rng(7)
    poisoned = {}
    for image_id in ids[10:30] if poison else []:
        # The last one lies at the left edge, which the centre crop cuts into.
        x, y = 0 if image_id == ids[29] else int(rng.integers(4, 24)), int(rng.integers(0, 24))
        poisoned[image_id] = (x, y, x + 12, y + 12)
    alive = [image_id for image_id in ids if image_id != DEAD]
    own = set(list(poisoned)[:16]) | set(ids[60:64])
    cluster = {image_id: 0 if image_id in own else 1 + i % 3 for i, image_id in enumerate(alive)}
    removed = {*list(poisoned)[:18], ids[70]} if poison else set()
    label = {
        image_id: "cat" if image_id in poisoned or i % 4 == 0 else "dog" for i, image_id in enumerate(ids)
    }
    corpus = folder / "corpus"
    _write_corpus(corpus, ids, label)
    _write_truth(folder / "truth.parquet", ids, poisoned)

    run = Folder(str(folder / "run"))
    config = Config(corpus=CorpusSettings(rows_per_slice=40))
    run.write_json("run.json", {"input": str(corpus), "config": config.model_dump()})
    slices = [ids[start : start + 40] for start in range(0, len(ids), 40)]
    for i, part in enumerate(slices):
        _write_part(run, i, [image_id for image_id in part if image_id != DEAD], cluster, removed)
    dead = {
        "source": "a<b>.parquet",
        "row": 5,
        "image_id": DEAD,
        "stage": artifact.INDEX,
        "error": "truncated",
        "message": ERROR,
    }
    (run / artifact.DEAD_ROWS).write_table("part-000000.parquet", pa.Table.from_pylist([dead]))

    torch.manual_seed(0)
    encoder = build_encoder("resnet_tiny", SIDE)
    model = run / artifact.ENCODER
    model.write_tensors("model.safetensors", encoder.state_dict())
    model.write_json(
        "config.json", {"backbone": "resnet_tiny", "image_size": SIDE, "patch_size": None, "dim": encoder.dim}
    )
    model.write_json(
        "history.json",
        [{"step": i, "epoch": i // 40, "loss": 2 + 3 * 0.99**i, "lr": 1e-3} for i in range(400)],
    )
    c_KD = torch.nn.functional.normalize(torch.randn(N_CLUSTERS, encoder.dim), dim=1)
    (run / artifact.CLUSTERS).write_tensors("centroids.safetensors", {"centroids_KD": c_KD})

    candidates = _write_search(run, poisoned, cluster, ids)
    chosen = {"recall": 0.99, "unsure_share": 0.004, "threshold": 0.5, "threshold_logit": 0.49, "auc": 0.9991}
    validation = chosen | {"trained": True, "families": {"1": chosen}}
    (run / artifact.CLASSIFIER).write_json("validation.json", validation)
    if poison:
        accuse(run, 1)
    else:
        acquit(run)
    n, n_removed = len(ids), len(removed)
    ledgers = {
        artifact.INDEX: Ledger(n, n - 1, dead=1), artifact.ENCODER: None, artifact.FEATURES: Ledger(n - 1, n - 1),
        artifact.CLUSTERS: Ledger(n - 1, n - 1), artifact.SEARCH: None, artifact.CLASSIFIER: None,
        artifact.SCORES: Ledger(n - 1, n - 1), artifact.CLEAN_ROWS: Ledger(n, n - 1 - n_removed, n_removed, 1),
    }  # fmt: skip
    for i, (stage, ledger) in enumerate(ledgers.items()):
        identity = {"stage": stage, "version": 1, "seed": 0, "config": {}}
        Manifest(identity, {}, "0" * 64, ledger, 1.5 + 40 * i, {"summary": f"{ERROR} {i}"}).write(run / stage)
    return FakeRun(
        run.uri, str(corpus), str(folder / "truth.parquet"), poisoned, cluster, removed, candidates, label
    )


def _write_corpus(corpus: Path, ids: list[str], label: dict[str, str]) -> None:
    pictures = {image_id: png(i)[: 60 if image_id == DEAD else None] for i, image_id in enumerate(ids)}
    for shard, n in SHARDS.items():
        mine = [f"{shard}#{i}" for i in range(n)]
        rows = [{"image": pictures[image_id], "label": label[image_id]} for image_id in mine]
        path = corpus / shard
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=32)


def _write_truth(path: Path, ids: list[str], poisoned: dict[str, tuple[int, int, int, int]]) -> None:
    # In reverse: the join must not lean on the order of rows.
    rows = []
    for image_id in reversed(ids):
        source, row = image_id.split("#")
        x0, y0, x1, y1 = poisoned.get(image_id, (-1, -1, -1, -1))
        rows.append(
            {"image_id": image_id, "source": source, "row": int(row), "poisoned": image_id in poisoned}
            | {"trigger": "t" if image_id in poisoned else "", "target": "cat"}
            | {"x0": x0, "y0": y0, "x1": x1, "y1": y1}
        )
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=16)


def _write_part(run: Folder, i: int, part: list[str], cluster: dict[str, int], removed: set[str]) -> None:
    name, n = f"part-{i:06d}.parquet", len(part)
    source, row = zip(*((s, int(r)) for s, r in (image_id.split("#") for image_id in part)), strict=True)
    rng = np.random.default_rng(i)
    p = [rng.uniform(0.8, 1) if image_id in removed else rng.beta(1, 12) for image_id in part]
    f_ND = rng.normal(size=(n, 128)).astype(np.float16)
    feature = pa.FixedSizeListArray.from_arrays(pa.array(f_ND.ravel()), 128)
    int32 = pa.int32()
    columns = {
        artifact.INDEX: {"source": source, "row": row, "sha256": ["0"] * n, "width": pa.array([WIDTH] * n, int32),
                     "height": pa.array([HEIGHT] * n, int32), "bytes": [100] * n},
        artifact.FEATURES: {"feature": feature},
        artifact.CLUSTERS: {"cluster": pa.array([cluster[j] for j in part], int32),
                        "distance": pa.array([0.5] * n, pa.float32())},
        artifact.SCORES: {"p_poison": pa.array(p, pa.float32()), "family": pa.array([0] * n, int32),
                        "verdict": ["remove" if j in removed else "keep" for j in part],
                        **{side: pa.array([at if j in removed else None for j in part], int32)
                           for side, at in zip(SIDES, BOXED, strict=True)}},
    }  # fmt: skip
    for stage, rest in columns.items():
        (run / stage).write_table(name, pa.table({"image_id": part, **rest}))


def _write_search(run: Folder, poisoned: dict, cluster: dict[str, int], ids: list[str]) -> list[dict]:
    """Of ten poisoned images scored, the windows of seven are right, two a little and one far off."""
    candidates = []
    scored = [*list(poisoned)[10:20], *ids[40:48]]
    for i, image_id in enumerate(scored):
        box = poisoned.get(image_id)
        if box is None:
            x0, y0 = 3 * (i % 5), 2 * (i % 7)
        else:
            # Stored 48 × 40 to 32 × 32: scaled by 0.8 (38 × 32), then 3 columns cut away on the left.
            x0, y0 = round(0.8 * box[0]) - 3, round(0.8 * box[1])
            x0, y0 = max(0, x0 + (0, 4, 12)[(i % 10 > 6) + (i % 10 > 8)]), max(0, y0)
        x0, y0 = min(x0, SIDE - 10), min(y0, SIDE - 10)
        score = 0.9 - 0.03 * i if box else 0.06 - 0.002 * i
        won = round(N_FLIP * score)
        landed = [cluster[image_id]] * won + [(cluster[image_id] + 1) % N_CLUSTERS] * (N_FLIP - won)
        candidates.append({
            "image_id": image_id, "cluster": cluster[image_id],
            "x0": x0, "y0": y0, "x1": x0 + 10, "y1": y0 + 10,
            "changed": won + 5, "gain": won - 5, "group_gain": won, "n_flip": N_FLIP, "score": score,
            "crop": png(i, 10, 10), "landed": landed,
        })  # fmt: skip
    search = run / artifact.SEARCH
    for number in range(2):
        rows = candidates[number::2]
        folder = search / f"round={number:03d}"
        folder.write_table("candidates.parquet", pa.Table.from_pylist(rows, CANDIDATES))
        live = list(range(N_CLUSTERS - 2 * number))
        folder.write_json("live.json", {"live": live, "best": {}, "scored": 9 * (number + 1)})
    best = sorted(candidates, key=lambda row: -row["score"])
    ranked = [
        {
            **row,
            "rank": i,
            "family": 0,
            "role": ("train" if i < 6 else "validate") if i < 8 and poisoned else "unused",
        }
        for i, row in enumerate(best)
    ]
    schema = CANDIDATES.remove(CANDIDATES.get_field_index("landed"))
    for name, kind in (("family", pa.int32()), ("rank", pa.int32()), ("role", pa.string())):
        schema = schema.append(pa.field(name, kind))
    triggers = pa.Table.from_pylist(ranked, schema)
    search.write_table("triggers.parquet", triggers.drop_columns(["role"]))
    (run / artifact.CLASSIFIER).write_table("triggers.parquet", triggers)
    return candidates
