"""The reference attack (DESIGN §3; Saha et al., arXiv 2105.10123): a trigger on a share of one category.

What it writes under the output: `corpus/` (the input, some images replaced), `truth.parquet` (one row an
image), `triggers/` and, last, `attack.json` (settings and counts). Boxes are integer [x0, y0, x1, y1) in
stored pixels.

Every choice depends on the seed and the image's id alone, never on the order or grouping of the work.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from poisoncam_ray.corpus import Corpus, Slice, open_corpus, storage
from poisoncam_ray.decode import DecodeError
from poisoncam_ray.errors import UserError
from poisoncam_ray.trigger import GENERATED, Box, Region, load_trigger, paste_trigger

Mapper = Callable[[Callable[[list[Slice]], pa.Table], list[list[Slice]]], Iterable[pa.Table]]

TRAIN_REGION: Region = (0.25, 0.75)
VALIDATION_REGION: Region = (0.1, 0.9)
WIDTH = 50 / 224
SHARE = 0.5
LABELS_LISTED = 100
NO_BOX: Box = (-1, -1, -1, -1)

TRUTH = pa.schema(
    {
        "image_id": pa.string(),
        "source": pa.string(),
        "row": pa.int64(),
        "poisoned": pa.bool_(),
        "trigger": pa.string(),
        "x0": pa.int32(),
        "y0": pa.int32(),
        "x1": pa.int32(),
        "y1": pa.int32(),
        "target": pa.string(),
    }
)


@dataclass(frozen=True)
class Trigger:
    """What is pasted: its name in the truth, its pixels, the label it stands for."""

    name: str
    image: Image.Image
    target: str


@dataclass(frozen=True)
class Attack:
    """How it is pasted. `width`: fraction of the image's shorter side; `region`: the part of each side that
    holds the trigger; `below`: for each trigger, images of its target whose `chance` is below are poisoned,
    or None to patch every image with the only trigger."""

    triggers: tuple[Trigger, ...]
    width: float
    region: Region
    seed: int
    label_column: str
    below: tuple[float, ...] | None


def poison_corpus(
    input_uri: str,
    output_uri: str,
    targets: Sequence[str],
    triggers: Sequence[str] = (),
    width: float = WIDTH,
    share: float = SHARE,
    seed: int = 0,
    label_column: str = "label",
    region: Region = TRAIN_REGION,
    *,
    corpus_format: str = "auto",
    image_column: str | None = None,
    map_units: Mapper = map,
) -> dict[str, Any]:
    """Poison `share` (0, 1] of the images of each target label, with one trigger for each target.

    `triggers` are image files (any fsspec URL) or "generated:<seed>"; none: one is generated for each target.
    `width` is a fraction (0, 1] of the image's shorter side; a trigger keeps its own aspect ratio. Labels are
    compared as strings; in an image folder they are the parent folders' names. Images of the target that do
    not decode stay as they are. `map_units` may run units elsewhere (it is called as `map`, order kept).

    Returns what attack.json holds: settings, n_images, n_poisoned, n_unreadable, poison_rate. Raises
    UserError for values out of range, a label or trigger that does not exist, an output that is not empty.
    """
    if not targets:
        raise UserError("No target label was given: name at least one.")
    if len(set(targets)) < len(targets):
        raise UserError(f"The target labels {', '.join(targets)} name one twice: give each label once.")
    if not 0 < share <= 1:
        raise UserError(f"The share is {share}: use a number above 0 and at most 1.")
    names = list(triggers) or [f"{GENERATED}{seed + i}" for i in range(len(targets))]
    if len(names) != len(targets):
        raise UserError(f"There are {len(names)} triggers for {len(targets)} targets: give one each.")
    corpus = _open(input_uri, output_uri, width, seed, region, corpus_format, image_column)
    loaded = _load_triggers(names, targets)
    below = _thresholds(corpus, targets, share, seed, label_column)
    attack = Attack(loaded, width, region, seed, label_column, below)
    return _write(corpus, input_uri, output_uri, attack, {"kind": "poison", "share": share}, map_units)


def patch_corpus(
    input_uri: str,
    output_uri: str,
    target: str,
    trigger: str = "",
    width: float = WIDTH,
    seed: int = 0,
    region: Region = VALIDATION_REGION,
    *,
    corpus_format: str = "auto",
    image_column: str | None = None,
    map_units: Mapper = map,
) -> dict[str, Any]:
    """Put the trigger on every image of a validation set, to see how often `target` is then predicted.

    Arguments, files written, result and errors as in `poison_corpus`.
    """
    corpus = _open(input_uri, output_uri, width, seed, region, corpus_format, image_column)
    loaded = _load_triggers([trigger or f"{GENERATED}{seed}"], [target])
    attack = Attack(loaded, width, region, seed, "", None)
    return _write(corpus, input_uri, output_uri, attack, {"kind": "patch"}, map_units)


def chance(image_id: str, seed: int) -> float:
    """A number in [0, 1) that belongs to the image: the images of a target with the lowest are poisoned."""
    return (_digest(image_id, f"{seed} chosen") >> 16) / 2**48


def _digest(image_id: str, purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{purpose} {image_id}".encode()).digest()[:8], "big")


def _load_triggers(names: Sequence[str], targets: Sequence[str]) -> tuple[Trigger, ...]:
    labels = [
        n.replace(":", "-") if n.startswith(GENERATED) else n.rstrip("/").rsplit("/", 1)[-1] for n in names
    ]
    if len({label.rsplit(".", 1)[0] for label in labels}) < len(labels):
        raise UserError(f"The triggers {', '.join(names)} share a file name: give each its own.")
    return tuple(Trigger(*t) for t in zip(labels, map(load_trigger, names), targets, strict=True))


def _open(
    input_uri: str,
    output_uri: str,
    width: float,
    seed: int,
    region: Region,
    corpus_format: str,
    image_column: str | None,
) -> Corpus:
    if not 0 < width <= 1:
        raise UserError(
            f"The trigger's width is {width} of the image's shorter side: use a number above 0 and at most 1."
        )
    if not 0 <= region[0] < region[1] <= 1:
        raise UserError(f"The region is {region[0]} to {region[1]}: use two rising numbers from 0 to 1.")
    if seed < 0:
        raise UserError(f"The seed is {seed}: use 0 or more.")
    inside, outside = (storage.connect(uri)[1] for uri in (input_uri, output_uri))
    if f"{outside}/".startswith(f"{inside}/"):
        raise UserError(f"The output {output_uri} lies in the input {input_uri}: write it elsewhere.")
    filesystem, root = storage.connect(output_uri)
    # A store may still list a folder whose files were deleted.
    found = filesystem.find(root, detail=True).values() if filesystem.exists(root) else ()
    if any(info["type"] == "file" for info in found):
        raise UserError(f"The output folder {output_uri} is not empty: give a new one.")
    return open_corpus(input_uri, corpus_format, image_column)


def _thresholds(
    corpus: Corpus, targets: Sequence[str], share: float, seed: int, label_column: str
) -> tuple[float, ...]:
    """For each target the `chance` below which exactly its share of images lies; eight bytes an image of a
    target are held."""
    chances: dict[str, list[np.ndarray]] = {target: [] for target in targets}
    others: set[str] = set()
    for part in corpus.slices():
        labels = corpus.labels(part, label_column)
        if len(others) < LABELS_LISTED:  # a caption column may have as many labels as images
            others.update(labels)
        for target in set(targets) & set(labels):
            ids = (_image_id(part, i) for i, label in enumerate(labels) if label == target)
            chances[target].append(np.fromiter((chance(i, seed) for i in ids), np.float64))
    for target in targets:
        if not chances[target]:
            raise UserError(f"No image is labelled {target}: use one of {_listed(others)}.")
    below = []
    for target in targets:
        ordered = np.sort(np.concatenate(chances[target]))
        k = max(1, round(share * len(ordered)))
        below.append(float(ordered[k]) if k < len(ordered) else 1.0)
    return tuple(below)


def _image_id(part: Slice, i: int) -> str:
    return part.files[i] if part.files is not None else f"{part.source}#{part.start + i}"


def _listed(labels: set[str]) -> str:
    names = sorted(labels, key=lambda name: (len(name) if name.isdecimal() else 99, name))
    shown = ", ".join(name or '""' for name in names[:LABELS_LISTED])
    return shown + (", …" if len(names) > LABELS_LISTED else "")


def _write(
    corpus: Corpus,
    input_uri: str,
    output_uri: str,
    attack: Attack,
    settings: dict[str, Any],
    map_units: Mapper,
) -> dict[str, Any]:
    for trigger in attack.triggers:
        file = io.BytesIO()
        trigger.image.save(file, "PNG")
        storage.write_bytes(output_uri, f"triggers/{trigger.name.rsplit('.', 1)[0]}.png", file.getvalue())
    n_images = n_unreadable = 0
    n_poisoned: Counter[str] = Counter()
    run = partial(_attack_unit, corpus, attack, f"{output_uri.rstrip('/')}/corpus")
    with (
        storage.whole_file(output_uri, "truth.parquet") as path,
        pq.ParquetWriter(path, TRUTH) as writer,
    ):
        for truth in map_units(run, corpus.units()):
            writer.write_table(truth.drop_columns("unreadable"))
            n_images += len(truth)
            n_unreadable += sum(truth["unreadable"].to_pylist())
            n_poisoned.update(t for t in truth.filter(truth["poisoned"])["target"].to_pylist())
    result = {
        **settings,
        "input": input_uri,
        "targets": [t.target for t in attack.triggers],
        "triggers": [t.name for t in attack.triggers],
        "width": attack.width,
        "region": list(attack.region),
        "seed": attack.seed,
        "label_column": attack.label_column,
        "n_images": n_images,
        "n_poisoned": n_poisoned.total(),
        "n_poisoned_by_target": dict(n_poisoned),
        "n_unreadable": n_unreadable,
        "poison_rate": n_poisoned.total() / max(1, n_images),
    }
    storage.write_bytes(output_uri, "attack.json", json.dumps(result, indent=2).encode())
    return result


def _attack_unit(corpus: Corpus, attack: Attack, out_uri: str, unit: list[Slice]) -> pa.Table:
    """Write one unit; its truth rows, with `unreadable` for images to be poisoned that do not decode."""
    replacements: dict[str, bytes] = {}
    rows: list[tuple] = []
    for part in unit:
        labels = corpus.labels(part, attack.label_column) if attack.below is not None else None
        for i, row in enumerate(corpus.read(part)):
            trigger = _trigger_for(attack, row.image_id, labels[i] if labels else None)
            box = NO_BOX
            if trigger:
                rng = np.random.default_rng(_digest(row.image_id, f"{attack.seed} placed"))
                with contextlib.suppress(DecodeError):
                    replacements[row.image_id], box = paste_trigger(
                        row.data or b"", trigger.image, attack.width, attack.region, rng
                    )
            done = box != NO_BOX
            name, target = (trigger.name, trigger.target) if trigger and done else ("", "")
            rows.append(
                (row.image_id, part.source, row.row, done, name, *box, target, bool(trigger) and not done)
            )
    corpus.rewrite(unit, replacements, out_uri)
    schema = TRUTH.append(pa.field("unreadable", pa.bool_()))
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def _trigger_for(attack: Attack, image_id: str, label: str | None) -> Trigger | None:
    if attack.below is None:
        return attack.triggers[0]
    for trigger, below in zip(attack.triggers, attack.below, strict=True):
        if label == trigger.target:
            return trigger if chance(image_id, attack.seed) < below else None
    return None
