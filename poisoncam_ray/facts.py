"""The facts of each stage: numbers that it reports beside its artifact, for people and for later stages.

A stage returns its facts to the runner, which writes them into the manifest. `of_manifest` reads them back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from poisoncam_ray.folder import Manifest
from poisoncam_ray.review import told

F = TypeVar("F", bound="Facts")


@dataclass(frozen=True)
class Facts(ABC):
    """The base class of all facts. Every field is a JSON value."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """The stage's line on the console, without a full stop."""

    def as_json(self) -> dict[str, Any]:
        """The fields and the summary, as the manifest holds them."""
        return asdict(self) | {"summary": self.summary}


def of_manifest(kind: type[F], manifest: Manifest) -> F:
    """Read the facts of a stage from its manifest.

    Args:
        kind: the class of the stage's facts.
        manifest: the manifest of the stage. Fields that the class does not have are ignored.
    """
    known = {f.name for f in fields(kind)}
    return kind(**{name: value for name, value in manifest.facts.items() if name in known})


def without_image(n: int) -> str:
    """3 → "3 rows without an image"."""
    return f"{n:,} {'row' if n == 1 else 'rows'} without an image"


@dataclass(frozen=True)
class Indexed(Facts):
    """Facts of Index.

    Attributes:
        images: rows that hold an image that decodes.
        dead: rows that do not.
        slices_reused: slices that an earlier attempt had finished.
        shards_skipped: shards that cannot be read.
        corpus_rows: rows of the corpus, where only a sample is looked at; None where all are.
        no_image: rows whose image is null. They are kept.
        copies_bytes: size of the smaller copies of the images; None where the run keeps none.
    """

    images: int
    dead: int
    slices: int
    slices_reused: int
    shards_skipped: int
    corpus_rows: int | None = None
    no_image: int = 0
    copies_bytes: int | None = None

    @property
    def summary(self) -> str:
        broken = f", {self.dead:,} broken" if self.dead else ""
        without = f", {without_image(self.no_image)}" if self.no_image else ""
        shards = "shard" if self.shards_skipped == 1 else "shards"
        skipped = f", {self.shards_skipped:,} {shards} skipped" if self.shards_skipped else ""
        drawn = f": {self.told_sample}" if self.corpus_rows is not None else ""
        slices = "1 slice" if self.slices == 1 else f"{self.slices:,} slices"
        copies = "" if self.copies_bytes is None else f", copies of {self.copies_bytes / 1e6:,.1f} MB"
        return f"{self.images:,} images in {slices}{broken}{without}{skipped}{copies}{drawn}"

    @property
    def sample(self) -> tuple[int, int] | None:
        """Rows looked at and rows of the corpus, where only a sample is looked at; None where all are."""
        looked_at = self.images + self.dead + self.no_image
        return None if self.corpus_rows is None else (looked_at, self.corpus_rows)

    @property
    def told_sample(self) -> str:
        """How much was looked at, where that is a sample."""
        return "a sample of {:,} of {:,} rows".format(*self.sample or (0, 0))


@dataclass(frozen=True)
class Pretrained(Facts):
    """Facts of Pretrain.

    Attributes:
        loss: the mean over the last epoch; None where the user's own checkpoint is used.
        resumed_at_step: the step at which this attempt went on; 0 for the first.
        checkpoint: the user's own checkpoint; None where the encoder was trained.
        images: indexed images; 0 where nobody has trained.
        images_seen: different images that the training showed.
        images_shown: images that it showed, each as often as it was shown.
        init: the user's weights that training began with; None: random ones.
        precision: of forward and backward passes; None where nobody has trained.
    """

    backbone: str
    objective: str | None = None
    epochs: int = 0
    loss: float | None = None
    steps: int = 0
    resumed_at_step: int = 0
    checkpoint: str | None = None
    images: int = 0
    images_seen: int = 0
    images_shown: int = 0
    init: str | None = None
    precision: str | None = None

    @property
    def summary(self) -> str:
        if self.checkpoint:
            return f"{self.backbone} from your own checkpoint"
        began = " from your weights" if self.init else ""
        budget = f"{self.epochs} epochs"
        if self.images_seen < self.images:
            budget = f"{self.images_shown:,} images shown ({self.images_seen:,} of {self.images:,})"
        return f"{self.backbone}{began} by {self.objective}, {budget}, loss {self.loss:.2f}"


