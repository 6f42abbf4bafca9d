"""Decoys: the reference attack, and other triggers on clean images of other labels.

The attacker knows the search: the decoys are meant to score highest, so that the classifier learns them
instead of the trigger.
"""

from __future__ import annotations

from dataclasses import replace

from poisoncam_ray.research.attacks import patch
from poisoncam_ray.research.attacks.choice import Chosen, Decoys, by_share
from poisoncam_ray.research.attacks.kind import Kind, Option
from poisoncam_ray.research.attacks.plan import Plan
from poisoncam_ray.research.attacks.trigger import Trigger, generate_trigger

FIRST_SEED = 1_000_000
"""Far from the seeds that users give to generated triggers."""


def with_decoys(plan: Plan) -> Chosen:
    """Choose the poisoned images by share, and decoys on images of all other labels.

    Each of the `triggers` decoy triggers is put on about `copies` times as many images as are poisoned. The
    images that carry a decoy have nothing else in common.
    """
    chosen = by_share(plan)
    count = int(plan.options["triggers"])
    seeds = [FIRST_SEED + plan.seed * 100 + i for i in range(count)]
    triggers = tuple(Trigger(f"decoy-{i}", generate_trigger(seed), "") for i, seed in enumerate(seeds))
    rate = min(1.0, count * plan.options["copies"] * chosen.n_chosen / max(1, chosen.n_others))
    return replace(chosen, decoys=Decoys(triggers, plan.targets, rate))


KIND = Kind(
    patch.stamp,
    {"triggers": Option(3, 1, 50, whole=True), "copies": Option(1, 0.01, 100)},
    choose=with_decoys,
)
