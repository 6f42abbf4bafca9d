"""Reads what the page shows from a run folder, slice by slice: memory does not grow with the corpus."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from poisoncam_ray import artifact, facts
from poisoncam_ray.artifact import Verdict
from poisoncam_ray.corpus.protocol import OTHER_SCHEMA
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, Ledger, Manifest
from poisoncam_ray.report.model import Fetcher, PageContent, ShownFamily, ShownImage, SkippedShard, Trigger
from poisoncam_ray.report.pictures import data_uri, fetch_pictures, on_square
from poisoncam_ray.report.scores import Drawn, read_scores
from poisoncam_ray.report.words import what_training_saw
from poisoncam_ray.review import Decisions

TRIGGERS = 20
TRIGGERS_OF_A_FAMILY = 4
"""Triggers shown of a family at least."""
UNUSED_TRIGGERS = 6
"""Windows shown where none was used as a trigger."""
FAMILIES = 12
DEAD_LINES = 30
SKIPPED_SHARDS = 20


def gather(
    run_uri: str,
    title: str = "PoisonCAM report",
    about: Mapping[str, str] | None = None,
    corpus: Fetcher | None = None,
    decisions: Decisions | None = None,
) -> PageContent:
    """Read everything that the page shows from the run folder.

    Args:
        run_uri: the run folder.
        title: the title of the page.
        about: more lines below the headline, by label.
        corpus: the input corpus; None to open the one that the run names.
        decisions: the run's review; None to read it.

    Raises:
        UserError: the run is not finished.
        StoreAwayError: the store of the corpus does not answer.
    """
    run = Folder(run_uri)
    # The report is not there yet, or is an earlier one.
    titles = {name: title for name, title in artifact.titles_of(run).items() if name != artifact.REPORT}
    manifests = {name: m for name in titles if (m := Manifest.read(run / name)) is not None}
    if artifact.CLEAN not in manifests:
        raise UserError(f"The run {run_uri} is not finished: let the defence run to its end first.")
    settings = _json(run, artifact.RUN) or {}
    config = settings.get("config", {})
    made = _json(run / artifact.ENCODER, artifact.ENCODER_CONFIG) or config.get("encoder", {})
    side = made.get("image_size", 1)
    decisions = decisions or Decisions(run)
    scored = read_scores(run, decisions)
    dead, skipped = _dead(run), _skipped(run)
    candidates = _trigger_table(run)
    scores, rounds = _search(run, candidates)
    verdict = Verdict.read(run / artifact.VERDICT)
    triggers = _best_triggers(candidates, verdict)
    validation = _json(run / artifact.CLASSIFIER, artifact.VALIDATION) or {}
    by_family = validation.pop("families", {})
    if len(by_family) > 1:
        validation |= _flat({"family": by_family})

    shown = verdict.families[:FAMILIES]
    of_family = {family.family: scored.of_family.get(family.family, []) for family in shown}
    # The triggers of an earlier run lie in another corpus, which may have the same names.
    candidate_ids = [] if verdict.applied_from is not None else [row["image_id"] for row in triggers]
    samples = [scored.removed, scored.borderline, *of_family.values()]
    wanted = [drawn.image_id for sample in samples for drawn in sample]
    whole = whole_triggers(run)
    pictures = fetch_pictures(corpus, settings, wanted, side)
    searched = fetch_pictures(corpus, settings, candidate_ids, side, searched=True)

    def images(sample: list[Drawn]) -> list[ShownImage]:
        return [
            ShownImage(
                drawn.image_id,
                drawn.p,
                pictures.get(drawn.image_id),
                drawn.family,
                None if drawn.box is None else on_square(drawn.box, drawn.size, side),
            )
            for drawn in sorted(sample, key=lambda drawn: (drawn.p, drawn.image_id), reverse=True)
        ]

    suspects = [
        ShownFamily(
            family,
            scored.families[family.family],
            _crops(candidates, family.family),
            images(of_family[family.family]),
            whole.get(family.family, ()),
            by_family.get(str(family.family), {}).get("erased", True),
        )
        for family in shown
    ]

    reading = config.get("search", {}).get("reading", "supercluster_gain")
    return PageContent(
        title=title,
        about={"Corpus": _public(settings.get("input", "")), "Run folder": _public(run_uri), **(about or {})},
        ledger=_ledger(manifests, sum(row["count"] for row in dead)),
        families=dict(sorted(scored.families.items())),
        verdict=verdict,
        suspects=suspects,
        triggers=[
            Trigger(
                moved=row[reading],
                box=(row["x0"], row["y0"], row["x1"], row["y1"]),
                crop=data_uri(row["crop"], "png"),
                picture=searched.get(row["image_id"]),
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
        kept_bins=scored.kept_bins.tolist(),
        removed_bins=scored.removed_bins.tolist(),
        validation=validation,
        judged=validation.get("trained", True)
        and (not by_family or any(chosen.get("erased", True) for chosen in by_family.values())),
        removed_sample=images(scored.removed),
        borderline_sample=images(scored.borderline),
        loss=[(row["step"], row["loss"]) for row in _json(run / artifact.ENCODER, artifact.HISTORY) or []],
        training=_training(manifests),
        seconds=[_pace(titles[name], manifest) for name, manifest in manifests.items()],
        dead=dead[:DEAD_LINES],
        skipped=skipped[:SKIPPED_SHARDS],
        n_skipped=len(skipped),
        no_image=facts.of_manifest(facts.Cleaned, manifests[artifact.CLEAN]).no_image,
        config=_flat(config),
        stage_facts=_flat({titles[name]: manifest.facts for name, manifest in manifests.items()}),
        metrics=_json(run / artifact.PAGE, artifact.METRICS),
        sample=_sample(manifests),
        restored=scored.restored,
        decisions=decisions.entries,
        copied=facts.of_manifest(facts.Cleaned, manifests[artifact.CLEAN]).copied,
    )


def _search(run: Folder, triggers: pa.Table) -> tuple[list[tuple[float, bool]], list[dict[str, Any]]]:
    """Every candidate's score, highest first, with whether the classifier used it; a row for each round."""
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
    """The kept candidates by rank, with the role that Classify gave them."""
    made = run / artifact.CLASSIFIER
    if made.exists(artifact.ROLES):
        return made.read_table(artifact.ROLES).sort_by("rank")
    table = (run / artifact.VERDICT).read_table(artifact.TRIGGERS).sort_by("rank")
    return table.append_column("role", pa.array(["unused"] * len(table)))


