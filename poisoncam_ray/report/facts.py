"""What a run has to tell, read from its folder part by part: memory does not grow with the corpus."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from poisoncam_ray import artifact
from poisoncam_ray.artifact import Verdict
from poisoncam_ray.corpus.protocol import OTHER_SCHEMA
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, Ledger, Manifest
from poisoncam_ray.report.model import Facts, Fetcher, SkippedShard, Suspect, Thumb, Trigger
from poisoncam_ray.report.pictures import data_uri, fetch_pictures
from poisoncam_ray.report.verdicts import Drawn, read_verdicts, tables

STAGES = (
    artifact.INDEX,
    artifact.ENCODER,
    artifact.FEATURES,
    artifact.CLUSTERS,
    artifact.SEARCH,
    artifact.VERDICT,
    artifact.CLASSIFIER,
    artifact.SCORES,
    artifact.CLEAN,
)
TRIGGERS = 20
TRIGGERS_OF_A_FAMILY = 4
"""Shown at least, however many families there are."""
DOUBTFUL_TRIGGERS = 6
FAMILIES = 12
DEAD_LINES = 30
SKIPPED_SHARDS = 20


def gather(
    run_uri: str,
    title: str = "PoisonCAM report",
    about: Mapping[str, str] | None = None,
    corpus: Fetcher | None = None,
) -> Facts:
    """Read everything the page needs from the run folder. See `build_report`."""
    run = Folder(run_uri)
    manifests = {stage: m for stage in STAGES if (m := Manifest.read(run / stage)) is not None}
    if artifact.CLEAN not in manifests:
        raise UserError(f"The run {run_uri} is not finished: let the defence run to its end first.")
    settings = _json(run, artifact.RUN) or {}
    config = settings.get("config", {})
    side = (_json(run / artifact.ENCODER, artifact.ENCODER_CONFIG) or {}).get("image_size", 1)
    verdicts = read_verdicts(run)
    dead, skipped = _dead(run), _skipped(run)
    candidates = _trigger_table(run)
    scores, rounds = _search(run, candidates)
    evidence = Verdict.read(run / artifact.VERDICT)
    triggers = _best_triggers(candidates, evidence)
    validation = _json(run / artifact.CLASSIFIER, artifact.VALIDATION) or {}
    by_family = validation.pop("families", {})
    if len(by_family) > 1:
        validation |= _flat({"family": by_family})

    shown = evidence.families[:FAMILIES] if evidence else ()
    of_family = {family.family: verdicts.of_family.get(family.family, []) for family in shown}
    wanted = [row["image_id"] for row in triggers]
    samples = [verdicts.removed, verdicts.borderline, *of_family.values()]
    wanted += [drawn.image_id for sample in samples for drawn in sample]
    whole = _whole_triggers(run)
    pictures = fetch_pictures(corpus, settings, wanted, side)

    def thumbs(sample: list[Drawn]) -> list[Thumb]:
        return [
            Thumb(drawn.image_id, drawn.p, pictures.get(drawn.image_id), drawn.family, _seen(drawn, side))
            for drawn in sorted(sample, key=lambda drawn: (drawn.p, drawn.image_id), reverse=True)
        ]

    suspects = [
        Suspect(
            family,
            verdicts.families[family.family],
            _crops(candidates, family.family),
            thumbs(of_family[family.family]),
            whole.get(family.family, ()),
            by_family.get(str(family.family), {}).get("erased", True),
        )
        for family in shown
    ]

    reading = config.get("search", {}).get("reading", "supercluster_gain")
    return Facts(
        title=title,
        about={"Corpus": _public(settings.get("input", "")), "Run folder": _public(run_uri), **(about or {})},
        ledger=_ledger(manifests, sum(row["count"] for row in dead)),
        families=dict(sorted(verdicts.families.items())),
        evidence=evidence,
        suspects=suspects,
        triggers=[
            Trigger(
                moved=row[reading],
                box=(row["x0"], row["y0"], row["x1"], row["y1"]),
                crop=data_uri(row["crop"], "png"),
                picture=pictures.get(row["image_id"]),
                **{
                    key: row[key]
                    for key in ("rank", "family", "role", "score", "n_flip", "cluster", "image_id")
                },
            )
            for row in triggers
        ],
        side=side,
        reading=reading,
        scores=scores,
        rounds=rounds,
        kept_bins=verdicts.kept_bins.tolist(),
        removed_bins=verdicts.removed_bins.tolist(),
        validation=validation,
        judged=validation.get("trained", True)
        and (not by_family or any(chosen.get("erased", True) for chosen in by_family.values())),
        removed_sample=thumbs(verdicts.removed),
        borderline_sample=thumbs(verdicts.borderline),
        loss=[(row["step"], row["loss"]) for row in _json(run / artifact.ENCODER, artifact.HISTORY) or []],
        seconds=[_pace(stage, manifest) for stage, manifest in manifests.items()],
        dead=dead[:DEAD_LINES],
        skipped=skipped[:SKIPPED_SHARDS],
        n_skipped=len(skipped),
        config=_flat(config),
        stage_facts=_flat({stage: manifest.facts for stage, manifest in manifests.items()}),
        metrics=_json(run / artifact.PAGE, artifact.METRICS),
    )


def _search(run: Folder, triggers: pa.Table) -> tuple[list[tuple[float, bool]], list[dict[str, Any]]]:
    """Every candidate's score, best first, with whether it became a trigger; and what each round did."""
    search = run / artifact.SEARCH
    top = set(triggers.filter(_used(triggers))["image_id"].to_pylist())
    scores: list[tuple[float, bool]] = []
    rounds = []
    for name in search.names():
        if not name.startswith("round="):
            continue
        tried = (search / name).read_table(artifact.CANDIDATES, ["image_id", "score"])
        pairs = zip(tried["score"].to_pylist(), tried["image_id"].to_pylist(), strict=True)
        scores += [(score, image_id in top) for score, image_id in pairs]
        live = len((search / name).read_json(artifact.ROUND_STATE)["live"])
        rounds.append({"live": live, "tried": len(tried), "best": pc.max(tried["score"]).as_py() or 0.0})
    return sorted(scores, reverse=True), rounds


