"""What an attack is asked to do, checked. Everything else in this package builds on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from poisoncam_ray.corpus import Corpus, Slice

Mapper = Callable[[Callable[[list[Slice]], pa.Table], list[list[Slice]]], Iterable[pa.Table]]
"""Runs a function on every unit of a corpus, called as the built-in `map`; results come in order."""


@dataclass(frozen=True)
class Plan:
    """What was asked for.

    Attributes:
        corpus: the corpus to attack.
        slices: its slices.
        targets: the labels that the attack is after; empty for an attack without one.
        share: share of each target's images that is poisoned, (0, 1].
        seed: seed of every random choice.
        label_column: the corpus's column of labels.
        options: the values of all options of the kind.
        map_units: runs a function on every unit of the corpus.
        patching: a validation set is patched, every image of it.
    """

    corpus: Corpus
    slices: Sequence[Slice]
    targets: tuple[str, ...]
    share: float
    seed: int
    label_column: str
    options: Mapping[str, float]
    map_units: Mapper
    patching: bool = False
