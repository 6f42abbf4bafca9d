"""What each rule of the verdict does: finished runs, or their stored candidates, are decided again with it
halved and doubled, or with given values.

Nothing is tuned here. The tables show how far a verdict depends on a constant.

N candidates, best first   C the same in the order of the search
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from PIL import UnidentifiedImageError

from poisoncam_ray import artifact, facts
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, Manifest, absolute
from poisoncam_ray.method.verdict import Decision, VerdictRules, decide
from poisoncam_ray.research.evaluate.joined import mean
from poisoncam_ray.research.evaluate.stored import SUFFIX, Stored, read_stored
from poisoncam_ray.research.study import strata
from poisoncam_ray.research.study.strata import Stratum
from poisoncam_ray.stages.verdict import RULES, read_candidates

MAX_CORRELATION = 0.99
SHARES = ("max_suspect_share",)
COMMAND = "python jobs/rules.py --output OUT --run RUN"
MARKDOWN, JSON, STRATA = "rules.md", "rules.json", "strata.json"
Changes = Sequence[tuple[str, VerdictRules]]


@dataclass(frozen=True)
class Row:
    """One run, decided with one rule changed.

    Attributes:
        run: the run folder, or the file of its candidates.
        rule: the rule's name; empty for the row of the rules as they are.
        value: its value; None for the row of the rules as they are.
        verdict: artifact.POISON or artifact.NO_EVIDENCE.
        families: the number of trigger families.
        best_to_threshold: the best group score over the threshold; None without a null or a scored group.
        suspects: the number of suspected windows.
        members: the number of windows in trigger families.
        precision: the share of these whose image is poisoned, decoys not counted; None without a truth or a
            member.
        kept: the number of windows kept as triggers.
        changes: whether the verdict is another one than with the rules as they are.
    """

    run: str
    rule: str
    value: float | None
    verdict: str
    families: int
    best_to_threshold: float | None
    suspects: int
    members: int
    precision: float | None
    kept: int
    changes: bool


def changed_rules(rules: VerdictRules = RULES) -> Iterator[tuple[str, VerdictRules]]:
    """Each rule's name with the rules where it is halved, then doubled.

    Whole numbers are rounded and stay at least 1. Shares are at most 1, correlations and cosines at most
    MAX_CORRELATION. A shift stays below the thumbnails' side.
    """
    for field in fields(rules):
        value = getattr(rules, field.name)
        for factor in (0.5, 2.0):
            new = value * factor
            if isinstance(value, int):
                new = max(1, round(new))
            elif field.name in SHARES:
                new = min(1.0, new)
            elif field.name.endswith(("_ncc", "_cosine")):
                new = min(MAX_CORRELATION, new)
            if field.name == "max_shift":
                new = min(new, rules.thumbnail_side - 1)
            yield field.name, replace(rules, **{field.name: new})


def given_rules(values: Iterable[str], rules: VerdictRules = RULES) -> Changes:
    """The rules with one of them set, for each NAME=VALUE.

    Raises:
        UserError: there is no such rule, or it takes no such value.
    """
    changes = []
    for text in values:
        name, _, value = text.partition("=")
        names = [field.name for field in fields(rules)]
        if name not in names:
            raise UserError(f"There is no rule {name!r}: use one of {', '.join(names)}.")
        whole = isinstance(getattr(rules, name), int)
        try:
            number = int(value) if whole else float(value)
        except ValueError:
            number = -1
        if not whole <= number < float("inf"):
            kind = "whole number of at least 1" if whole else "number of at least 0"
            raise UserError(f"--rule {text} cannot be tried: give {name} a {kind}.")
        new: dict[str, Any] = {name: number}
        changed = replace(rules, **new)
        if changed.max_shift >= changed.thumbnail_side:
            raise UserError(f"--rule {text} cannot be tried: a shift is smaller than a thumbnail's side.")
        changes.append((name, changed))
    return changes


def decide_again(run: Folder, changes: Changes | None = None) -> list[Row]:
    """Decide a finished run with the rules as they are, then with each one changed.

    The candidates are read once, and once more for each other side of the thumbnails.

    Args:
        run: the run folder.
        changes: names and rules to try; None: `changed_rules`.

    Raises:
        UserError: the folder holds no finished search.
    """
    search = run / artifact.SEARCH
    if Manifest.read(search) is None:
        raise UserError(f"{run.uri} holds no finished search: let the defence get past it first.")
    rate = run.read_json(artifact.RUN)["config"]["verdict"]["false_alarm_rate"]
    return _decided(run.uri, search, rate, None, changes)[0]


def decide_stored(file: str, changes: Changes | None = None) -> tuple[list[Row], list[Stratum]]:
    """Decide stored candidates, as `decide_again` does their run. With a truth the rows have a precision.

    Args:
        file: what Stored.write wrote.
        changes: as there.

    Returns:
        the rows, and the strata with the rules as they are; no stratum without a truth.

    Raises:
        UserError: the file cannot be read (`read_stored`).
    """
    parent, _, name = file.rpartition("/")
    stored = read_stored(Folder(parent or "/"), name)
    with tempfile.TemporaryDirectory() as here:
        search = Folder(here)
        stored.unpack(search)
        try:
            return _decided(file, search, stored.false_alarm_rate, stored, changes)
        except UnidentifiedImageError as error:
            raise UserError(f"{file} is damaged: store the candidates of that run again.") from error


def stored_files(uris: Iterable[str]) -> list[str]:
    """The files of stored candidates, each once.

    Args:
        uris: files, or folders of files.

    Raises:
        UserError: a folder has no such file.
    """
    found = []
    for uri in map(absolute, uris):
        if uri.endswith(SUFFIX):
            found.append(uri)
            continue
        names = [name for name in Folder(uri).names() if name.endswith(SUFFIX)]
        if not names:
            raise UserError(
                f"{uri} holds no Parquet file: give what --candidates or jobs/photographs.py wrote."
            )
        found += [f"{uri}/{name}" for name in names]
    return list(dict.fromkeys(found))


def _decided(
    run: str, search: Folder, rate: float, stored: Stored | None, changes: Changes | None
) -> tuple[list[Row], list[Stratum]]:
    manifest = Manifest.read(search)
    assert manifest
    rounds = facts.of_manifest(facts.Searched, manifest).rounds
    row_N, as_it_is = read_candidates(search, rounds, RULES.thumbnail_side)
    truth = stored if stored and stored.truth_is_known else None
    first = decide(as_it_is, rate, RULES)
    rows = [_row(run, "", None, first, truth, row_N, None)]
    for name, rules in changed_rules() if changes is None else changes:
        shown = as_it_is
        if rules.thumbnail_side != RULES.thumbnail_side:
            _, shown = read_candidates(search, rounds, rules.thumbnail_side)
        found = decide(shown, rate, rules)
        rows.append(_row(run, name, getattr(rules, name), found, truth, row_N, rows[0].verdict))
    if truth is None:
        return rows, []
    place_C = np.argsort(row_N)
    chosen = (first.suspects.suspect_N, first.family_N > 0)
    return rows, strata.strata(run, truth, *(of_N.numpy()[place_C] for of_N in chosen))


def _row(
    run: str,
    rule: str,
    value: float | None,
    found: Decision,
    truth: Stored | None,
    row_N: np.ndarray,
    before: str | None,
) -> Row:
    families, best = int(found.family_N.max()), max(found.suspects.score_U.values(), default=None)
    verdict = artifact.POISON if families else artifact.NO_EVIDENCE
    member_N = (found.family_N > 0).numpy()
    precision = None
    if truth:
        poisoned_N, decoy_N = (truth.table[name].to_numpy()[row_N] for name in ("poisoned", "decoy"))
        precision = mean(poisoned_N[member_N & ~decoy_N])
    return Row(
        run,
        rule,
        value,
        verdict,
        families,
        best_to_threshold=best / found.suspects.threshold
        if found.suspects.null and best is not None
        else None,
        suspects=int(found.suspects.suspect_N.sum()),
        members=int(member_N.sum()),
        precision=precision,
        kept=len(found.kept_M),
        changes=before is not None and verdict != before,
    )


def write_rules(rows: Sequence[Row], out: Folder, found: Sequence[Stratum] = ()) -> None:
    """Write the rows and strata as Markdown and JSON; of the runs' addresses only what tells them apart."""
    split = {run: run.rstrip("/").split("/") for run in {row.run for row in rows}}
    same = [
        len(set(level)) == 1 for level in zip(*(folders[:-1] for folders in split.values()), strict=False)
    ]
    shared = same.index(False) if False in same else len(same)
    full = {run: "/".join(folders[shared:]) for run, folders in split.items()}
    bare = {run: name.removesuffix(SUFFIX) for run, name in full.items()}
    # A run and its stored file may differ by the suffix alone.
    short = bare if len(set(bare.values())) == len(bare) else full
    rows = [replace(row, run=short[row.run]) for row in rows]
    found = [replace(stratum, run=short[stratum.run]) for stratum in found]
    out.write_json(JSON, [asdict(row) for row in rows])
    out.write_json(STRATA, [asdict(stratum) for stratum in found])
    out.write_bytes(MARKDOWN, markdown(rows, found).encode())


