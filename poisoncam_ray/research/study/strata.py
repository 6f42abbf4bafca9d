"""Trigger detection by stratum, from stored candidates: poison in clusters of its own, poison among natural
images.

Among natural images, hiding the trigger need not change the image's cluster. Rules that ask for this may find
nothing there.

C candidates
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from poisoncam_ray.research.evaluate.joined import mean
from poisoncam_ray.research.evaluate.stored import Stored

OWN, NATURAL, CLEAN = "poison, clusters mostly poison", "poison, clusters mostly natural", "clean images"


@dataclass(frozen=True)
class Stratum:
    """Some of the images that a search scored. Shares are 0 … 1, None where there is nothing to take one of.

    Attributes:
        run: the run.
        stratum: OWN, NATURAL or CLEAN. Decoys are in none.
        n: the number of scored images.
        n_boxed: how many of them have a true box that the search saw.
        accuracy: trigger detection, the share of these whose candidate box has an IoU of at least 0.5 with
            the true one: as `trigger_detection_accuracy_…` of metrics.json.
        flips: the share of the n images that leave their cluster when the candidate box is hidden.
        hit_flips: the same over the images whose trigger is detected.
        score: the mean poison score of the n candidates, by the images that evidence rests on.
        suspected: the share of the n candidates that the verdict suspects, with the rules as they are.
        in_family: the share that it puts into a trigger family.
    """

    run: str
    stratum: str
    n: int
    n_boxed: int
    accuracy: float | None
    flips: float | None
    hit_flips: float | None
    score: float | None
    suspected: float | None
    in_family: float | None


def strata(run: str, stored: Stored, suspect_C: np.ndarray, member_C: np.ndarray) -> list[Stratum]:
    """The strata that the run has; none without a truth.

    Args:
        run: the run's name in the table.
        stored: its candidates.
        suspect_C: bool, whether each is suspected.
        member_C: bool, whether each is in a family.
    """
    if not stored.truth_is_known:
        return []
    table = stored.table
    poisoned_C, decoy_C = table["poisoned"].to_numpy(), table["decoy"].to_numpy()
    own_C, flips_C = table["poison_share"].to_numpy() > 0.5, table["occlusion_flips"].to_numpy()
    boxed_C = pc.is_valid(table["hit"]).to_numpy()
    hit_C = pc.fill_null(table["hit"], False).to_numpy()
    score_C = table["score"].to_numpy()
    chosen = {OWN: poisoned_C & own_C, NATURAL: poisoned_C & ~own_C, CLEAN: ~poisoned_C & ~decoy_C}
    return [
        Stratum(
            run,
            name,
            n=int(of_C.sum()),
            n_boxed=int((of_C & boxed_C).sum()),
            accuracy=mean(hit_C[of_C & boxed_C]),
            flips=mean(flips_C[of_C]),
            hit_flips=mean(flips_C[of_C & hit_C]),
            score=mean(score_C[of_C]),
            suspected=mean(suspect_C[of_C]),
            in_family=mean(member_C[of_C]),
        )
        for name, of_C in chosen.items()
        if of_C.any()
    ]


def markdown(found: Sequence[Stratum]) -> list[str]:
    """A section with one line for each stratum of each run; no line without any."""
    if not found:
        return []
    names = ["run", "images", "scored", "trigger detection", "hidden, the cluster changes"]
    names += ["… where detected", "mean score", "suspected", "in a family"]
    lines = ["", "## Trigger detection by stratum", "", f"| {' | '.join(names)} |"]
    lines += ["|---|---|" + "---:|" * (len(names) - 2)]
    for one in found:
        shares = (one.accuracy, one.flips, one.hit_flips, one.score, one.suspected, one.in_family)
        cells = [one.run, one.stratum, str(one.n)]
        cells += ["–" if share is None else f"{share:.3f}" for share in shares]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
