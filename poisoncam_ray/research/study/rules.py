"""What each rule of the verdict does: finished runs are decided again with it halved and doubled.

Nothing is tuned here. The tables show how far a verdict depends on a constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace

from poisoncam_ray import artifact, facts
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, Manifest
from poisoncam_ray.method.verdict import Candidates, VerdictRules, decide
from poisoncam_ray.stages.verdict import RULES, read_candidates

MAX_CORRELATION = 0.99
SHARES = ("max_suspect_share",)
COMMAND = "python jobs/rules.py --output OUT --run RUN"
MARKDOWN, JSON = "rules.md", "rules.json"


@dataclass(frozen=True)
class Row:
    """One run, decided with one rule changed.

    Attributes:
        run: the run folder.
        rule: the rule's name; empty for the row of the rules as they are.
        value: its value; None for the row of the rules as they are.
        verdict: artifact.POISON or artifact.NO_EVIDENCE.
        families: the number of trigger families.
        best_to_threshold: the best group score over the threshold; None without a null or a scored group.
        suspects: the number of suspected windows.
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


def decide_again(run: Folder) -> list[Row]:
    """Decide a finished run with the rules as they are, then with each one changed.

    The candidates are read once, and once more for each other side of the thumbnails.

    Raises:
        UserError: the folder holds no finished search.
    """
    search, manifest = run / artifact.SEARCH, Manifest.read(run / artifact.SEARCH)
    if manifest is None:
        raise UserError(f"{run.uri} holds no finished search: let the defence get past it first.")
    rounds = facts.of_manifest(facts.Searched, manifest).rounds
    rate = run.read_json(artifact.RUN)["config"]["verdict"]["false_alarm_rate"]
    _, tried = read_candidates(search, rounds, RULES.thumbnail_side)
    rows = [_row(run.uri, "", None, tried, rate, RULES, None)]
    for name, rules in changed_rules():
        shown = tried
        if rules.thumbnail_side != RULES.thumbnail_side:
            _, shown = read_candidates(search, rounds, rules.thumbnail_side)
        rows.append(_row(run.uri, name, getattr(rules, name), shown, rate, rules, rows[0].verdict))
    return rows


def _row(
    run: str,
    rule: str,
    value: float | None,
    tried: Candidates,
    rate: float,
    rules: VerdictRules,
    before: str | None,
) -> Row:
    found = decide(tried, rate, rules)
    families, best = int(found.family_N.max()), max(found.suspects.score_U.values(), default=None)
    verdict = artifact.POISON if families else artifact.NO_EVIDENCE
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
        kept=len(found.kept_M),
        changes=before is not None and verdict != before,
    )


def write_rules(rows: Sequence[Row], out: Folder) -> None:
    """Write the rows as Markdown and JSON; of the runs' addresses only what tells them apart."""
    split = {run: run.rstrip("/").split("/") for run in {row.run for row in rows}}
    same = [
        len(set(level)) == 1 for level in zip(*(folders[:-1] for folders in split.values()), strict=False)
    ]
    shared = same.index(False) if False in same else len(same)
    rows = [replace(row, run="/".join(split[row.run][shared:])) for row in rows]
    out.write_json(JSON, [asdict(row) for row in rows])
    out.write_bytes(MARKDOWN, markdown(rows).encode())


def markdown(rows: Sequence[Row]) -> str:
    """One table for each run; its first row are the rules as they are."""
    lines = [
        "# The verdict's rules, each halved and doubled",
        "",
        f"By `{COMMAND}`, with a `--run` for each table.",
    ]
    for run in dict.fromkeys(row.run for row in rows):
        lines += ["", f"## {run}", ""]
        lines += ["| rule | value | families | best group / threshold | suspected windows | kept | verdict |"]
        lines += ["|---|---:|---:|---:|---:|---:|---|"]
        lines += [_line(row) for row in rows if row.run == run]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    value = "" if row.value is None else f"{row.value:g}"
    best = "–" if row.best_to_threshold is None else f"{row.best_to_threshold:.3g}"
    verdict = f"**{row.verdict}**, changed" if row.changes else row.verdict
    return (
        f"| {row.rule or '(as they are)'} | {value} | {row.families} | {best} | {row.suspects} | {row.kept} "
        f"| {verdict} |"
    )
