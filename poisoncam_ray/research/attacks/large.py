"""A large patch: half of the image's shorter side, larger than the window that the search looks through."""

from __future__ import annotations

from poisoncam_ray.research.attacks import patch
from poisoncam_ray.research.attacks.kind import VALIDATION_REGION, Kind

# The middle half would hold it at one place only.
KIND = Kind(patch.stamp, width=0.5, train_region=VALIDATION_REGION)
