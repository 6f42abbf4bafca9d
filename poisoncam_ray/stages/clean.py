"""Clean: the corpus without what was flagged, the removed rows beside it, and the proof that none is lost."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import ray

from poisoncam_ray import metrics
from poisoncam_ray.artifact import SIDES, Folder, Ledger, part_name
from poisoncam_ray.corpus import Corpus, Slice
from poisoncam_ray.corpus.storage import REMOVED_TYPES
from poisoncam_ray.errors import LedgerError
from poisoncam_ray.pipeline import Outcome, Run, Stage
from poisoncam_ray.stages.dataflow import RESTARTS, digest_columns, in_flight
from poisoncam_ray.store import in_parallel

KEPT, REMOVED, DEAD = 0, 1, 2
UNITS = "_units"
UNITS_WAITING = 256


class Clean(Stage):
    name = "07_clean"
    title = "Clean"
    version = 2
    inputs = ("00_index", "06_verdicts")
    sections = ()

    def run(self, run: Run) -> Outcome:
        units = run.corpus.units(run.slices())
        markers = run.out / UNITS
        done = set(markers.names())
        todo = [(number, unit) for number, unit in enumerate(units) if marker_name(number) not in done]
        folders = {name: run.folder / name for name in ("00_index", "06_verdicts", "removed")}
        task = ray.remote(write_unit).options(
            num_cpus=run.config.resources.cpus_per_reader, max_retries=RESTARTS
        )
        calls = (partial(task.remote, number, unit, run.corpus, folders, run.out) for number, unit in todo)
        for finished, _ in enumerate(in_flight(calls, UNITS_WAITING), start=1):
            run.progress.update(f"{finished} of {len(todo)} files")
        counts = in_parallel(lambda i: markers.read_json(marker_name(i)), list(range(len(units))))
        kept, removed, dead = (sum(count[key] for count in counts) for key in ("kept", "removed", "dead"))
        rows = sum(piece.stop - piece.start for unit in units for piece in unit)
        indexed = run.manifest("00_index").ledger
        if indexed is None or dead != indexed.dead:
            raise LedgerError(f"{dead} rows have no verdict, which is not the number that died at indexing")
        facts = {
            "summary": f"{kept:,} kept + {removed:,} removed + {dead:,} dead = {rows:,} rows",
            "files": len(units),
            "files_reused": len(units) - len(todo),
        }
        return Outcome(Ledger(rows, kept, removed, dead), facts)


def marker_name(number: int) -> str:
    return f"unit-{number:06d}.json"


def write_unit(
    number: int, unit: list[Slice], corpus: Corpus, folders: dict[str, Folder], out: Folder
) -> None:
    """Split one shard (or slice of a folder) by its verdicts; the marker, written last, commits it.

    Raises LedgerError when what was written is not what the verdicts say.
    """
    first = unit[0].start
    fate_N = np.full(sum(piece.stop - piece.start for piece in unit), DEAD, np.int8)
    columns: dict[str, list[Any]] = {name: [] for name in REMOVED_TYPES}
    sha256: dict[str, str] = {}
    for piece in unit:
        wanted = ["image_id", "row", *digest_columns(piece)]
        rows = folders["00_index"].read_table(part_name(piece.index), wanted).to_pydict()
        verdicts = folders["06_verdicts"].read_table(part_name(piece.index)).to_pydict()
        if rows["image_id"] != verdicts["image_id"]:
            raise LedgerError(f"verdicts of slice {piece.index} are not those of its indexed rows")
        if "sha256" in rows:
            sha256 |= zip(rows["image_id"], rows["sha256"], strict=True)
        for i, row in enumerate(rows["row"]):
            removed = verdicts["verdict"][i] == "remove"
            fate_N[row - first] = REMOVED if removed else KEPT
            if removed:
                columns["_reason"].append("poison_classifier")
                columns["_p_poison"].append(verdicts["p_poison"][i])
                columns["_family"].append(verdicts["family"][i])
                columns["_image_id"].append(rows["image_id"][i])
                columns["_box"].append([verdicts[side][i] for side in SIDES])
    n_kept, n_removed = corpus.split(unit, fate_N, columns, out.uri, folders["removed"].uri, sha256)
    if (n_kept, n_removed) != (int((fate_N == KEPT).sum()), int((fate_N == REMOVED).sum())):
        raise LedgerError(
            f"{unit[0].source}: wrote {n_kept} kept and {n_removed} removed rows, not what was decided"
        )
    count = {"kept": n_kept, "removed": n_removed, "dead": int((fate_N == DEAD).sum())}
    (out / UNITS).write_json(marker_name(number), count)
    metrics.count("rows", n_kept, stage=Clean.title)
    metrics.count("removed", n_removed)
