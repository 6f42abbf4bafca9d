"""The defence: its ten stages, in order. This list is the table of contents of the program. A shorter one
looks for the triggers of an earlier run in other images."""

from __future__ import annotations

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder
from poisoncam_ray.stage import Stage
from poisoncam_ray.stages.adopt import AdoptClassifier, AdoptVerdict
from poisoncam_ray.stages.classify import Classify
from poisoncam_ray.stages.clean import Clean
from poisoncam_ray.stages.cluster import Cluster
from poisoncam_ray.stages.embed import Embed
from poisoncam_ray.stages.index import Index
from poisoncam_ray.stages.judge import Judge
from poisoncam_ray.stages.pretrain import Pretrain
from poisoncam_ray.stages.report import AppliedReport, Report
from poisoncam_ray.stages.search import Search
from poisoncam_ray.stages.verdict import Verdict


def stages() -> list[Stage]:
    """All stages of the defence, in the order in which they run."""
    return [
        Index(),  # an id for every row, and the proof that it decodes
        Pretrain(),  # the threat model, trained on the suspicious corpus
        Embed(),  # one feature an image
        Cluster(),  # k-means over the features
        Search(),  # candidate triggers by Cluster Activation Masking, scored by pasting them
        Verdict(),  # is there poison, and which candidates are triggers
        Classify(),  # a classifier of pasted triggers for each family
        Judge(),  # its score on every image, and where the trigger is
        Clean(),  # the corpus without what was flagged
        Report(),  # what was found, why, and where every row went
    ]


def stages_of(run: Folder) -> list[Stage]:
    """The stages that made a run: all of the defence, or those that apply an earlier run."""
    if not run.exists(f"{artifact.VERDICT}/{artifact.VERDICT_FILE}"):
        return stages()
    source = artifact.Verdict.read(run / artifact.VERDICT).applied_from
    return stages() if source is None else applied_stages(Folder(source))


def applied_stages(source: Folder) -> list[Stage]:
    """The stages that judge other images by what an earlier run has found.

    Args:
        source: the run folder of the earlier run.
    """
    return [
        Index(),
        AdoptVerdict(source),  # the earlier run's verdict and triggers
        AdoptClassifier(source),  # its classifiers
        Judge(),
        Clean(),
        AppliedReport(),
    ]
