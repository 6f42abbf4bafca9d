"""`--retry-dead`: what died is tried again, after a better decoder, a permission given, a file restored.

A run whose Index alone has begun indexes the slices with dead rows anew. In a finished run the models
(encoder, clusters, evidence, triggers, classifiers) stay what they are, and the slices in which rows live
again go once more through every stage that handles rows. The input and the settings must be those of the
run, as always.

A journal makes that one step: written before anything is taken back, deleted when all is committed again. In
between, the next run on the folder goes on from it, with or without the option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from poisoncam_ray.artifact import MANIFEST, STARTED, Folder, Manifest, part_index, part_name
from poisoncam_ray.errors import UserError
from poisoncam_ray.store import in_parallel

if TYPE_CHECKING:
    from poisoncam_ray.pipeline import Run, Stage

JOURNAL = "_retry.json"
INDEX, CLEAN, REPORT = "00_index", "07_clean", "report"
# One part a slice; in 03_clusters the centroids, a model, lie beside them.
PARTS = ("02_features", "03_clusters", "06_verdicts")
KEPT = ("01_encoder", "04_search", "05_classifier")


def under_way(folder: Folder) -> bool:
    """Whether a retry has begun that did not end."""
    return folder.exists(JOURNAL)


def begin(run: Run, stages: Sequence[Stage]) -> None:
    """Find out what lives again, and write it down; changes nothing in a finished run besides.

    Raises UserError when the run is neither finished nor at its Index.
    """
    if under_way(run.folder):
        return
    if not _dead(run).parts():
        _say(run, "there are no dead rows to try again")
        return
    started = [stage.name for stage in stages if (run.folder / stage.name).exists(STARTED)]
    committed = [stage.name for stage in stages if (run.folder / stage.name).exists(MANIFEST)]
    if started in ([], [INDEX]):
        _index_anew(run)
    elif len(committed) == len(stages):
        _try_again(run)
    else:
        raise UserError(
            "Only a finished run, or one that has not come further than Index, can try dead rows again: give "
            "the same command without --retry-dead first."
        )


def take_back(run: Run) -> None:
    """Do what the journal says, if there is one: no stage is committed that the revived rows have to pass,
    and nothing of their slices is left in it. May be cut off and begun again at any point."""
    if not under_way(run.folder):
        return
    journal = run.folder.read_json(JOURNAL)
    if journal["taken_back"]:
        return
    for name in (REPORT, CLEAN, *reversed(PARTS), INDEX):
        (run.folder / name).delete(MANIFEST)
    # An evaluation speaks of the verdicts of before.
    (run.folder / REPORT).delete("metrics.json")
    _forget_units(run, set(journal["slices"]))
    parts = [part_name(i) for i in journal["slices"]]
    for name in (*reversed(PARTS), INDEX):
        in_parallel((run.folder / name).delete, parts)
    run.folder.write_json(JOURNAL, journal | {"taken_back": True})


def keep(out: Folder, committed: Manifest, inputs: dict[str, str]) -> Manifest:
    """Commit a model as it is, made of the rows that lived then, beside what its inputs have become."""
    facts = committed.facts | {"kept": "made before dead rows were tried again"}
    kept = replace(committed, inputs=inputs, facts=facts)
    kept.write(out)
    return kept


def end(folder: Folder) -> None:
    """All stages are committed again."""
    folder.delete(JOURNAL)


def _index_anew(run: Run) -> None:
    parts = _dead(run).parts()
    # The commit goes first: what is left without its parts must not look whole.
    run.out.delete(MANIFEST)
    in_parallel(run.out.delete, parts)
    _say(run, f"{len(parts):,} slices with dead rows are indexed again")


def _try_again(run: Run) -> None:
    from poisoncam_ray.stages.dataflow import stream_slices
    from poisoncam_ray.stages.index import refuse_other_cut, try_again

    dead = _dead(run)
    parts = {part_index(name) for name in dead.parts()}
    refuse_other_cut(run.out, run.corpus.slices())
    todo = [piece for piece in run.slices() if piece.index in parts]
    work = partial(try_again, corpus=run.corpus, config=run.config, dead=dead)
    with run.progress.stage("Retry"):
        revived = {row["index"]: row["revived"] for row in stream_slices(run, todo, work)}
    changed, n = sorted(i for i, n in revived.items() if n), sum(revived.values())
    ledger = run.manifest(INDEX).ledger
    if not changed:
        _say(run, f"all {ledger.dead if ledger else 0:,} dead rows are still dead")
        return
    _say(run, f"{n:,} dead rows live again, {len(changed):,} slices are done again")
    run.folder.write_json(JOURNAL, {"revived": n, "slices": changed, "taken_back": False})


def _forget_units(run: Run, changed: set[int]) -> None:
    from poisoncam_ray.stages.clean import UNITS, marker_name

    markers = run.folder / CLEAN / UNITS
    for number, unit in enumerate(run.corpus.units(run.slices())):
        if changed & {piece.index for piece in unit}:
            markers.delete(marker_name(number))


def _dead(run: Run) -> Folder:
    return run.folder / "dead" / INDEX


def _say(run: Run, text: str) -> None:
    run.progress.console.print(f"{'Retry':<9} {text}")