def _trigger_table(run: Folder) -> pa.Table:
    """The best candidates by rank, with the role and family that the classifier gave them."""
    made = run / artifact.CLASSIFIER
    if made.exists(artifact.ROLES):
        return made.read_table(artifact.ROLES).sort_by("rank")
    table = (run / artifact.VERDICT).read_table(artifact.TRIGGERS).sort_by("rank")
    return table.append_column("role", pa.array(["unused"] * len(table)))


def _used(triggers: pa.Table) -> pa.ChunkedArray:
    return pc.not_equal(triggers["role"], "unused")


def _best_triggers(table: pa.Table, evidence: Verdict | None) -> list[dict[str, Any]]:
    """By rank, of every family on the page its share."""
    used = table.filter(pc.and_(_used(table), pc.less_equal(table["family"], FAMILIES))).to_pylist()
    if not used or (evidence and not evidence.poison):
        # A search that trusted none of its windows still shows the best it found.
        return table.slice(0, DOUBTFUL_TRIGGERS).to_pylist()
    share = max(TRIGGERS_OF_A_FAMILY, TRIGGERS // len({row["family"] for row in used}))
    taken: Counter[int] = Counter()
    shown = []
    for row in used:
        taken[row["family"]] += 1
        if taken[row["family"]] <= share:
            shown.append(row)
    return shown


def _crops(triggers: pa.Table, family: int) -> list[str]:
    """The family's best windows."""
    mine = triggers.filter(pc.equal(triggers["family"], family)).slice(0, TRIGGERS_OF_A_FAMILY)
    return [data_uri(crop, "png") for crop in mine["crop"].to_pylist()]


def _whole_triggers(run: Folder) -> dict[int, list[str]]:
    """By family, as Classify found them; runs of before it did have none."""
    made, name = run / artifact.CLASSIFIER, artifact.WHOLE_TRIGGERS
    found: dict[int, list[str]] = {}
    for row in made.read_table(name).to_pylist() if made.exists(name) else ():
        pictures = found.setdefault(row["family"], [])
        if len(pictures) < TRIGGERS_OF_A_FAMILY:
            pictures.append(data_uri(row["picture"], "png"))
    return found


def _seen(drawn: Drawn, side: int) -> tuple[int, ...] | None:
    """The box on the picture, which shows the centre square; plain numbers, as in method/boxes.map_box."""
    if drawn.box is None:
        return None
    shorter = max(1, min(drawn.size))
    corner = [(length - shorter) / 2 for length in drawn.size] * 2
    scaled = (round((at - start) * side / shorter) for at, start in zip(drawn.box, corner, strict=True))
    return tuple(min(max(at, 0), side) for at in scaled)


def _ledger(manifests: Mapping[str, Manifest], n_dead: int) -> Ledger:
    """Kept and removed as the last stage counted them, dead as they lie in the dead letters: the page says
    whether that adds up to what came in."""
    clean = manifests[artifact.CLEAN].ledger or Ledger(0, 0)
    first = manifests[artifact.INDEX].ledger if artifact.INDEX in manifests else None
    return Ledger((first or clean).rows_in, clean.rows_out, clean.removed, n_dead)


def _dead(run: Folder) -> list[dict[str, Any]]:
    counts: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], str] = {}
    for part in tables(run / artifact.DEAD_ROWS, ["stage", "error", "message"]):
        for row in part.to_pylist():
            counts[row["stage"], row["error"]] += 1
            example.setdefault((row["stage"], row["error"]), row["message"] or "")
    return [
        {"stage": stage, "error": error, "count": n, "message": example[stage, error][:200]}
        for (stage, error), n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def _skipped(run: Folder) -> list[SkippedShard]:
    """The shards of which no row could be read; those without a count of rows come first."""
    index = run / artifact.INDEX
    if not index.exists(artifact.SLICES):
        return []
    table = index.read_table(artifact.SLICES, ["source", "start", "stop", "error", "kind"])
    broken = table.filter(pc.is_valid(table["error"]))
    rows: Counter[str] = Counter()
    found: dict[str, SkippedShard] = {}
    for part in broken.to_pylist():
        source = part["source"]
        rows[source] += part["stop"] - part["start"]
        n_rows = rows[source] if part["kind"] == OTHER_SCHEMA else None
        found[source] = SkippedShard(source, n_rows, part["error"])
    return sorted(found.values(), key=lambda shard: (shard.rows is not None, shard.source))


def _json(folder: Folder, name: str) -> Any:
    return folder.read_json(name) if folder.exists(name) else None


def _pace(stage: str, manifest: Manifest) -> dict[str, Any]:
    seconds, rows = manifest.seconds, manifest.ledger.rows_in if manifest.ledger else 0
    return {
        "stage": stage,
        "summary": manifest.facts.get("summary", ""),
        "seconds": seconds,
        "rows": rows,
        "pace": rows / seconds if rows and seconds else None,
    }


def _flat(tree: Any, path: str = "") -> dict[str, str]:
    if isinstance(tree, Mapping):
        return {
            k: v
            for key, value in tree.items()
            for k, v in _flat(value, f"{path}.{key}" if path else key).items()
        }
    return {path: _public(tree) if isinstance(tree, str) else json.dumps(tree)}


def _public(uri: str) -> str:
    """A page that people pass on must not carry the credentials or the signature of a URL."""
    return re.sub(r"(?<=://)[^/\s]+@|\?\S*$", "…", uri) if "://" in uri else uri
