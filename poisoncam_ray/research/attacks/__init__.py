"""Attacks on a corpus, a small file each, and the truth beside what they poison.

`poison_corpus` and `patch_corpus` take `kind`, a name of `KINDS`, and that kind's `options`.
"""

from poisoncam_ray.research.attacks.kinds import KINDS
from poisoncam_ray.research.attacks.poison import patch_corpus, poison_corpus

__all__ = ["KINDS", "patch_corpus", "poison_corpus"]
