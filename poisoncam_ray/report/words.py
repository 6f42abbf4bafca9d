"""The verdict in words: what the console prints and the report shows."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from poisoncam_ray.artifact import Family, Verdict

NOTHING = "No window group reaches the threshold."
TOO_FEW = "Too few windows were scored to fit a null distribution, so poison could not be detected."
TOO_HIGH = "Benign window groups of this corpus score so high that no window group could reach the threshold."
NO_TRIGGER = (
    "A window group reaches the threshold, but no trigger family was found in it. A family needs at least "
    "two windows that look alike or move images to the same clusters."
)
RARE = 0.001
"""The share of poisoned images that `what_training_saw` takes as an example."""
LEAST_P = 1e-4
"""Smaller p-values are shown as 'less than this': no null distribution is large enough to tell them apart."""


def why_not(verdict: Verdict) -> str:
    """Why there is no evidence of poison, in one or two sentences."""
    if verdict.threshold is None:
        return TOO_FEW
    if verdict.threshold > 1:
        return TOO_HIGH
    return NO_TRIGGER if verdict.stands_out else NOTHING


def tell(
    verdict: Verdict, removed: int, by_family: Mapping[int, int], in_doubt: Collection[int] = ()
) -> list[str]:
    """The verdict as lines for the console.

    Args:
        verdict: the verdict of the run.
        removed: how many images were removed.
        by_family: removed images by family.
        in_doubt: families whose classifier is in doubt, so that nothing is removed for them.
    """
    if verdict.applied_from is not None:
        lines = [
            f"Known triggers only, of {verdict.applied_from}: {_images(removed)} removed. New triggers were "
            "not looked for."
        ]
        return lines + _family_lines(verdict, by_family, in_doubt)
    if not verdict.poison:
        gone = "nothing was removed" if removed == 0 else f"{_images(removed)} removed"
        if verdict.threshold is None:
            return [f"No evidence of poison: {gone}.", f"  {why_not(verdict)}"]
        line = f"No evidence of poison (false alarm rate {percent(verdict.false_alarm_rate)}): {gone}."
        return [line] if why_not(verdict) == NOTHING else [line, f"  {why_not(verdict)}"]
    n = len(verdict.families)
    kinds = "1 trigger family" if n == 1 else f"{n} trigger families"
    sure = _in_brackets(verdict.p_value)
    if removed:
        lines = [f"Poison found: {kinds}, {_images(removed)} removed{sure}."]
    else:
        # Most false alarms end here: their classifiers are in doubt, so no image is removed.
        lines = [
            f"Evidence of poison: {kinds}{sure}, but no poisoned image was identified: nothing was removed."
        ]
    return lines + _family_lines(verdict, by_family, in_doubt)


def _family_lines(verdict: Verdict, by_family: Mapping[int, int], in_doubt: Collection[int]) -> list[str]:
    lines = []
    for family in verdict.families:
        said = family_words(family, by_family.get(family.family, 0), family.family in in_doubt)
        lines.append(f"  family {family.family}: {said}")
    return lines


def family_words(family: Family, removed: int, in_doubt: bool) -> str:
    """A trigger family in a few words.

    Args:
        family: the family.
        removed: how many images were removed for it.
        in_doubt: whether its classifier is in doubt, so that nothing is removed for it.
    """
    gone = "nothing removed, its classifier is in doubt" if in_doubt else f"{_images(removed)} removed"
    return f"{gone}, best score {percent(family.best_score)}{_in_brackets(family.p_value)}"


def what_training_saw(images: int, seen: int, shown: int) -> str:
    """How much of the corpus the threat model has seen, in two sentences.

    Args:
        images: indexed images.
        seen: different images that its training showed.
        shown: images that it showed, each as often as it was shown.
    """
    if not images or not seen:
        return ""
    times = "once" if shown == seen else f"{shown / seen:.3g} times"
    return (
        f"The threat model was shown {percent(seen / images)} of the {images:,} images, each {times}. "
        f"Of a poison of {percent(RARE)}, which is {RARE * images:,.0f} images, it has seen about "
        f"{RARE * seen:,.0f}."
    )


def chance(p_value: float) -> str:
    """A p-value as a share of benign window groups: 0.0004 → '1 in 2,500 benign window groups scores'."""
    if p_value > 0.1:
        return f"{percent(p_value)} of benign window groups score"
    if p_value < LEAST_P:
        return f"fewer than 1 in {1 / LEAST_P:,.0f} benign window groups scores"
    # Two digits: a p-value is no more exact than that.
    return f"1 in {float(f'{1 / p_value:.2g}'):,.0f} benign window groups scores"


def p_figure(p_value: float) -> str:
    """A p-value as a figure: 0.0004 → '0.0004', 1e-7 → '< 0.0001'."""
    return f"< {LEAST_P}" if p_value < LEAST_P else f"{p_value:.2g}"


def p_words(p_value: float) -> str:
    """A p-value as an equation: 0.0004 → 'p = 0.0004'."""
    figure = p_figure(p_value)
    return f"p {figure}" if figure.startswith("<") else f"p = {figure}"


def percent(share: float) -> str:
    """A share in per cent, three digits at most: 0.05 → '5 %'."""
    return f"{100 * share:.3g} %" if share < 1 else "100 %"


def _in_brackets(p_value: float | None) -> str:
    return "" if p_value is None else f" ({p_words(p_value)})"


def _images(n: int) -> str:
    return "1 image" if n == 1 else f"{n:,} images"
