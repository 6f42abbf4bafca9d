"""The corpora of one run of the results table: some classes of labelled photographs, poisoned or patched."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.attacks import patch_corpus, poison_corpus
from poisoncam_ray.research.attacks.kinds import kind_named
from poisoncam_ray.store import connect

REFERENCE = "patch"
SEED = "seed-"
"""In a results table, the folder of a seed's runs is called by this and the seed."""
MADE = "attack.json"


@dataclass(frozen=True)
class Attacked:
    """One attack of the table.

    Attributes:
        kind: the kind of attack.
        share: share of the target's images that is poisoned.
        trigger: an image file or "generated:<seed>"; "" where the kind makes its own.
        target: the target label.
        width: the trigger's width as a share of the image's shorter side.
        seed: seed of the attack.
        n_classes: number of classes of the corpus, all of one size.
        options: settings of the kind, by name.
        region: where the trigger lies, as in poison_corpus; None: the region of the kind.
    """

    kind: str
    share: float
    trigger: str
    target: str
    width: float
    seed: int
    n_classes: int
    options: tuple[tuple[str, float], ...] = ()
    region: tuple[float, float] | None = None

    @property
    def targeted(self) -> bool:
        """Whether the kind of attack has a target."""
        return kind_named(self.kind).targets[1] > 0

    @property
    def name(self) -> str:
        """Its folder below the folder of its seed."""
        return f"{self.kind}/share-{self.share:g}/{trigger_name(self.trigger) or 'own'}"

    def poison(self, clean: Folder, out: Folder) -> dict[str, Any]:
        """Make the poisoned corpus, once. Returns what attack.json holds.

        An untargeted attack poisons as many images as one with a target, of all classes.
        """
        if not out.exists(MADE):
            out.delete()
            targets, share = [self.target], self.share
            if not self.targeted:
                targets, share = [], self.share / self.n_classes
            triggers = [self.trigger] if self.trigger else []
            poison_corpus(
                clean.uri, out.uri, targets, triggers, share=share, seed=self.seed, **self._settings()
            )
        return out.read_json(MADE)

    def patch(self, validation: Folder, poisoned: Folder, out: Folder) -> None:
        """Put the same trigger on every validation image, once."""
        if out.exists(MADE):
            return
        out.delete()
        target = self.target if self.targeted else ""
        trigger = self.trigger
        if not trigger and (files := poisoned.read_json(MADE).get("trigger_files")):
            trigger = f"{poisoned.uri}/{files[0]}"
        patch_corpus(validation.uri, out.uri, target, trigger, seed=self.seed, **self._settings())

    def _settings(self) -> dict[str, Any]:
        kind: dict[str, Any] = {} if self.kind == REFERENCE else {"kind": self.kind}
        kind |= {} if kind_named(self.kind).has_own_width else {"width": self.width}
        if self.options:
            kind["options"] = dict(self.options)
        return kind | ({"region": self.region} if self.region else {})


def trigger_name(trigger: str) -> str:
    """A trigger's file name without its extension, or generated-<seed>."""
    file = trigger.rsplit("/", 1)[-1]
    return (file.rpartition(".")[0] or file).replace(":", "-")


def seed_of(run_name: str) -> str:
    """The name that runs of one seed share: a path in a results table up to the seed's folder, or else the
    whole name."""
    return re.sub(rf"(^|/)({SEED}\d+)/.*", r"\1\2", run_name)


def check_labelled(uri: str) -> None:
    """Check that a place holds a Parquet corpus with an integer column `label`.

    Raises:
        UserError: it does not.
    """
    filesystem, path = connect(uri)
    try:
        schema = ds.dataset(path, filesystem=filesystem, format="parquet").schema
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise UserError(f"{uri} holds no Parquet files that can be read: give a labelled corpus.") from error
    if "label" not in schema.names or not pa.types.is_integer(schema.field("label").type):
        raise UserError(f"{uri} has no column label of integers: give a corpus with one.")


def take_classes(uri: str, out: Folder, classes: np.ndarray, per_class: int, shards: int) -> None:
    """Write the first rows of each class of a labelled Parquet corpus, in the corpus's order, once.

    Args:
        uri: the labelled corpus.
        out: where the chosen rows are written.
        classes: the labels to take.
        per_class: rows of each class, at most.
        shards: number of shards to write.
    """
    if out.exists(f"part-{shards - 1:05d}.parquet"):
        return
    filesystem, path = connect(uri)
    wanted = ds.dataset(path, filesystem=filesystem, format="parquet").to_table(
        filter=pc.field("label").isin(pa.array(classes))
    )
    labels_N = wanted["label"].to_numpy()
    chosen = np.sort(np.concatenate([np.flatnonzero(labels_N == label)[:per_class] for label in classes]))
    for shard, rows_M in enumerate(np.array_split(chosen, shards)):
        sink = pa.BufferOutputStream()
        pq.write_table(wanted.take(pa.array(rows_M)), sink, row_group_size=256)
        out.write_bytes(f"part-{shard:05d}.parquet", sink.getvalue().to_pybytes())