def markdown(rows: Sequence[Row], found: Sequence[Stratum] = ()) -> str:
    """One table for each run, whose first row are the rules as they are; then the strata."""
    lines = [
        "# The verdict's rules, one changed at a time",
        "",
        f"By `{COMMAND}`, with a `--run` or `--candidates` for each table.",
    ]
    names = ["rule", "value", "families", "best group / threshold", "suspected windows", "in families"]
    names += ["precision of these", "kept", "verdict"]
    for run in dict.fromkeys(row.run for row in rows):
        lines += ["", f"## {run}", "", f"| {' | '.join(names)} |", "|---|" + "---:|" * 7 + "---|"]
        lines += [_line(row) for row in rows if row.run == run]
    return "\n".join([*lines, *strata.markdown(found)]) + "\n"


def _line(row: Row) -> str:
    value = "" if row.value is None else f"{row.value:g}"
    best = "–" if row.best_to_threshold is None else f"{row.best_to_threshold:.3g}"
    precision = "–" if row.precision is None else f"{row.precision:.3f}"
    verdict = f"**{row.verdict}**, changed" if row.changes else row.verdict
    return (
        f"| {row.rule or '(as they are)'} | {value} | {row.families} | {best} | {row.suspects} "
        f"| {row.members} | {precision} | {row.kept} | {verdict} |"
    )
