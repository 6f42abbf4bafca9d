"""What a run says of itself: its manifests, their inputs, their ledgers, and the report's copies."""

from __future__ import annotations

from typing import Any

from poisoncam_ray import artifact, facts, review
from poisoncam_ray.fingerprint import fingerprint
from poisoncam_ray.folder import MANIFEST, Folder, Manifest
from poisoncam_ray.verify import defect as kinds
from poisoncam_ray.verify.defect import Defect


def check_records(run: Folder) -> list[Defect]:
    """Compare the manifests with each other and with the report.

    Args:
        run: the run folder.
    """
    trees = {
        name: (run / name).read_json(MANIFEST) if (run / name).exists(MANIFEST) else None
        for name in artifact.titles_of(run)
    }
    found = [Defect(kinds.UNFINISHED, name, MANIFEST, "none") for name, tree in trees.items() if tree is None]
    for name, tree in trees.items():
        if tree is not None:
            found += _ledger(name, Manifest.read(run / name)) + _inputs(run, name, tree, trees)
    return found + _totals(run) + _verdict(run)


def _ledger(name: str, manifest: Manifest | None) -> list[Defect]:
    ledger = manifest.ledger if manifest else None
    if ledger is None or ledger.balanced:
        return []
    parts = f"{ledger.rows_out} + {ledger.removed} + {ledger.dead} + {ledger.no_image}"
    return [Defect(kinds.LEDGER, f"{name}/{MANIFEST}", f"{ledger.rows_in} rows", parts)]


def _inputs(run: Folder, name: str, tree: dict[str, Any], trees: dict[str, Any]) -> list[Defect]:
    """Whether the artifact was made from the inputs that lie there now."""
    now = {
        source: fingerprint({"manifest": trees[source]}) if trees.get(source) else None
        for source in tree["inputs"]
        if source != artifact.REVIEW
    }
    if name in (artifact.CLEAN, artifact.REPORT):
        # Without a review it is no input.
        now[artifact.REVIEW] = review.digest(run / artifact.REVIEW)
    found = [
        Defect(kinds.INPUT, f"{name}/{MANIFEST}", f"{source} {str(then)[:12]}", f"{str(digest)[:12]}")
        for source, digest in now.items()
        if digest != (then := tree["inputs"].get(source))
    ]
    if tree["fingerprint"] != fingerprint({"of": tree["identity"]}):
        then = tree["fingerprint"][:12]
        found.append(Defect(kinds.INPUT, f"{name}/{MANIFEST}", f"the identity of {then}", "another one"))
    return found


def _totals(run: Folder) -> list[Defect]:
    """Whether the stages agree on how many rows there are."""
    ledgers = {
        name: manifest.ledger
        for name in artifact.TITLES
        if (manifest := Manifest.read(run / name)) is not None
    }
    index, clean = ledgers.get(artifact.INDEX), ledgers.get(artifact.CLEAN)
    if index is None:
        return []
    found = []
    dead = (run / artifact.DEAD_ROWS).total_rows()
    if dead != index.dead:
        found.append(Defect(kinds.COUNT, f"{artifact.DEAD_ROWS}/", f"{index.dead} rows", f"{dead}"))
    for name in (artifact.FEATURES, artifact.CLUSTERS, artifact.SCORES):
        if (ledger := ledgers.get(name)) is not None and ledger.rows_out != index.rows_out:
            where = f"{name}/{MANIFEST}"
            found.append(Defect(kinds.COUNT, where, f"{index.rows_out} rows", f"{ledger.rows_out}"))
    if clean is not None and (clean.rows_in, clean.dead) != (index.rows_in, index.dead):
        expected = f"{index.rows_in} rows, {index.dead} dead"
        where = f"{artifact.CLEAN}/{MANIFEST}"
        found.append(Defect(kinds.COUNT, where, expected, f"{clean.rows_in} rows, {clean.dead} dead"))
    return found


def _verdict(run: Folder) -> list[Defect]:
    """Whether the report's verdict is the run's."""
    page, made, name = run / artifact.PAGE, run / artifact.VERDICT, artifact.VERDICT_FILE
    where = f"{artifact.PAGE}/{name}"
    if not made.exists(name):
        return []
    if not page.exists(name):
        return [Defect(kinds.LISTED, where, "a file", "none")]
    shown, verdict = page.read_json(name), made.read_json(name)
    manifest = Manifest.read(run / artifact.INDEX)
    sample = facts.of_manifest(facts.Indexed, manifest).sample if manifest else None
    if sample:
        verdict |= {"sample": list(sample)}
    wrong = [key for key in {**verdict, **shown} if shown.get(key) != verdict.get(key)]
    return [
        Defect(kinds.LISTED, f"{where} {key}", str(verdict.get(key)), str(shown.get(key))) for key in wrong
    ]
