"""Untargeted: the patch on a share of all images, of any label."""

from __future__ import annotations

from poisoncam_ray.research.attacks import patch
from poisoncam_ray.research.attacks.choice import Chosen, Pick
from poisoncam_ray.research.attacks.kind import Kind
from poisoncam_ray.research.attacks.plan import Plan


def any_image(plan: Plan) -> Chosen:
    """Choose each image with probability `share`, by its `chance`. No labels are read, nothing is held."""
    return Chosen((Pick(None, plan.share),))


# Here the share is of all images. The paper's poison rates end at 5 %.
KIND = Kind(patch.stamp, choose=any_image, targets=(0, 0), share=0.05)