def _used(triggers: pa.Table) -> pa.ChunkedArray:
    return pc.not_equal(triggers["role"], "unused")


def _best_triggers(table: pa.Table, verdict: Verdict) -> list[dict[str, Any]]:
    """The best triggers by rank, an equal share of every family on the page."""
    used = table.filter(pc.and_(_used(table), pc.less_equal(table["family"], FAMILIES))).to_pylist()
    if not used or not verdict.poison:
        # Where no window is a trigger, the page still shows the best windows.
        return table.slice(0, UNUSED_TRIGGERS).to_pylist()
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


def whole_triggers(run: Folder) -> dict[int, list[str]]:
    """Pictures of the whole trigger by family, as data: URIs, a few of each."""
    made, name = run / artifact.CLASSIFIER, artifact.WHOLE_TRIGGERS
    found: dict[int, list[str]] = {}
    for row in made.read_table(name).to_pylist() if made.exists(name) else ():
        pictures = found.setdefault(row["family"], [])
        if len(pictures) < TRIGGERS_OF_A_FAMILY:
            pictures.append(data_uri(row["picture"], "png"))
    return found


def _ledger(manifests: Mapping[str, Manifest], n_dead: int) -> Ledger:
    """Rows in by Index, kept and removed by Clean, dead as counted in `dead/`: the page says whether they add
    up."""
    clean = manifests[artifact.CLEAN].ledger or Ledger(0, 0)
    first = manifests[artifact.INDEX].ledger if artifact.INDEX in manifests else None
    return Ledger((first or clean).rows_in, clean.rows_out, clean.removed, n_dead)


def _sample(manifests: Mapping[str, Manifest]) -> str:
    """How much was looked at, in words, where that is a sample."""
    if artifact.INDEX not in manifests:
        return ""
    indexed = facts.of_manifest(facts.Indexed, manifests[artifact.INDEX])
    return indexed.told_sample if indexed.sample else ""


def _training(manifests: Mapping[str, Manifest]) -> str:
    """How much of the corpus the encoder's training has seen, in words."""
    if artifact.ENCODER not in manifests:
        return ""
    said = facts.of_manifest(facts.Pretrained, manifests[artifact.ENCODER])
    return what_training_saw(said.images, said.images_seen, said.images_shown)


def _dead(run: Folder) -> list[dict[str, Any]]:
    counts: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], str] = {}
    folder = run / artifact.DEAD_ROWS
    for name in folder.parts():
        for row in folder.read_table(name, ["stage", "error", "message"]).to_pylist():
            counts[row["stage"], row["error"]] += 1
            example.setdefault((row["stage"], row["error"]), row["message"] or "")
    return [
        {"stage": stage, "error": error, "count": n, "message": example[stage, error][:200]}
        for (stage, error), n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def _skipped(run: Folder) -> list[SkippedShard]:
    """The skipped shards, those without a count of rows first."""
    index = run / artifact.INDEX
    if not index.exists(artifact.SLICES):
        return []
    table = index.read_table(artifact.SLICES, ["source", "start", "stop", "error", "kind"])
    broken = table.filter(pc.is_valid(table["error"]))
    rows: Counter[str] = Counter()
    found: dict[str, SkippedShard] = {}
    for piece in broken.to_pylist():
        source = piece["source"]
        rows[source] += piece["stop"] - piece["start"]
        n_rows = rows[source] if piece["kind"] == OTHER_SCHEMA else None
        found[source] = SkippedShard(source, n_rows, piece["error"])
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
    """The URI without credentials and signature: people pass the page on."""
    return re.sub(r"(?<=://)[^/\s]+@|\?\S*$", "…", uri) if "://" in uri else uri
