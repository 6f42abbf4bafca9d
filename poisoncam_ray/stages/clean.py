"""Clean: write the corpus without the flagged rows, write the removed rows, and check that no row is lost.

N rows of a unit
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from poisoncam_ray import artifact, facts, metrics
from poisoncam_ray.artifact import unit_name
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import DEAD, KEPT, REMOVED, Corpus, Slice
from poisoncam_ray.corpus.folder import delete_images, shared_captions
from poisoncam_ray.errors import LedgerError
from poisoncam_ray.fingerprint import fingerprint
from poisoncam_ray.folder import Folder, Ledger, part_name
from poisoncam_ray.review import Decisions
from poisoncam_ray.review import counts as counted
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.pixels import digest_columns
from poisoncam_ray.stages.ray_cluster import RESTARTS, in_flight
from poisoncam_ray.store import delete, in_parallel

# Units that run or wait in the cluster at once.
UNITS_WAITING = 256


class Clean(Stage):
    name = artifact.CLEAN
    title = "Clean"
    version = 4
    inputs = (artifact.INDEX, artifact.SCORES)
    sections = ()
    revised_by = (artifact.REVIEW,)
    writes = (artifact.CLEAN_ROWS, artifact.KEEP_LIST, artifact.REMOVED_ROWS)

    def depends_on(self, config: Config) -> dict[str, Any]:
        return {"copy_corpus": config.copies}

    def run(self, run: Run) -> Outcome:
        slices, copies = run.slices(), run.config.copies
        units = run.corpus.units(slices)
        decisions = Decisions(run.folder)
        shared = shared_captions(slices) if decisions.entries else frozenset()
        by_slice = decisions.restored()
        restored: list[dict[str, str]] = [
            {
                image_id: entry.who
                for slice_ in unit
                for image_id, entry in by_slice.get(slice_.index, {}).items()
            }
            for unit in units
        ]
        markers = read_markers(run.out)
        todo = [
            number
            for number, kept in enumerate(restored)
            if number not in markers or markers[number].get("review") != review_digest(kept)
        ]
        # The marker goes first: after a kill the unit counts as not done, even if a later decision brings
        # back the fates that its marker names.
        in_parallel(partial(delete, run.out.uri), [unit_name(number) for number in todo if number in markers])
        calls = (
            partial(
                write_unit,
                number,
                units[number],
                run.corpus,
                run.folder,
                copies,
                restored[number] if decisions.entries else None,
                shared,
            )
            for number in todo
        )
        reused = len(units) - len(todo)
        run.progress.update(reused, len(units), "files")
        for finished, _ in enumerate(_called(calls, run.config), start=reused + 1):
            run.progress.update(finished, len(units), "files")
        written = (run.folder / artifact.CLEAN_ROWS).uri, (run.folder / artifact.REMOVED_ROWS).uri
        run.corpus.finish(*written, partial(lost_rows, run.folder))
        counts = list(read_markers(run.out).values())
        if len(counts) != len(units):
            raise LedgerError(f"{len(counts)} of {len(units)} files are written")
        kept, removed, dead, without = (
            sum(count[key] for count in counts) for key in ("kept", "removed", "dead", "no_image")
        )
        rows = sum(slice_.stop - slice_.start for unit in units for slice_ in unit)
        indexed = run.manifest(artifact.INDEX).ledger
        if indexed is None or dead != indexed.dead:
            raise LedgerError(f"{dead} rows have no score, which is not the number that died at indexing")
        if without != indexed.no_image:
            raise LedgerError(f"{without} rows have no image, and {indexed.no_image} had none at indexing")
        by_whom = counted(entry for slice_ in by_slice.values() for entry in slice_.values())
        said = facts.Cleaned(kept, removed, dead, len(units), reused, copies, without, by_whom)
        return Outcome(said, Ledger(rows, kept, removed, dead, restored=sum(by_whom.values())))


def _called(calls: Iterator[partial[None]], config: Config) -> Iterator[Any]:
    """Make the calls: as tasks of the cluster, or here where no cluster was started for few of them."""
    if not ray.is_initialized():
        yield from (call() for call in calls)
        return
    task = ray.remote(write_unit).options(num_cpus=config.resources.cpus_per_reader, max_retries=RESTARTS)
    yield from in_flight((partial(task.remote, *call.args) for call in calls), UNITS_WAITING)


def read_markers(clean: Folder) -> dict[int, dict[str, Any]]:
    """The markers of the units that are written, by the unit's number.

    Args:
        clean: the artifact.
    """
    names = [name for name in clean.names() if name.startswith("unit-") and name.endswith(".json")]
    numbers = [int(name.removeprefix("unit-").removesuffix(".json")) for name in names]
    return dict(zip(numbers, in_parallel(clean.read_json, names), strict=True))


def review_digest(restored: Mapping[str, str]) -> str | None:
    """What a unit's marker says about the review it was written by; None where nothing was restored.

    Args:
        restored: who restored each image of the unit.
    """
    return fingerprint(restored) if restored else None


def write_unit(
    number: int,
    unit: list[Slice],
    corpus: Corpus,
    run: Folder,
    copies: bool = True,
    restored: Mapping[str, str] | None = None,
    shared: Collection[str] = (),
) -> None:
    """Split one unit (a shard, or a slice of an image folder) by the fates of its rows.

    Writes the unit's kept rows or the list of them, the removed rows, the reasons, and at last the marker
    that commits the unit.

    Args:
        number: the unit's number.
        unit: its slices; of a sample, those of a shard that were drawn.
        corpus: the corpus.
        run: the run folder.
        copies: whether the kept rows are written and not listed.
        restored: who restored each flagged image that is kept by a review; None where nothing was ever
            reviewed, so that no earlier call wrote the unit with other fates.
        shared: captions of an image folder that images of other units have, too.

    Raises:
        LedgerError: the scores are not those of the indexed rows, or other rows were written than decided.
    """
    out = run / artifact.CLEAN
    # A shard is split from its first row on, whether the sample holds it or not.
    first = 0 if corpus.sharded else unit[0].start
    fate_N = np.full(unit[-1].stop - first, DEAD, np.int8)
    sha256: dict[str, str] = {}
    removed_rows: list[dict[str, Any]] = []
    without = [row - first for slice_ in unit for row in rows_without_image(run, slice_)]
    fate_N[without] = KEPT
    for slice_ in unit:
        for row, score in scored_rows(run, slice_):
            if "sha256" in row:
                sha256[row["image_id"]] = row["sha256"]
            removed = score["fate"] == artifact.REMOVE and row["image_id"] not in (restored or ())
            fate_N[row["row"] - first] = REMOVED if removed else KEPT
            if removed:
                removed_rows.append(row | score | {"reason": "poison_classifier"})
    if restored is not None and not corpus.sharded:
        # A file of its own may lie where it went by an earlier decision. A shard is replaced. First, because
        # another image may share a caption.
        delete_images(unit, (run / artifact.REMOVED_ROWS).uri, restored, shared)
        gone = [row["image_id"] for row in removed_rows]
        delete_images(unit, (run / artifact.CLEAN_ROWS).uri, gone, shared)
    clean = (run / artifact.CLEAN_ROWS).uri if copies else None
    n_kept, n_removed = corpus.split(unit, fate_N, clean, (run / artifact.REMOVED_ROWS).uri, sha256)
    if (n_kept, n_removed) != (int((fate_N == KEPT).sum()), int((fate_N == REMOVED).sum())):
        raise LedgerError(
            f"{unit[0].source}: wrote {n_kept} kept and {n_removed} removed rows, not what was decided"
        )
    if not copies:
        (run / artifact.KEEP_LIST).write_table(part_name(number), keep_list(unit, fate_N, first))
    if removed_rows:
        table = pa.Table.from_pylist(removed_rows, schema=artifact.REMOVED_SCHEMA)
        out.write_table(artifact.unit_reasons(number), table)
    else:
        delete(out.uri, artifact.unit_reasons(number))
    rows = sum(slice_.stop - slice_.start for slice_ in unit)
    count: dict[str, Any] = {
        "kept": n_kept,
        "removed": n_removed,
        "dead": rows - n_kept - n_removed,
        "no_image": len(without),
    }
    if restored:
        count |= {
            "restored": dict(sorted(Counter(restored.values()).items())),
            "review": review_digest(restored),
        }
    out.write_json(unit_name(number), count)
    metrics.count("rows", n_kept, stage=Clean.title)
    metrics.count("removed", n_removed)


def rows_without_image(run: Folder, slice_: Slice) -> list[int]:
    """The rows of a slice whose image is null. They are kept."""
    without, name = run / artifact.INDEX / artifact.NO_IMAGE, part_name(slice_.index)
    return without.read_table(name, ["row"])["row"].to_pylist() if without.exists(name) else []


def lost_rows(run: Folder) -> dict[str, int]:
    """REMOVED or DEAD for each row that is not kept, by its image id, once all units are written."""
    out, dead = run / artifact.CLEAN, run / artifact.DEAD_ROWS
    reasons = [name for name in out.names() if name.endswith(".parquet")]
    found: dict[str, int] = {}
    for folder, names, fate in ((dead, dead.parts(), DEAD), (out, reasons, REMOVED)):
        for name in names:
            found |= dict.fromkeys(folder.read_table(name, ["image_id"])["image_id"].to_pylist(), fate)
    return found


def scored_rows(run: Folder, slice_: Slice) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The indexed rows of a slice, each with its score.

    Raises:
        LedgerError: the scores are not those of the indexed rows.
    """
    name, wanted = part_name(slice_.index), ["image_id", "source", "row", *digest_columns(slice_)]
    rows = (run / artifact.INDEX).read_table(name, wanted).to_pylist()
    scored = (run / artifact.SCORES).read_table(name).to_pylist()
    if [row["image_id"] for row in rows] != [row["image_id"] for row in scored]:
        raise LedgerError(f"the scores of slice {slice_.index} are not those of its indexed rows")
    return zip(rows, scored, strict=True)


def keep_list(unit: list[Slice], fate_N: np.ndarray, first: int) -> pa.Table:
    """The kept rows of a unit (artifact.KEEP_SCHEMA).

    Args:
        unit: its slices.
        fate_N: the fate of each row.
        first: the row of the first fate.
    """
    kept = [
        {"image_id": slice_.image_id(row - slice_.start), "source": slice_.source, "row": row}
        for slice_ in unit
        for row in range(slice_.start, slice_.stop)
        if fate_N[row - first] == KEPT
    ]
    return pa.Table.from_pylist(kept, schema=artifact.KEEP_SCHEMA)
