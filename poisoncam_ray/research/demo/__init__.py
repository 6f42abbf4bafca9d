"""A corpus drawn by the program, for trying the defence where no photographs are at hand."""

from poisoncam_ray.research.demo.corpus import draw_corpus, draw_validation
from poisoncam_ray.research.demo.painter import SCENES, draw

__all__ = ["SCENES", "draw", "draw_corpus", "draw_validation"]
