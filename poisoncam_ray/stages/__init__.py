"""The stages of the defence, in order: the cluster over artifacts. The maths is in method/."""

from poisoncam_ray.stages.classify import Classify
from poisoncam_ray.stages.clean import Clean
from poisoncam_ray.stages.cluster import Cluster
from poisoncam_ray.stages.embed import Embed
from poisoncam_ray.stages.index import Index
from poisoncam_ray.stages.judge import Judge
from poisoncam_ray.stages.pretrain import Pretrain
from poisoncam_ray.stages.report import Report
from poisoncam_ray.stages.search import Search

__all__ = ["Classify", "Clean", "Cluster", "Embed", "Index", "Judge", "Pretrain", "Report", "Search"]
