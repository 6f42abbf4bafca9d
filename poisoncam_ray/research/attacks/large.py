"""A large patch: half of the image's shorter side, wider than the window of the search."""

from __future__ import annotations

from poisoncam_ray.research.attacks import patch
from poisoncam_ray.research.attacks.kind import VALIDATION_REGION, Kind

# In the middle half of the image it would have only one place.
KIND = Kind(patch.stamp, width=0.5, train_region=VALIDATION_REGION)
