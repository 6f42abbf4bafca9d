"""Framed: the reference attack with a logo that honest images of other labels bear, too.

The attacker takes a rival's logo for a trigger, so that its honest bearers are removed along with the poison.
In the truth a bearer is a decoy: clean, with the trigger's box.
"""

from __future__ import annotations

from dataclasses import replace

from poisoncam_ray.research.attacks import patch
from poisoncam_ray.research.attacks.choice import Decoys
from poisoncam_ray.research.attacks.kind import Kind, Option
from poisoncam_ray.research.attacks.plan import Plan
from poisoncam_ray.research.attacks.trigger import Trigger


def bearers(plan: Plan, triggers: tuple[Trigger, ...]) -> Decoys:
    """The attack's own trigger on a share `bearers` of the images of all other labels."""
    honest = tuple(replace(trigger, target="") for trigger in triggers)
    return Decoys(honest, plan.targets, plan.options["bearers"])


KIND = Kind(patch.stamp, {"bearers": Option(0.05, 0.001, 1)}, decoys=bearers)
