"""Writes the attacked corpus, unit by unit, and the truth about it.

Boxes are integer [x0, y0, x1, y1) in stored pixels. Every choice depends on the seed and the image's id
alone, not on the order or the grouping of the work.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from poisoncam_ray.corpus import Corpus, Row, Slice
from poisoncam_ray.decode import DecodeError
from poisoncam_ray.research import corpora
from poisoncam_ray.research.attacks.choice import Chosen, digest
from poisoncam_ray.research.attacks.encoded import paint, pixels, remake
from poisoncam_ray.research.attacks.kind import Compose, How, Stamp
from poisoncam_ray.research.attacks.plan import Plan
from poisoncam_ray.research.attacks.trigger import Box, Trigger
from poisoncam_ray.store import whole_file, write_bytes

NO_BOX: Box = (-1, -1, -1, -1)
NO_TRIGGER_IMAGE = Image.new("RGB", (1, 1))

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
        "kind": pa.string(),
        "boxes": pa.list_(pa.list_(pa.int32(), 4)),
        "decoy": pa.bool_(),
    }
)
"""x0 … y1 are the first of `boxes`, -1 where there is none. `trigger`, `target` and `kind` are "" for an
image without a trigger. A decoy is not poisoned."""


@dataclass(frozen=True)
class Attack:
    """One attack, ready to be written.

    `chosen` has a pick for each of `triggers`. With `compose`, it has `others`, and no image is stamped.
    `stored_as` is the format of the changed images; None: each keeps its own.
    """

    kind: str
    stamp: Stamp
    triggers: tuple[Trigger, ...]
    how: How
    chosen: Chosen
    seed: int
    label_column: str
    compose: Compose | None = None
    stored_as: str | None = None

    def trigger_for(self, image_id: str, label: str | None) -> tuple[Trigger | None, bool]:
        """The trigger of an image, None for none, and whether it is a decoy."""
        for trigger, pick in zip(self.triggers, self.chosen.picks, strict=True):
            if pick.takes(image_id, label, self.seed):
                return trigger, False
        decoys = self.chosen.decoys
        decoy = decoys.trigger_for(image_id, label, self.seed) if decoys else None
        return decoy, decoy is not None


def write_attack(plan: Plan, attack: Attack, output_uri: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Write the corpus, the truth, the triggers and attack.json.

    Args:
        plan: what was asked for.
        attack: the attack.
        output_uri: an empty folder.
        settings: what attack.json shall also hold.

    Returns:
        What attack.json holds.
    """
    decoys = attack.chosen.decoys.triggers if attack.chosen.decoys else ()
    for trigger in (*attack.triggers, *decoys):
        if trigger.image is not None:
            file = io.BytesIO()
            trigger.image.save(file, "PNG")
            write_bytes(output_uri, trigger.file, file.getvalue())
    n_images = n_unreadable = n_decoys = 0
    n_poisoned: Counter[str] = Counter()
    run = partial(_attack_unit, plan.corpus, attack, f"{output_uri.rstrip('/')}/corpus")
    with (
        whole_file(output_uri, "truth.parquet") as path,
        pq.ParquetWriter(path, TRUTH) as writer,
    ):
        for truth in plan.map_units(run, plan.corpus.units(plan.slices)):
            writer.write_table(truth.drop_columns("unreadable"))
            n_images += len(truth)
            n_unreadable += sum(truth["unreadable"].to_pylist())
            n_decoys += sum(truth["decoy"].to_pylist())
            n_poisoned.update(t for t in truth.filter(truth["poisoned"])["target"].to_pylist())
    result = {
        **settings,
        "kind": attack.kind,
        "options": dict(attack.how.options),
        "targets": [t.target for t in attack.triggers if t.target],
        "triggers": [t.name for t in attack.triggers],
        "trigger_files": [t.file for t in attack.triggers if t.image is not None],
        "width": attack.how.width,
        "region": list(attack.how.region),
        "seed": attack.seed,
        "label_column": attack.label_column,
        "n_images": n_images,
        "n_poisoned": n_poisoned.total(),
        "n_poisoned_by_target": dict(n_poisoned),
        "n_decoys": n_decoys,
        "n_unreadable": n_unreadable,
        "poison_rate": n_poisoned.total() / max(1, n_images),
    }
    write_bytes(output_uri, "attack.json", json.dumps(result, indent=2).encode())
    return result


def _attack_unit(corpus: Corpus, attack: Attack, out_uri: str, unit: list[Slice]) -> pa.Table:
    """Write one unit of the corpus.

    Returns:
        Its rows of the truth; `unreadable` marks images that were to be poisoned and do not decode.
    """
    replacements: dict[str, bytes] = {}
    rows: list[tuple] = []
    for slice_ in unit:
        labels = corpora.labels(corpus, slice_, attack.label_column) if attack.chosen.by_label else None
        for i, row in enumerate(corpus.read(slice_)):
            place = (row.image_id, slice_.source, row.row)
            trigger, decoy = attack.trigger_for(row.image_id, labels[i] if labels else None)
            stamped = _stamped(attack, trigger, row) if trigger else None
            if trigger is None or stamped is None:
                unreadable = trigger is not None and not decoy
                rows.append((*place, False, "", *NO_BOX, "", "", [], False, unreadable))
                continue
            replacements[row.image_id], boxes = stamped
            first = boxes[0] if boxes else NO_BOX
            what = (trigger.target, attack.kind, boxes)
            rows.append((*place, not decoy, trigger.name, *first, *what, decoy, False))
    corpora.rewrite(corpus, unit, replacements, out_uri)
    schema = TRUTH.append(pa.field("unreadable", pa.bool_()))
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def _stamped(attack: Attack, trigger: Trigger, row: Row) -> tuple[bytes, list[Box]] | None:
    """The encoded image with the trigger, and the trigger's boxes; None for an image that does not decode.

    The pictures of `others` do decode.
    """
    rng = np.random.default_rng(digest(row.image_id, f"{attack.seed} placed"))
    shown = trigger.image or NO_TRIGGER_IMAGE
    how, compose, others = attack.how, attack.compose, attack.chosen.others
    try:
        if compose and others:
            other = pixels(others.picture_for(row.image_id, attack.seed))
            return remake(
                row.data or b"", lambda image: compose(image, other, shown, how, rng), attack.stored_as
            )
        return paint(row.data or b"", lambda image: attack.stamp(image, shown, how, rng), attack.stored_as)
    except DecodeError:
        return None
