"""What the method and the cluster cost: two ways of the same work, in turns, on one machine.

compare.py     two ways in turns, and the table of their rates
search.py      batches against one image at a time
allocator.py   freed memory kept against freed memory returned
training.py    training steps, and the share of augmentation
embed.py       the Embed stage on Ray against one process
measure.py     all of these
memory.py      peak memory of every stage; processes.py samples it
"""

from poisoncam_ray.research.benchmark.compare import Comparison, alternate, markdown
from poisoncam_ray.research.benchmark.measure import Sizes, measure

__all__ = ["Comparison", "Sizes", "alternate", "markdown", "measure"]
