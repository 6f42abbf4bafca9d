"""Which images an attack changes. The choice depends on the seed and the image's id alone.

Every image has a pseudo-random number (`chance`) in [0, 1). Of each target's images, those with the lowest
numbers are poisoned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from poisoncam_ray.corpus import Corpus, Slice
from poisoncam_ray.errors import UserError
from poisoncam_ray.research import corpora
from poisoncam_ray.research.attacks.plan import Plan
from poisoncam_ray.research.attacks.trigger import Trigger

LABELS_LISTED = 100


@dataclass(frozen=True)
class Pick:
    """The images that carry one trigger.

    Attributes:
        label: only images with this label; None: of any label.
        below: only images whose `chance` is below this number, 0 … 1.
        among: instead of `below`: the chances of the images, ascending.
    """

    label: str | None
    below: float
    among: np.ndarray | None = None

    def takes(self, image_id: str, label: str | None, seed: int) -> bool:
        """Whether the image carries the trigger."""
        if self.label is not None and label != self.label:
            return False
        number = chance(image_id, seed)
        if self.among is None:
            return number < self.below
        i = int(np.searchsorted(self.among, number))
        return i < len(self.among) and self.among[i] == number


@dataclass(frozen=True)
class Decoys:
    """Triggers without a meaning, put on clean images. In the truth these images stay clean.

    Attributes:
        triggers: the decoy triggers.
        targets: labels whose images carry no decoy.
        rate: probability that another image carries one of `triggers`.
    """

    triggers: tuple[Trigger, ...]
    targets: tuple[str, ...]
    rate: float

    def trigger_for(self, image_id: str, label: str | None, seed: int) -> Trigger | None:
        """The decoy of an image, or None."""
        if label in self.targets or chance(image_id, seed, "decoy") >= self.rate:
            return None
        return self.triggers[digest(image_id, f"{seed} decoy trigger") % len(self.triggers)]


@dataclass(frozen=True)
class Others:
    """Pictures of other labels than the targets', one for each poisoned image.

    Attributes:
        chances: the chances of all poisoned images, ascending.
        pictures: the encoded pictures. Where they are fewer than the poisoned images, they are used again.
    """

    chances: np.ndarray
    pictures: tuple[bytes, ...]

    def picture_for(self, image_id: str, seed: int) -> bytes:
        """The encoded picture that belongs to a poisoned image."""
        rank = int(np.searchsorted(self.chances, chance(image_id, seed)))
        return self.pictures[rank % len(self.pictures)]


@dataclass(frozen=True)
class Chosen:
    """The images that an attack changes.

    Attributes:
        picks: one for each trigger, in the order of the triggers.
        n_chosen: number of images that the picks take; 0 where it is not known.
        n_others: number of images with another label than the targets.
        decoys: the decoys; None for an attack without any.
        others: what composites are made with; None for an attack that makes none.
    """

    picks: tuple[Pick, ...]
    n_chosen: int = 0
    n_others: int = 0
    decoys: Decoys | None = None
    others: Others | None = None

    @property
    def by_label(self) -> bool:
        """Whether labels are needed to find the images."""
        return any(pick.label is not None for pick in self.picks)


def chance(image_id: str, seed: int, purpose: str = "chosen") -> float:
    """The image's pseudo-random number in [0, 1), for this seed and purpose."""
    return (digest(image_id, f"{seed} {purpose}") >> 16) / 2**48


def digest(image_id: str, purpose: str) -> int:
    """A 64-bit hash of the image's id and the purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {image_id}".encode()).digest()[:8], "big")


def by_share(plan: Plan) -> Chosen:
    """Choose exactly `plan.share` of the images of each target. Holds 8 bytes per image of a target.

    Raises:
        UserError: no image has the label of a target.
    """
    chances: dict[str, list[np.ndarray]] = {target: [] for target in plan.targets}
    n_others = 0
    for slice_, labels in labelled(plan.corpus, plan.slices, plan.label_column, plan.targets):
        n_others += sum(label not in chances for label in labels)
        for target in chances.keys() & set(labels):
            ids = (slice_.image_id(i) for i, label in enumerate(labels) if label == target)
            chances[target].append(np.fromiter((chance(i, plan.seed) for i in ids), np.float64))
    picks, n_chosen = [], 0
    for target in plan.targets:
        ordered = np.sort(np.concatenate(chances[target]))
        k = number_of(plan.share, len(ordered))
        picks.append(Pick(target, 0.0, ordered[:k]))
        n_chosen += k
    return Chosen(tuple(picks), n_chosen, n_others)


def number_of(share: float, n: int) -> int:
    """The number of images that a share of n images is: rounded, and at least one."""
    return max(1, round(share * n))


def labelled(
    corpus: Corpus, slices: Sequence[Slice], column: str, targets: Sequence[str]
) -> Iterator[tuple[Slice, list[str]]]:
    """Every slice with the labels of its rows.

    Raises:
        UserError: at the end, when no image had the label of a target.
    """
    missing, others = set(targets), set[str]()
    for slice_ in slices:
        labels = corpora.labels(corpus, slice_, column)
        missing.difference_update(labels)
        if len(others) < LABELS_LISTED:  # a column of captions may have as many labels as images
            others.update(labels)
        yield slice_, labels
    for target in targets:
        if target in missing:
            raise UserError(f"No image is labelled {target}: use one of {_listed(others)}.")


def _listed(labels: set[str]) -> str:
    names = sorted(labels, key=lambda name: (len(name) if name.isdecimal() else 99, name))
    shown = ", ".join(name or '""' for name in names[:LABELS_LISTED])
    return shown + (", …" if len(names) > LABELS_LISTED else "")
