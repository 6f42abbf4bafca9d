"""A tiny finished run, its corpus and its truth, for tests of what reads a run folder.

The features, clusters, candidates and scores are made up; each is written by the code, or with the schema,
that the stages use.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from poisoncam_ray import artifact, facts
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.config import Config, CorpusSettings, Encoder
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.corpus.slices import slice_table, source_table
from poisoncam_ray.defence import stages as defence_stages
from poisoncam_ray.facts import Facts
from poisoncam_ray.folder import Folder, Ledger, Manifest, part_name
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.stages.embed import feature_table, write_encoder
from poisoncam_ray.stages.index import index_slice
from poisoncam_ray.stages.pool import image_seed
from tests.fake_evidence import flag_images, replace_column, unflag_all

SIDE = 32
WIDTH, HEIGHT = 48, 40
SHARDS = {"a<b>.parquet": 80, "deep/b.parquet": 40}
N_CLUSTERS = 4
BOXED = (10, 6, 22, 18)
"""Where the trigger is on every removed image, according to the run."""
N_FLIP = 150
DEAD = "a<b>.parquet#5"
ERROR = "<img src=x onerror=alert(1)>"
CONFIG = Config(
    corpus=CorpusSettings(rows_per_slice=40), encoder=Encoder(backbone="resnet_tiny", image_size=SIDE)
)


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


def make_fake_run(folder: Path, poison: bool = True, trigger: Image.Image | None = None) -> FakeRun:
    """120 images in two shards, one of them undecodable, and a finished run over them.

    Args:
        folder: where the corpus, the truth and the run folder are made.
        poison: 20 images of the first shard are poisoned, 16 of these in a cluster with 4 clean ones, 4
            elsewhere; 18 of the poisoned and one clean image are removed, as one trigger family. Otherwise
            there is no poison, no evidence and no removed image.
        trigger: is drawn on the poisoned images; None: these look like the others.
    """
    ids = image_ids()
    rng = np.random.default_rng(7)
    poisoned = {}
    for image_id in ids[10:30] if poison else []:
        # The last one lies at the left edge, outside the centre square.
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
    _write_corpus(corpus, ids, label, poisoned if trigger else {}, trigger)
    _write_truth(folder / "truth.parquet", ids, poisoned)

    run = Folder(str(folder / "run"))
    config = CONFIG.model_dump(mode="json")
    run.write_json(artifact.RUN, {"format": artifact.FORMAT, "input": str(corpus), "config": config})
    _write_index(run, str(corpus))
    for i, name in enumerate((run / artifact.INDEX).parts()):
        indexed = (run / artifact.INDEX).read_table(name, ["image_id"])["image_id"].to_pylist()
        _write_slice(run, i, indexed, cluster, removed)
    c_KD = _write_encoder(run)
    (run / artifact.CLUSTERS).write_tensors(artifact.CENTROIDS, {"centroids_KD": c_KD})
    candidates = _write_search(run, poisoned, cluster, ids)
    if poison:
        flag_images(run, 1)
    else:
        unflag_all(run)
    _commit(run, len(ids), len(removed), candidates, poison)
    return FakeRun(
        run.uri, str(corpus), str(folder / "truth.parquet"), poisoned, cluster, removed, candidates, label
    )


def _commit(run: Folder, n: int, n_removed: int, candidates: list[dict], poison: bool) -> None:
    """The manifests. Every summary carries markup, to be escaped by what shows it."""
    best = max(row["score"] for row in candidates)
    trained = facts.Classified(True, families=1, models=3, recall=0.99)
    ledger = Ledger(n - 1, n - 1)
    seen = {"images": n - 1, "images_seen": n // 2, "images_shown": 5 * (n // 2)}
    stages: dict[str, tuple[Facts, Ledger | None]] = {
        artifact.INDEX: (facts.Indexed(n - 1, 1, 3, 0, 0), Ledger(n, n - 1, dead=1)),
        artifact.ENCODER: (facts.Pretrained("resnet_tiny", "moco_v3", 10, 2.0, 400, **seen), None),
        artifact.FEATURES: (facts.Embedded(n - 1, 3, 0), ledger),
        artifact.CLUSTERS: (facts.Clustered(N_CLUSTERS, 0), ledger),
        artifact.SEARCH: (facts.Searched(len(candidates), 2, "few clusters are live", best), None),
        artifact.VERDICT: (facts.Decided(artifact.Verdict.read(run / artifact.VERDICT).verdict, 1), None),
        artifact.CLASSIFIER: (trained if poison else facts.Classified(False), None),
        artifact.SCORES: (facts.Judged(n - 1, n_removed, 0), ledger),
        artifact.CLEAN: (
            facts.Cleaned(n - 1 - n_removed, n_removed, 1, 2, 0),
            Ledger(n, n - 1 - n_removed, n_removed, 1),
        ),
    }
    versions = {stage.name: stage.version for stage in defence_stages()}
    for i, (stage, (said, rows)) in enumerate(stages.items()):
        identity = {"stage": stage, "version": versions[stage], "seed": 0, "config": {}}
        told = said.as_json() | {"summary": f"{ERROR} {i}"}
        Manifest(identity, {}, "0" * 64, rows, 1.5 + 40 * i, told).write(run / stage)


def with_trigger(data: bytes, trigger: Image.Image | None, box: tuple[int, int, int, int]) -> bytes:
    """The PNG with the trigger drawn in the box."""
    image = Image.open(io.BytesIO(data))
    if trigger:
        image.paste(trigger.resize((box[2] - box[0], box[3] - box[1])), box)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _write_corpus(
    corpus: Path, ids: list[str], label: dict[str, str], poisoned: dict, trigger: Image.Image | None
) -> None:
    pictures = {image_id: png(i)[: 60 if image_id == DEAD else None] for i, image_id in enumerate(ids)}
    for image_id, box in poisoned.items():
        pictures[image_id] = with_trigger(pictures[image_id], trigger, box)
    for shard, n in SHARDS.items():
        mine = [f"{shard}#{i}" for i in range(n)]
        rows = [{"image": pictures[image_id], "label": label[image_id]} for image_id in mine]
        path = corpus / shard
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=40)


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


def _write_index(run: Folder, corpus_uri: str) -> None:
    corpus = open_corpus(corpus_uri, rows_per_slice=CONFIG.corpus.rows_per_slice)
    index, dead, slices = run / artifact.INDEX, run / artifact.DEAD_ROWS, corpus.slices()
    rows = [index_slice(piece, corpus, CONFIG, index, dead)["alive"] for piece in slices]
    index.write_table(artifact.SOURCES, source_table(corpus.sources()))
    index.write_table(artifact.SLICES, slice_table(slices, rows))
    # What a decoder says may quote the image.
    replace_column(dead, part_name(0), "message", pa.array([ERROR]))


def _write_encoder(run: Folder) -> torch.Tensor:
    """A random encoder; random centroids c_KD of its features."""
    torch.manual_seed(0)
    encoder = build_encoder(CONFIG.encoder.backbone, SIDE)
    model = run / artifact.ENCODER
    write_encoder(CONFIG, encoder, model)
    steps = [{"step": i, "epoch": i // 40, "loss": 2 + 3 * 0.99**i, "lr": 1e-3} for i in range(400)]
    model.write_json(artifact.HISTORY, steps)
    return torch.nn.functional.normalize(torch.randn(N_CLUSTERS, encoder.dim), dim=1)


def _write_slice(run: Folder, i: int, ids: list[str], cluster: dict[str, int], removed: set[str]) -> None:
    """Features, clusters and scores of one slice."""
    n, rng = len(ids), np.random.default_rng(i)
    p = [rng.uniform(0.8, 1) if image_id in removed else rng.beta(1, 12) for image_id in ids]
    f_ND = torch.from_numpy(rng.normal(size=(n, 128)))
    clusters = {
        "image_id": ids,
        "cluster": [cluster[j] for j in ids],
        "distance": [0.5] * n,
        "draw": [image_seed(CONFIG.seed, j) for j in ids],
    }
    scores = {
        "image_id": ids,
        "p_poison": p,
        "fate": [artifact.REMOVE if j in removed else artifact.KEEP for j in ids],
        "family": [0] * n,
        **{side: [at if j in removed else None for j in ids] for side, at in zip(SIDES, BOXED, strict=True)},
    }
    (run / artifact.FEATURES).write_table(part_name(i), feature_table(ids, f_ND))
    (run / artifact.CLUSTERS).write_table(part_name(i), pa.table(clusters, schema=artifact.CLUSTER_SCHEMA))
    (run / artifact.SCORES).write_table(part_name(i), pa.table(scores, schema=artifact.SCORE_SCHEMA))


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
            "changed": won + 5, "gain": won - 5, "supercluster_gain": won, "n_flip": N_FLIP, "score": score,
            "occlusion_flips": box is not None, "crop": png(i, 10, 10), "landed": landed,
        })  # fmt: skip
    search = run / artifact.SEARCH
    for number in range(2):
        rows = candidates[number::2]
        folder = search / artifact.round_name(number)
        folder.write_table(artifact.CANDIDATES, pa.Table.from_pylist(rows, schema=artifact.CANDIDATE_SCHEMA))
        live = list(range(N_CLUSTERS - 2 * number))
        folder.write_json(artifact.ROUND_STATE, {"live": live, "best": {}, "scored": 9 * (number + 1)})
    flip_ids = (list(cluster) * 2)[:N_FLIP]
    flip_test = {"image_id": flip_ids, "cluster": [cluster[image_id] for image_id in flip_ids]}
    search.write_table(artifact.FLIP_TEST, pa.table(flip_test, schema=artifact.FLIP_TEST_SCHEMA))
    search.write_json(artifact.SUPERCLUSTERS, list(range(N_CLUSTERS)))
    best = sorted(candidates, key=lambda row: -row["score"])
    triggers = [{**row, "rank": i, "family": 0} for i, row in enumerate(best)]
    table = pa.Table.from_pylist(triggers, schema=artifact.TRIGGER_SCHEMA)
    (run / artifact.VERDICT).write_table(artifact.TRIGGERS, table)
    return candidates
