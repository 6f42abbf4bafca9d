"""Attacks on a corpus: each writes a poisoned corpus and the truth about it.

plan.py       what an attack is asked to do
trigger.py    trigger images: where they come from, their size and place
choice.py     which images an attack changes
kind.py       the parts of one kind of attack; kinds.py lists them by name
encoded.py    decodes an image, paints on it, encodes it again
write.py      writes the attacked corpus and the truth
poison.py     poison_corpus and patch_corpus, which the commands call
filters.py, perfect_search.py    what `scaled` shows to loaders; what an attack does to the classifier alone
the others    one kind of attack each

A new kind is a file with a `KIND` and a line in kinds.py.
"""

from poisoncam_ray.research.attacks.kinds import KINDS
from poisoncam_ray.research.attacks.poison import patch_corpus, poison_corpus

__all__ = ["KINDS", "patch_corpus", "poison_corpus"]
