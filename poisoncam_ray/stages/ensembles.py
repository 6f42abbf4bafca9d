"""What Classify leaves and Judge uses: of each trigger family to be erased its models, its threshold, and
pictures of its trigger.

N images   A families   M images that one flags   C channels   H = W image side   h, w a picture's sides
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.classifier import PoisonClassifier, poison_logit
from poisoncam_ray.method.localise import locate
from poisoncam_ray.stages.compute import device
from poisoncam_ray.stages.crops import from_png


@dataclass(frozen=True)
class Ensembles:
    """The committed classifiers, ready to judge: of each family to be erased its models and its threshold,
    a logit, and pictures of its trigger (t_Chw float, each of its own size)."""

    families: dict[int, tuple[list[nn.Module], float]]
    pictures: dict[int, list[Tensor]]

    def judge(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(p_N, flagged_AN bool) on the CPU, of uint8 images: above 0.5 is poison, by at least one of the A
        families, in the order of `families`.

        Logits are read from the threshold, which may lie where a plain sigmoid no longer tells one image
        from another. Without families p is 0.
        """
        if not self.families:
            return torch.zeros(len(x_NCHW)), torch.zeros(0, len(x_NCHW), dtype=torch.bool)
        x_NCHW = x_NCHW.to(device())
        beyond_AN = torch.stack(
            [poison_logit(models, x_NCHW) - cut for models, cut in self.families.values()]
        )
        p_AN = beyond_AN.cpu().sigmoid()
        return p_AN.amax(dim=0), p_AN > 0.5

    def locate(self, x_NCHW: Tensor, flagged_AN: Tensor) -> tuple[Tensor, Tensor]:
        """(family_N, box_N4) on the CPU: whose trigger is on each image, and where; 0 and all -1 for images
        that none flags.

        Of families that flag the same image it is the one whose pictures look most like a place of it: where
        several triggers of one kind lie in a corpus an ensemble takes others' for its own, by logits that
        cannot be compared.
        """
        family_N = torch.zeros(len(x_NCHW), dtype=torch.int64)
        box_N4 = torch.full((len(x_NCHW), 4), -1, dtype=torch.int64)
        most_N = torch.full((len(x_NCHW),), -torch.inf)
        for family, flagged_N in zip(self.families, flagged_AN, strict=True):
            i_M = flagged_N.nonzero()[:, 0]
            if len(i_M):
                pictures = [t_Chw.to(device()) for t_Chw in self.pictures[family]]
                found = locate(x_NCHW[i_M].to(device()).float() / 255, pictures)
                box_M4, like_M = (part.cpu() for part in found)
                better_M = like_M > most_N[i_M]
                i_M = i_M[better_M]
                family_N[i_M], box_N4[i_M], most_N[i_M] = family, box_M4[better_M], like_M[better_M]
        return family_N, box_N4


def load_models(config: Config, out: Folder, family: int) -> list[nn.Module]:
    models: list[nn.Module] = []
    for i in range(config.classify.models):
        model = PoisonClassifier(config.encoder.image_size)
        model.load_state_dict(out.read_tensors(artifact.model_name(family, i)))
        models.append(model.to(device()).eval())
    return models


def load_ensembles(config: Config, out: Folder) -> Ensembles:
    chosen = out.read_json(artifact.VALIDATION)["families"]
    models = {
        int(family): (load_models(config, out, int(family)), facts["threshold_logit"])
        for family, facts in chosen.items()
        if facts["erased"]
    }
    shown: dict[int, list[Tensor]] = {family: [] for family in models}
    for row in out.read_table(artifact.WHOLE_TRIGGERS).to_pylist() if models else ():
        if row["family"] in shown:
            shown[row["family"]].append(from_png(row["picture"]))
    return Ensembles(models, shown)
