"""A small corpus of any format, indexed and judged without a cluster, cleaned by the real runner."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console

from poisoncam_ray import artifact, facts
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.corpus.slices import slice_table, source_table
from poisoncam_ray.facts import Facts
from poisoncam_ray.fingerprint import fingerprint
from poisoncam_ray.folder import MANIFEST, Folder, Ledger, Manifest, part_name
from poisoncam_ray.progress import Progress
from poisoncam_ray.report.removed import removed_csv, restored_csv
from poisoncam_ray.review import Decisions, digest
from poisoncam_ray.runner import Done, Runner
from poisoncam_ray.settings import load_config
from poisoncam_ray.stage import Stage
from poisoncam_ray.stages.clean import Clean
from poisoncam_ray.stages.index import index_slice

SETTINGS = ["encoder.image_size=16", "corpus.rows_per_slice=9"]
CONFIG = load_config(overrides=SETTINGS)


def judged_run(
    corpus: str, run: Folder, config: Config = CONFIG, flagged: Callable[[int], int] = lambda i: i % 4
) -> None:
    """Write the index and the scores of a corpus, committed.

    Args:
        corpus: where the corpus lies.
        run: the run folder.
        config: the configuration.
        flagged: the family of the corpus's living image number `i`, 0 for one that is kept.
    """
    opened = open_corpus(corpus, rows_per_slice=config.corpus.slice_rows)
    run.write_json(
        artifact.RUN, {"format": artifact.FORMAT, "input": corpus, "config": config.model_dump(mode="json")}
    )
    index, dead, scores = run / artifact.INDEX, run / artifact.DEAD_ROWS, run / artifact.SCORES
    slices, alive, died, without, seen = opened.slices(), [], 0, 0, 0
    for slice_ in slices:
        done = index_slice(slice_, opened, config, index, dead)
        alive.append(done["alive"])
        died += done["dead"]
        without += done["no_image"]
        ids = index.read_table(part_name(slice_.index))["image_id"].to_pylist()
        families = [flagged(seen + i) if flagged(seen + i) < 3 else 0 for i in range(len(ids))]
        seen += len(ids)
        columns = {
            "image_id": pa.array(ids, pa.string()),
            "p_poison": np.full(len(ids), 0.5, np.float32),
            "fate": pa.array([artifact.REMOVE if f else artifact.KEEP for f in families], pa.string()),
            "family": pa.array(families, pa.int32()),
            **{side: pa.array([1 if f else None for f in families], pa.int32()) for side in SIDES},
        }
        scores.write_table(part_name(slice_.index), pa.table(columns, schema=artifact.SCORE_SCHEMA))
    index.write_table(artifact.SOURCES, source_table(opened.sources()))
    index.write_table(artifact.SLICES, slice_table(slices, alive))
    total = sum(alive)
    said = facts.Indexed(total, died, len(slices), 0, 0, no_image=without)
    commit(run, artifact.INDEX, Ledger(total + died + without, total, dead=died, no_image=without), said)
    commit(run, artifact.SCORES, Ledger(total, total))


def commit(run: Folder, name: str, ledger: Ledger | None = None, said: Facts | None = None) -> None:
    """Write the manifest of an artifact that a test made up."""
    identity = {"stage": name, "seed": 0, "config": {}}
    told = said.as_json() if said else {}
    log = digest(run / artifact.REVIEW) if name == artifact.REPORT else None
    inputs = {artifact.REVIEW: log} if log else {}
    Manifest(identity, inputs, fingerprint({"of": identity}), ledger, 0.0, told).write(run / name)


def finish(run: Folder) -> None:
    """What is left of a whole run beside its rows: manifests, verdict, lists of the report."""
    for name in artifact.TITLES:
        if name == artifact.REPORT or not (run / name).exists(MANIFEST):
            commit(run, name)
    for folder in (run / artifact.VERDICT, run / artifact.PAGE):
        folder.write_json(artifact.VERDICT_FILE, {"verdict": artifact.POISON})
    page, decisions = run / artifact.PAGE, Decisions(run)
    page.write_bytes(artifact.REMOVED_CSV, removed_csv(run))
    if decisions.entries:
        page.write_bytes(artifact.RESTORED_CSV, restored_csv(decisions))


def runner(corpus: str, run: Folder, config: Config = CONFIG, stages: Sequence[Stage] = ()) -> Runner:
    return Runner(corpus, run.uri, config, stages or [Clean()])


def go(corpus: str, run: Folder, config: Config = CONFIG, stages: Sequence[Stage] = ()) -> list[Done]:
    """What `defend` does from Clean on, in this process."""
    return runner(corpus, run, config, stages).run(Progress(Console(file=io.StringIO())))


def tree(run: Folder, *names: str) -> dict[str, bytes]:
    """The files below some folders of a run, unfinished ones and manifests left out."""
    root = Path(run.uri)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for name in names
        for path in sorted((root / name).rglob("*"))
        if path.is_file() and not path.name.startswith((".writing", "_"))
    }
