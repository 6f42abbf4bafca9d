"""What a run has to tell, read from its folder part by part: memory does not grow with the corpus."""

from __future__ import annotations

import base64
import heapq
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from poisoncam_ray.artifact import Folder, Ledger, Manifest
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.decode import DecodeError, decode
from poisoncam_ray.errors import UserError
from poisoncam_ray.report.model import Facts, Fetcher, Thumb, Trigger

STAGES = (
    "00_index",
    "01_encoder",
    "02_features",
    "03_clusters",
    "04_search",
    "05_classifier",
    "06_verdicts",
    "07_clean",
)
TRIGGERS = 20
DOUBTFUL_TRIGGERS = 6
REMOVED_SAMPLE = 48
BORDERLINE_SAMPLE = 24
DEAD_LINES = 30
BINS = 50
THUMBNAIL = 128
"""Pictures are shown at the encoder's resolution up to this side in pixels, larger ones are shrunk to it."""
MAX_PIXELS = 64_000_000


def gather(
    run_uri: str,
    title: str = "PoisonCAM report",
    about: Mapping[str, str] | None = None,
    corpus: Fetcher | None = None,
) -> Facts:
    """Read everything the page needs from the run folder. See `build_report`."""
    run = Folder(run_uri)
    manifests = {stage: m for stage in STAGES if (m := Manifest.read(run / stage)) is not None}
    if "07_clean" not in manifests:
        raise UserError(f"The run {run_uri} has no finished 07_clean: let the defence run to its end first.")
    settings = _json(run, "run.json") or {}
    config = settings.get("config", {})
    side = (_json(run / "01_encoder", "config.json") or {}).get("image_size", 1)
    verdicts = _verdicts(run)
    dead = _dead(run)
    candidates = _trigger_table(run)
    scores, rounds = _search(run, candidates)
    triggers = _best_triggers(candidates)

    wanted = [row["image_id"] for row in triggers]
    wanted += [image_id for sample in (verdicts.removed, verdicts.borderline) for _, image_id in sample]
    pictures = _pictures(corpus, settings, wanted, side)

    def thumbs(sample: list[tuple[float, str]]) -> list[Thumb]:
        return [Thumb(image_id, p, pictures.get(image_id)) for p, image_id in sorted(sample, reverse=True)]

    reading = config.get("search", {}).get("reading", "gain")
    return Facts(
        title=title,
        about={"Corpus": _public(settings.get("input", "")), "Run folder": _public(run_uri), **(about or {})},
        ledger=_ledger(manifests, sum(row["count"] for row in dead)),
        families=dict(sorted(verdicts.families.items())),
        triggers=[
            Trigger(
                moved=row[reading],
                box=(row["x0"], row["y0"], row["x1"], row["y1"]),
                crop=_data_uri(row["crop"], "png"),
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
        validation=_json(run / "05_classifier", "validation.json") or {},
        removed_sample=thumbs(verdicts.removed),
        borderline_sample=thumbs(verdicts.borderline),
        loss=[(row["step"], row["loss"]) for row in _json(run / "01_encoder", "history.json") or []],
        seconds=[_pace(stage, manifest) for stage, manifest in manifests.items()],
        dead=dead[:DEAD_LINES],
        config=_flat(config),
        stage_facts=_flat({stage: manifest.facts for stage, manifest in manifests.items()}),
        metrics=_json(run / "report", "metrics.json"),
    )


@dataclass
class _Verdicts:
    kept_bins: np.ndarray
    removed_bins: np.ndarray
    families: Counter[int]
    removed: list[tuple[float, str]]
    borderline: list[tuple[float, str]]


def _verdicts(run: Folder) -> _Verdicts:
    """One pass: histograms, families, a fair sample of the removed, the nearest of the kept."""
    bins = np.zeros((2, BINS), np.int64)
    families: Counter[int] = Counter()
    sample: list[tuple[int, float, str]] = []
    borderline: list[tuple[float, str]] = []
    for part in _tables(run / "06_verdicts", ["image_id", "p_poison", "verdict", "family"]):
        gone = pc.equal(part["verdict"], "remove")
        kept, removed = part.filter(pc.invert(gone)), part.filter(gone)
        for row, rows in enumerate((kept, removed)):
            bins[row] += np.histogram(rows["p_poison"].to_numpy(), bins=BINS, range=(0, 1))[0]
        families.update(removed["family"].to_pylist())
        top = pc.select_k_unstable(kept, BORDERLINE_SAMPLE, [("p_poison", "descending")])
        best = kept.take(top)
        pairs = zip(best["p_poison"].to_pylist(), best["image_id"].to_pylist(), strict=True)
        borderline = heapq.nlargest(BORDERLINE_SAMPLE, [*borderline, *pairs])
        # The ids with the smallest checksums: a fair sample that does not depend on parts or their order.
        rows = zip(removed["p_poison"].to_pylist(), removed["image_id"].to_pylist(), strict=True)
        hashed = [(zlib.crc32(image_id.encode()), p, image_id) for p, image_id in rows]
        sample = heapq.nsmallest(REMOVED_SAMPLE, [*sample, *hashed])
    return _Verdicts(bins[0], bins[1], families, [(p, image_id) for _, p, image_id in sample], borderline)


def _search(run: Folder, triggers: pa.Table) -> tuple[list[tuple[float, bool]], list[dict[str, Any]]]:
    """Every candidate's score, best first, with whether it became a trigger; and what each round did."""
    search = run / "04_search"
    top = set(triggers.filter(_used(triggers))["image_id"].to_pylist())
    scores: list[tuple[float, bool]] = []
    rounds = []
    for name in search.names():
        if not name.startswith("round="):
            continue
        tried = (search / name).read_table("candidates.parquet", ["image_id", "score"])
        pairs = zip(tried["score"].to_pylist(), tried["image_id"].to_pylist(), strict=True)
        scores += [(score, image_id in top) for score, image_id in pairs]
        live = len((search / name).read_json("live.json")["live"])
        rounds.append({"live": live, "tried": len(tried), "best": pc.max(tried["score"]).as_py() or 0.0})
    return sorted(scores, reverse=True), rounds


def _trigger_table(run: Folder) -> pa.Table:
    """The best candidates by rank, with the role and family that the classifier gave them."""
    made, name = run / "05_classifier", "triggers.parquet"
    table = (made if made.exists(name) else run / "04_search").read_table(name).sort_by("rank")
    for column, value in (("role", "unused"), ("family", 0)):
        if column not in table.column_names:
            table = table.append_column(column, pa.array([value] * len(table)))
    return table


def _used(triggers: pa.Table) -> pa.ChunkedArray:
    return pc.not_equal(triggers["role"], "unused")


def _best_triggers(table: pa.Table) -> list[dict[str, Any]]:
    used = table.filter(_used(table))
    # A search that trusted none of its windows still shows the best it found.
    return used.slice(0, TRIGGERS).to_pylist() or table.slice(0, DOUBTFUL_TRIGGERS).to_pylist()


def _ledger(manifests: Mapping[str, Manifest], n_dead: int) -> Ledger:
    """Kept and removed as the last stage counted them, dead as they lie in the dead letters: the page says
    whether that adds up to what came in."""
    clean = manifests["07_clean"].ledger or Ledger(0, 0)
    first = manifests["00_index"].ledger if "00_index" in manifests else None
    return Ledger((first or clean).rows_in, clean.rows_out, clean.removed, n_dead)


def _dead(run: Folder) -> list[dict[str, Any]]:
    counts: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], str] = {}
    for folder in (run / "dead" / stage for stage in (run / "dead").names()):
        for part in _tables(folder, ["stage", "error", "message"]):
            for row in part.to_pylist():
                counts[row["stage"], row["error"]] += 1
                example.setdefault((row["stage"], row["error"]), row["message"] or "")
    return [
        {"stage": stage, "error": error, "count": n, "message": example[stage, error][:200]}
        for (stage, error), n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def _tables(folder: Folder, columns: list[str]) -> Iterator[pa.Table]:
    """Part by part."""
    return (folder.read_table(name, columns) for name in folder.parts())


def _json(folder: Folder, name: str) -> Any:
    return folder.read_json(name) if folder.exists(name) else None


def _pictures(
    corpus: Fetcher | None, settings: Mapping[str, Any], image_ids: Iterable[str], side: int
) -> dict[str, str]:
    """Data URIs by image id, as the encoder saw them. A corpus that is gone costs the pictures only."""
    wanted = list(dict.fromkeys(image_ids))
    try:
        if corpus is None:
            index = settings["config"]["index"]
            corpus = open_corpus(
                settings["input"], format=index["format"], image_column=index["image_column"]
            )
        blobs = corpus.fetch(wanted)
    except Exception:  # every store has errors of its own; none is worth a run its report
        return {}
    pictures = {}
    for image_id, blob in zip(wanted, blobs, strict=True):
        try:
            picture = Image.fromarray(np.moveaxis(decode(blob, side, MAX_PIXELS), 0, 2))
        except DecodeError:
            continue
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        # Small pictures are shown enlarged, where the losses of JPEG would look like content.
        lossless = side <= 64
        picture.save(file, "PNG") if lossless else picture.save(file, "JPEG", quality=88)
        pictures[image_id] = _data_uri(file.getvalue(), "png" if lossless else "jpeg")
    return pictures


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


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
    return re.sub(r"(?<=://)[^/@\s]+@|\?\S*$", "…", uri) if "://" in uri else uri
