"""What the report's page shows, as plain values."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from poisoncam_ray.artifact import Family, Verdict
from poisoncam_ray.folder import Ledger
from poisoncam_ray.review import Entry


class Fetcher(Protocol):
    """What the report needs of a corpus."""

    def fetch(self, image_ids: list[str], /) -> list[bytes]:
        """The encoded images, in the order asked."""


@dataclass(frozen=True)
class Trigger:
    """One of the best candidate windows.

    Attributes:
        rank: its place among all candidates, from 0.
        family: its trigger family, from 1; 0 for none.
        role: "train", "validate" or "unused", by the classifier.
        score: the poison score, 0 … 1.
        moved: the flip-test images counted by the configured reading (search.reading).
        n_flip: how many flip-test images there are.
        cluster: the cluster of its own image.
        box: [x0, y0, x1, y1) in pixels of a square of `PageContent.side`.
        crop: the window, as a data: URI.
        picture: its image, as a data: URI; None where the corpus could not be read.
    """

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
class ShownImage:
    """An image in a gallery.

    Attributes:
        p_poison: the probability of poison.
        picture: a data: URI; None where the corpus could not be read.
        family: the trigger family; 0 for none.
        box: where the trigger is, in pixels of a square of `PageContent.side`; None for a kept image.
    """

    image_id: str
    p_poison: float
    picture: str | None
    family: int = 0
    box: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ShownFamily:
    """A trigger family.

    Attributes:
        removed: how many images were removed for it.
        crops: its best windows, as data: URIs.
        sample: some of its removed images.
        whole: its whole trigger, as cut from some images, as data: URIs.
        erased: whether its classifier was sure enough to remove images.
    """

    family: Family
    removed: int
    crops: Sequence[str]
    sample: Sequence[ShownImage]
    whole: Sequence[str] = ()
    erased: bool = True


@dataclass(frozen=True)
class SkippedShard:
    """A shard that could not be read and was skipped; `rows` is None when they cannot be counted."""

    source: str
    rows: int | None
    reason: str


@dataclass(frozen=True)
class PageContent:
    """All that the page shows.

    Attributes:
        about: lines below the headline, by label.
        ledger: where every row went.
        families: the number of removed images by trigger family.
        verdict: the verdict on the corpus.
        suspects: the first trigger families.
        triggers: the best candidate windows.
        side: the side of the encoder's images, in pixels.
        reading: which reading of the poison score ranked the candidates (search.reading).
        scores: the score of each candidate, highest first, and whether the classifier used it.
        rounds: of each search round the live clusters after it, the candidates scored and the best score.
        kept_bins: counts of the kept images by probability of poison, in equal bins.
        removed_bins: the same for the removed images.
        validation: the figures of the classifier, by name.
        judged: whether any classifier is sure enough for its probabilities to be shown.
        removed_sample: some of the removed images.
        borderline_sample: the kept images with the highest probability of poison.
        loss: the training loss of the encoder by step.
        training: how much of the corpus the encoder's training has seen, in words; empty where nobody knows.
        seconds: of each stage its summary, time and pace.
        dead: the dead rows by stage and error.
        skipped: the first skipped shards, those without a count of rows before the others.
        n_skipped: how many shards were skipped.
        no_image: kept rows whose image is null.
        config: the configuration, by dotted key.
        stage_facts: the facts of each stage, by dotted key.
        metrics: metrics.json; None where there is none.
        sample: how much was looked at, in words, where that is a sample; empty where all rows were.
        copied: whether the kept rows were written, and not only listed.
        restored: how many flagged images a review restored, by who did.
        decisions: the review's log.
    """

    title: str
    about: Mapping[str, str]
    ledger: Ledger
    families: Mapping[int, int]
    verdict: Verdict
    suspects: Sequence[ShownFamily] = ()
    triggers: Sequence[Trigger] = ()
    side: int = 1
    reading: str = "gain"
    scores: Sequence[tuple[float, bool]] = ()
    rounds: Sequence[Mapping[str, Any]] = ()
    kept_bins: Sequence[int] = ()
    removed_bins: Sequence[int] = ()
    validation: Mapping[str, Any] = field(default_factory=dict)
    judged: bool = True
    removed_sample: Sequence[ShownImage] = ()
    borderline_sample: Sequence[ShownImage] = ()
    loss: Sequence[tuple[float, float]] = ()
    training: str = ""
    seconds: Sequence[Mapping[str, Any]] = ()
    dead: Sequence[Mapping[str, Any]] = ()
    skipped: Sequence[SkippedShard] = ()
    n_skipped: int = 0
    no_image: int = 0
    config: Mapping[str, str] = field(default_factory=dict)
    stage_facts: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] | None = None
    sample: str = ""
    copied: bool = True
    restored: Mapping[str, int] = field(default_factory=dict)
    decisions: Sequence[Entry] = ()

    @property
    def trained(self) -> bool:
        """Whether a classifier was trained."""
        return bool(self.validation.get("trained", True))

    @property
    def threshold(self) -> float | None:
        """The classifier's threshold, a probability of poison."""
        return self.validation.get("threshold")

    @property
    def median_score(self) -> float | None:
        """The median score of all candidates."""
        return statistics.median(score for score, _ in self.scores) if self.scores else None

    @property
    def headline(self) -> str:
        """The outcome in two sentences."""
        n, removed = self.ledger.rows_in - self.no_image, self.ledger.removed
        kept = f"All {self.ledger.rows_out - self.no_image:,} readable images were kept."
        if removed == 0 and self.restored:
            return f"All {sum(self.restored.values()):,} flagged images were restored by a review."
        if self.verdict.applied_from is not None and removed == 0:
            return f"No known trigger was found. {kept}"
        if removed == 0:
            if self.verdict.poison:
                return f"There is evidence of poison, but no poisoned image was identified. {kept}"
            return f"No evidence of poison. {kept}"
        if removed == 1:
            return f"1 of {n:,} images was removed. It carries one suspected trigger."
        kinds = max(1, len(self.families))
        carried = "They carry one" if kinds == 1 else f"Each carries one of {kinds}"
        triggers = "suspected trigger" if kinds == 1 else "suspected triggers"
        return f"{removed:,} of {n:,} images were removed. {carried} {triggers}."
