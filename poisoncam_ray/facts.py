"""What each stage reports beside its artifact: numbers for people and for the stages after it.

A stage hands one of these to the runner, which writes it into the manifest; `of_manifest` reads it back.
`summary` is the stage's line on the console.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from poisoncam_ray.folder import Manifest

F = TypeVar("F", bound="Facts")


@dataclass(frozen=True)
class Facts(ABC):
    """The base of all facts. Every field is JSON."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """One line for the console, without a full stop."""

    def as_json(self) -> dict[str, Any]:
        """The fields and the summary, as the manifest holds them."""
        return asdict(self) | {"summary": self.summary}


def of_manifest(kind: type[F], manifest: Manifest) -> F:
    """The facts that a stage left in its manifest."""
    known = {f.name for f in fields(kind)}
    return kind(**{name: value for name, value in manifest.facts.items() if name in known})


@dataclass(frozen=True)
class Indexed(Facts):
    """Of Index. `slices_reused`: slices that an earlier attempt had finished."""

    images: int
    dead: int
    slices: int
    slices_reused: int
    shards_skipped: int

    @property
    def summary(self) -> str:
        broken = f", {self.dead:,} broken" if self.dead else ""
        shards = "shard" if self.shards_skipped == 1 else "shards"
        skipped = f", {self.shards_skipped:,} {shards} skipped" if self.shards_skipped else ""
        return f"{self.images:,} images in {self.slices:,} slices{broken}{skipped}"


@dataclass(frozen=True)
class Pretrained(Facts):
    """Of Pretrain. `loss`: the last mean over an epoch; None for a checkpoint that was taken over."""

    backbone: str
    objective: str | None = None
    epochs: int = 0
    loss: float | None = None
    steps: int = 0
    resumed_at_step: int = 0
    checkpoint: str | None = None

    @property
    def summary(self) -> str:
        if self.checkpoint:
            return f"your own {self.backbone} taken over"
        return f"{self.backbone} by {self.objective}, {self.epochs} epochs, loss {self.loss:.2f}"


@dataclass(frozen=True)
class Embedded(Facts):
    """Of Embed."""

    features: int
    slices: int
    slices_reused: int

    @property
    def summary(self) -> str:
        return f"{self.features:,} features"


@dataclass(frozen=True)
class Clustered(Facts):
    """Of Cluster. `k`: clusters that own at least one image."""

    k: int
    slices_reused: int

    @property
    def summary(self) -> str:
        return f"{self.k:,} clusters"


@dataclass(frozen=True)
class Searched(Facts):
    """Of Search. `stopped`: why there was no further round."""

    candidates: int
    rounds: int
    stopped: str
    best_score: float

    @property
    def summary(self) -> str:
        return f"{self.candidates:,} candidates in {self.rounds} rounds, best score {self.best_score:.2f}"


@dataclass(frozen=True)
class Decided(Facts):
    """Of Verdict. `verdict`: artifact.POISON or artifact.NO_EVIDENCE."""

    verdict: str
    families: int

    @property
    def summary(self) -> str:
        if not self.families:
            return "no evidence of poison"
        return "1 trigger family" if self.families == 1 else f"{self.families} trigger families"


@dataclass(frozen=True)
class Classified(Facts):
    """Of Classify. `recall`: share of held-out pastes recognised, of the family that came out worst;
    `in_doubt`: families of which nothing is removed, because their classifier is unsure."""

    trained: bool
    families: int = 0
    models: int = 0
    models_reused: int = 0
    recall: float | None = None
    in_doubt: list[int] = field(default_factory=list)

    @property
    def summary(self) -> str:
        if not self.trained:
            return "nothing to train: no evidence of poison"
        each = "" if self.families == 1 else f" for each of {self.families} families"
        spared = f"; {len(self.in_doubt)} in doubt, not erased" if self.in_doubt else ""
        return f"{self.models} models{each}, {self.recall:.1%} of held-out pastes recognised{spared}"


@dataclass(frozen=True)
class Judged(Facts):
    """Of Judge."""

    images: int
    flagged: int
    slices_reused: int

    @property
    def summary(self) -> str:
        return f"{self.flagged:,} of {self.images:,} images flagged"


@dataclass(frozen=True)
class Cleaned(Facts):
    """Of Clean. `files`: units of writing, a shard or a slice of a folder."""

    kept: int
    removed: int
    dead: int
    files: int
    files_reused: int

    @property
    def summary(self) -> str:
        rows = self.kept + self.removed + self.dead
        return f"{self.kept:,} kept + {self.removed:,} removed + {self.dead:,} dead = {rows:,} rows"


@dataclass(frozen=True)
class Reported(Facts):
    """Of Report. `removed_by_family`: removed images by the family's number, as text."""

    page: str
    removed_by_family: dict[str, int]

    @property
    def summary(self) -> str:
        return self.page
