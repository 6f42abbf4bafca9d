"""Hard clean corpora: honest pictures with marks that a search for triggers may take for one.

marks.py      draws one mark on a picture
corpus.py     writes the corpus, and says which images carry the mark
"""

from poisoncam_ray.research.hard_clean.corpus import make_hard_clean
from poisoncam_ray.research.hard_clean.marks import MARKS

__all__ = ["MARKS", "make_hard_clean"]
