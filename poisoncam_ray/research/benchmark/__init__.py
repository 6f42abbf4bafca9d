"""What the method and the cluster cost: each figure two ways of the same work in turns, on one machine."""

from poisoncam_ray.research.benchmark.compare import Comparison, alternate, markdown
from poisoncam_ray.research.benchmark.measure import Sizes, measure

__all__ = ["Comparison", "Sizes", "alternate", "markdown", "measure"]
