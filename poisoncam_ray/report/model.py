"""What the report's page shows, as plain values."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from poisoncam_ray.artifact import Family, Verdict
from poisoncam_ray.folder import Ledger


class Fetcher(Protocol):
    """The part of a corpus that the report needs."""

    def fetch(self, image_ids: list[str], /) -> list[bytes]: ...


@dataclass(frozen=True)
class Trigger:
    """A candidate window among the best; `box` in pixels of a square of `side`."""

    rank: int
    family: int
    role: str
    score: float
    moved: int
    n_flip: int
    cluster: int
    image_id: str
    box: tuple[int, int, int, int]
    crop: str
    picture: str | None


@dataclass(frozen=True)
class Thumb:
    """`box`: where the trigger is, if anywhere, in pixels of a square of `side`."""

    image_id: str
    p_poison: float
    picture: str | None
    family: int = 0
    box: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Suspect:
    """A trigger family, how many images were removed for it, its best windows, some of its images, and its
    whole trigger as some of them show it. `erased`: whether its classifier was sure enough to remove any."""

    family: Family
    removed: int
    crops: Sequence[str]
    sample: Sequence[Thumb]
    whole: Sequence[str] = ()
    erased: bool = True


@dataclass(frozen=True)
class SkippedShard:
    """A shard that the run went on without, and why; `rows` is None when they cannot be counted."""

    source: str
    rows: int | None
    reason: str


@dataclass(frozen=True)
class Facts:
    """All that the page shows. Pictures are data: URIs; None where the corpus could not be read. `judged`:
    whether any classifier was sure enough for its probabilities to mean something."""

    title: str
    about: Mapping[str, str]
    ledger: Ledger
    families: Mapping[int, int]
    evidence: Verdict | None = None
    suspects: Sequence[Suspect] = ()
    triggers: Sequence[Trigger] = ()
    side: int = 1
    reading: str = "gain"
    scores: Sequence[tuple[float, bool]] = ()
    rounds: Sequence[Mapping[str, Any]] = ()
    kept_bins: Sequence[int] = ()
    removed_bins: Sequence[int] = ()
    validation: Mapping[str, Any] = field(default_factory=dict)
    judged: bool = True
    removed_sample: Sequence[Thumb] = ()
    borderline_sample: Sequence[Thumb] = ()
    loss: Sequence[tuple[float, float]] = ()
    seconds: Sequence[Mapping[str, Any]] = ()
    dead: Sequence[Mapping[str, Any]] = ()
    skipped: Sequence[SkippedShard] = ()
    """The first of the skipped shards, those whose rows cannot be counted before the others."""
    n_skipped: int = 0
    config: Mapping[str, str] = field(default_factory=dict)
    stage_facts: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] | None = None

    @property
    def poison(self) -> bool:
        """Runs made before there was a verdict are judged by what they removed."""
        return self.evidence.poison if self.evidence else self.ledger.removed > 0

    @property
    def trained(self) -> bool:
        """Whether there was a classifier to judge the images."""
        return bool(self.validation.get("trained", True))

    @property
    def threshold(self) -> float | None:
        return self.validation.get("threshold")

    @property
    def median_score(self) -> float | None:
        return statistics.median(score for score, _ in self.scores) if self.scores else None

    @property
    def headline(self) -> str:
        """The verdict in one sentence."""
        n, removed = self.ledger.rows_in, self.ledger.removed
        if removed == 0:
            return f"{self._nothing_removed} All {self.ledger.rows_out:,} readable images were kept."
        kinds = max(1, len(self.families))
        what = "what looks like one trigger" if kinds == 1 else f"what look like {kinds} different triggers"
        if removed == 1:
            return f"1 of {n:,} images carries {what}. It was removed."
        return f"{removed:,} of {n:,} images carry {what}. They were removed."

    @property
    def _nothing_removed(self) -> str:
        if self.evidence is None:
            return "Nothing was removed."
        if self.evidence.poison:
            return "There is evidence of poison, but no image was found to carry it."
        return "No evidence of poison."