@dataclass(frozen=True)
class Embedded(Facts):
    """Facts of Embed. `slices_reused`: slices that an earlier attempt had finished."""

    features: int
    slices: int
    slices_reused: int

    @property
    def summary(self) -> str:
        return f"{self.features:,} features"


@dataclass(frozen=True)
class Clustered(Facts):
    """Facts of Cluster. `k`: the number of clusters, empty ones not counted."""

    k: int
    slices_reused: int

    @property
    def summary(self) -> str:
        return f"{self.k:,} clusters"


@dataclass(frozen=True)
class Searched(Facts):
    """Facts of Search.

    Attributes:
        stopped: why there was no further round.
        best_score: of the first flip-test images.
        flip_images: flip-test images in all.
        unchanged_flips: how many of them leave their cluster when they are embedded again, with nothing
            pasted. There should be none: rounding would be taken for evidence.
        other_own: candidates whose image lies in another cluster than its stored feature, which has fewer
            digits. They are compared with the former, so they do no harm.
    """

    candidates: int
    rounds: int
    stopped: str
    best_score: float
    flip_images: int = 0
    unchanged_flips: int = 0
    other_own: int = 0

    @property
    def summary(self) -> str:
        said = f"{self.candidates:,} candidates in {self.rounds} rounds, best score {self.best_score:.2f}"
        if self.unchanged_flips:
            said += (
                f"; {self.unchanged_flips} of {self.flip_images} unchanged images change cluster by rounding"
            )
        return said


@dataclass(frozen=True)
class Decided(Facts):
    """Facts of Verdict. `verdict`: artifact.POISON or artifact.NO_EVIDENCE."""

    verdict: str
    families: int

    @property
    def summary(self) -> str:
        if not self.families:
            return "no evidence of poison"
        return "1 trigger family" if self.families == 1 else f"{self.families} trigger families"


@dataclass(frozen=True)
class Classified(Facts):
    """Facts of Classify.

    Attributes:
        trained: whether there was a trigger family to train on.
        models_reused: models that an earlier attempt had trained.
        recall: the share of held-out pastes recognised, of the family with the lowest share.
        in_doubt: families whose classifier leaves too many images close to its threshold. No image is removed
            for them.
    """

    trained: bool
    families: int = 0
    models: int = 0
    models_reused: int = 0
    recall: float | None = None
    in_doubt: list[int] = field(default_factory=list)

    @property
    def summary(self) -> str:
        if not self.trained:
            return "no classifier: no evidence of poison"
        each = "" if self.families == 1 else f" for each of {self.families} families"
        doubt = f"; {len(self.in_doubt)} in doubt, nothing removed for them" if self.in_doubt else ""
        return f"{self.models} models{each}, {self.recall:.1%} of held-out pastes recognised{doubt}"


@dataclass(frozen=True)
class Judged(Facts):
    """Facts of Judge. `flagged`: images to be removed."""

    images: int
    flagged: int
    slices_reused: int

    @property
    def summary(self) -> str:
        return f"{self.flagged:,} of {self.images:,} images flagged"


@dataclass(frozen=True)
class Cleaned(Facts):
    """Facts of Clean.

    Attributes:
        kept: rows written to `clean/` or listed in `keep/`, those without an image among them.
        removed: rows written to `removed/`.
        dead: rows without an image that decodes.
        files: units of work, each a shard or a slice of a folder.
        files_reused: units that an earlier attempt had finished.
        restored: how many of the kept rows had been flagged, by who restored them.
        copied: whether the kept rows were written to `clean/`, and not only listed in `keep/`.
        no_image: kept rows whose image is null. They were not judged.
    """

    kept: int
    removed: int
    dead: int
    files: int
    files_reused: int
    copied: bool = True
    no_image: int = 0
    restored: dict[str, int] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        return f"{self.terms} = {self.rows:,} rows"

    @property
    def terms(self) -> str:
        """Where the rows went, as a sum."""
        among = [without_image(self.no_image)] if self.no_image else []
        among += [told(self.restored)] if self.restored else []
        within = f" ({', '.join(among)})" if among else ""
        return f"{self.kept:,} kept{within} + {self.removed:,} removed + {self.dead:,} dead"

    @property
    def rows(self) -> int:
        """Rows of the corpus."""
        return self.kept + self.removed + self.dead


@dataclass(frozen=True)
class Reported(Facts):
    """Facts of Report.

    Attributes:
        page: the URI of the page.
        removed_by_family: the number of removed images by the family's number, as text.
    """

    page: str
    removed_by_family: dict[str, int]

    @property
    def summary(self) -> str:
        return self.page
