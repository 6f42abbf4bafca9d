"""The verdict on a corpus: the evidence that Search leaves behind, and how it is said in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poisoncam_ray.artifact import Folder

EVIDENCE = "evidence.json"
POISON = "poison"
NO_EVIDENCE = "no_evidence"
NOTHING = "No window does to other images what benign windows do not."
TOO_FEW = "Too few windows were tried to know what benign ones do, so poison could not have been seen."
TOO_LOUD = "Benign windows of this corpus score so high that no window could stand out."
NO_TRIGGER = (
    "A bundle of windows scores above the threshold, but none of them was taken for a trigger: it takes "
    "several that look or do alike."
)
LEAST_P = 1e-4
"""p-values below this are said as 'below': no null is large enough to tell them apart."""


@dataclass(frozen=True)
class Family:
    """Windows that look alike, or else do alike: one attacker's trigger. `family` counts from 1, `ranks` from
    0."""

    family: int
    best_score: float
    p_value: float | None
    n_candidates: int
    cluster: int
    ranks: Sequence[int] = ()


@dataclass(frozen=True)
class Evidence:
    """Scores are shares of the test images, 0 to 1. `bundle_scores`: of each bundle (windows that look alike,
    or are left of one group of clusters) how many its windows surely move, on average, to the clusters of the
    bundle's own images, windows that their own images do not need counting 0, times the bundle's weight (less
    where windows that look alike are cut from everywhere, more where they are copies of one picture);
    `null_scores`: of the benign bundles, without weights; both highest first. A bundle that scores
    `threshold` is a suspect. p-values and threshold are None where there are too few benign bundles, or where
    nobody asks for evidence (a false alarm rate of 1)."""

    verdict: str
    false_alarm_rate: float
    p_value: float | None
    best_score: float | None
    threshold: float | None
    n_candidates: int
    best_bundle: float | None = None
    bundle_scores: Sequence[float] = ()
    null_scores: Sequence[float] = ()
    families: Sequence[Family] = ()

    @property
    def poison(self) -> bool:
        return self.verdict == POISON

    @property
    def stands_out(self) -> bool:
        """Whether any bundle scores the threshold."""
        if self.threshold is None or self.best_bundle is None:
            return False
        return self.best_bundle >= self.threshold

    @property
    def why_not(self) -> str:
        """Why there is no evidence of poison, in a sentence."""
        if self.threshold is None:
            return TOO_FEW
        if self.threshold > 1:
            return TOO_LOUD
        return NO_TRIGGER if self.stands_out else NOTHING


def read_evidence(search: Folder) -> Evidence | None:
    """What lies in 04_search; None for runs made before there was a verdict."""
    if not search.exists(EVIDENCE):
        return None
    tree = search.read_json(EVIDENCE)
    families = [Family(**_known(Family, family)) for family in tree.pop("families", [])]
    return Evidence(families=families, **_known(Evidence, tree))


def _known(kind: type[Family] | type[Evidence], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Without keys that a later version may add."""
    return {key: value for key, value in tree.items() if key in kind.__dataclass_fields__}


def tell(
    evidence: Evidence, removed: int, by_family: Mapping[int, int], doubted: Collection[int] = ()
) -> list[str]:
    """The verdict in one line, then one for each family, or what to know beside "no evidence"; `by_family`
    holds the images removed for each, `doubted` the families whose classifier removes nothing, in doubt."""
    if not evidence.poison:
        gone = "nothing was removed" if removed == 0 else f"{_images(removed)} removed"
        if evidence.threshold is None:
            return [f"No evidence of poison: {gone}.", f"  {evidence.why_not}"]
        line = f"No evidence of poison (false alarm rate {percent(evidence.false_alarm_rate)}): {gone}."
        return [line] if evidence.why_not == NOTHING else [line, f"  {evidence.why_not}"]
    n = len(evidence.families)
    kinds = "1 trigger family" if n == 1 else f"{n} trigger families"
    sure = _in_brackets(evidence.p_value)
    if removed:
        lines = [f"Poison found: {kinds}, {_images(removed)} removed{sure}."]
    else:
        # A false alarm mostly ends here: its classifiers tell no image for sure.
        lines = [f"Suspicious windows: {kinds}{sure}, but no image is surely poison: nothing was removed."]
    for family in evidence.families:
        gone = f"{_images(by_family.get(family.family, 0))} removed"
        if family.family in doubted:
            gone = "nothing removed, its classifier is in doubt"
        best = f"best score {percent(family.best_score)}{_in_brackets(family.p_value)}"
        lines.append(f"  family {family.family}: {gone}, {best}")
    return lines


def chance(p_value: float) -> str:
    """0.0004 → '1 in 2,500 benign bundles of windows scores'; common ones in per cent."""
    if p_value > 0.1:
        return f"{percent(p_value)} of benign bundles of windows score"
    if p_value < LEAST_P:
        return f"fewer than 1 in {1 / LEAST_P:,.0f} benign bundles of windows scores"
    # Two digits: a p-value is no more exact than that.
    return f"1 in {float(f'{1 / p_value:.2g}'):,.0f} benign bundles of windows scores"


def p_figure(p_value: float) -> str:
    return f"< {LEAST_P}" if p_value < LEAST_P else f"{p_value:.2g}"


def p_words(p_value: float) -> str:
    figure = p_figure(p_value)
    return f"p {figure}" if figure.startswith("<") else f"p = {figure}"


def percent(share: float) -> str:
    """0.05 → '5 %'; three digits at most."""
    return f"{100 * share:.3g} %" if share < 1 else "100 %"


def _in_brackets(p_value: float | None) -> str:
    return "" if p_value is None else f" ({p_words(p_value)})"


def _images(n: int) -> str:
    return "1 image" if n == 1 else f"{n:,} images"
