"""The results table: attack, defend and measure over seeds × triggers on labelled photographs.

Every run has its own folder, so a killed table goes on where it was. Classes are drawn by seed from the
labels that are allowed, the target among them; nothing here is tuned on them.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from poisoncam_ray.artifact import Folder
from poisoncam_ray.attacks import patch_corpus, poison_corpus
from poisoncam_ray.config import Config
from poisoncam_ray.evaluate import evaluate_run, probe
from poisoncam_ray.pipeline import Runner, defence
from poisoncam_ray.progress import Progress
from poisoncam_ray.store import connect

# Beside the default strategy: the paper's own masks and score, the peer's Grad-CAM, and luck.
STRATEGIES = ("full_coverage:hard", "gradcam", "random")
STAGES_OF_AN_ENCODER = 3
SHARDS = 3


@dataclass(frozen=True)
class Setting:
    """One table. `labels`: those that classes may be drawn from; `width`, `share`: as in poison_corpus."""

    train_uri: str
    validation_uri: str
    triggers: tuple[str, ...]
    seeds: tuple[int, ...]
    labels: tuple[int, ...]
    n_classes: int = 10
    per_class: int = 300
    width: float = 20 / 64
    share: float = 1.0


def make_table(setting: Setting, config: Config, out: Folder, progress: Progress) -> list[dict[str, Any]]:
    """Run what is missing; write results.csv and results.md into `out` and return a row a run."""
    rows = []
    for seed in setting.seeds:
        seeded = config.model_copy(update={"seed": seed})
        corpora = out / f"seed-{seed}"
        classes = np.random.default_rng(seed).choice(setting.labels, setting.n_classes, replace=False)
        target = str(classes[0])
        take_classes(setting.train_uri, corpora / "clean", classes, setting.per_class, SHARDS)
        take_classes(setting.validation_uri, corpora / "validation", classes, setting.per_class, 1)
        clean = Runner(
            (corpora / "clean").uri,
            (corpora / "never-poisoned").uri,
            seeded,
            defence()[:STAGES_OF_AN_ENCODER],
        )
        clean.run(progress)
        for trigger in setting.triggers:
            rows.append(_one_run(setting, seeded, corpora, trigger, target, progress))
            _write(out, rows)
    return rows


def take_classes(uri: str, out: Folder, classes: np.ndarray, per_class: int, shards: int) -> None:
    """The first `per_class` rows of each class of a labelled Parquet corpus, in the corpus's order."""
    if out.exists(f"part-{shards - 1:05d}.parquet"):
        return
    filesystem, path = connect(uri)
    wanted = ds.dataset(path, filesystem=filesystem, format="parquet").to_table(
        filter=pc.field("label").isin(pa.array(classes))
    )
    labels_N = wanted["label"].to_numpy()
    chosen = np.sort(np.concatenate([np.flatnonzero(labels_N == label)[:per_class] for label in classes]))
    for shard, rows_M in enumerate(np.array_split(chosen, shards)):
        sink = pa.BufferOutputStream()
        pq.write_table(wanted.take(pa.array(rows_M)), sink, row_group_size=256)
        out.write_bytes(f"part-{shard:05d}.parquet", sink.getvalue().to_pybytes())


def _one_run(
    setting: Setting, config: Config, corpora: Folder, trigger: str, target: str, progress: Progress
) -> dict[str, Any]:
    name = trigger.rsplit("/", 1)[-1].rpartition(".")[0] or trigger
    here = corpora / name
    row_file = "row.json"
    if here.exists(row_file):
        return here.read_json(row_file)
    poisoned, patched, run = (here / part for part in ("poisoned", "patched", "run"))
    if not poisoned.exists("attack.json"):
        poisoned.delete()
        poison_corpus(
            (corpora / "clean").uri,
            poisoned.uri,
            [target],
            [trigger],
            setting.width,
            setting.share,
            config.seed,
        )
    if not patched.exists("attack.json"):
        patched.delete()
        patch_corpus((corpora / "validation").uri, patched.uri, target, trigger, setting.width, config.seed)
    progress.console.print(f"[bold]seed {config.seed}, {name}, target {target}[/]")
    done = Runner((poisoned / "corpus").uri, run.uri, config, defence()).run(progress)
    validation, patched_uri = (corpora / "validation").uri, (patched / "corpus").uri
    metrics = evaluate_run(
        run.uri, (poisoned / "truth.parquet").uri, STRATEGIES, validation, patched_uri, target=target
    )
    never = probe(
        (corpora / "never-poisoned").uri, (corpora / "clean").uri, validation, patched_uri, "label", target
    )
    row = {"seed": config.seed, "trigger": name, "target": target}
    row |= {key: value for key, value in metrics.items() if key != "strategies"}
    row |= {f"{key}_never_poisoned": value for key, value in never.items()}
    for strategy, marks in metrics["strategies"].items():
        row |= {f"{strategy} {key}": value for key, value in marks.items()}
    row |= {f"seconds {stage.title}": stage.manifest.seconds for stage in done}
    here.write_json(row_file, row)
    return row


def _write(out: Folder, rows: Sequence[dict[str, Any]]) -> None:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    out.write_bytes("results.csv", sink.getvalue().encode())
    lines = [
        f"| {len(rows)} runs | mean | spread (standard deviation) | least | most |",
        "|---|---|---|---|---|",
    ]
    for key in rows[0]:
        values = [row[key] for row in rows if isinstance(row[key], int | float) and key != "seed"]
        if values:
            numbers = (statistics.mean(values), statistics.pstdev(values), min(values), max(values))
            lines.append(f"| {key} | " + " | ".join(f"{number:.3f}" for number in numbers) + " |")
    out.write_bytes("results.md", ("\n".join(lines) + "\n").encode())
