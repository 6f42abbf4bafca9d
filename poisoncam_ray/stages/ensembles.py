"""The ensembles that Classify trains and Judge uses: models, threshold and trigger pictures of each trigger
family that is to be erased.

N images   A families   M images flagged by one family   C channels   H = W image side
h, w a picture's sides
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.classifier import PoisonClassifier, poison_logit
from poisoncam_ray.method.localise import locate, stretched
from poisoncam_ray.stages.compute import device
from poisoncam_ray.stages.crops import from_png
from poisoncam_ray.stages.precision import dtype_of


@dataclass(frozen=True)
class Ensembles:
    """The committed classifiers.

    Attributes:
        families: the models and the threshold (a logit) of each family that is to be erased.
        pictures: pictures of each family's trigger, t_Chw, floats in [0, 1], of any size.
        tails: how slowly the logits of clean images thin out, by family (choose_threshold).
        aspects: width over height of what each of the `pictures` is cut from, by family; without a family's,
            its pictures are never stretched.
    """

    families: dict[int, tuple[list[nn.Module], float]]
    pictures: dict[int, list[Tensor]]
    tails: dict[int, float] = field(default_factory=dict)
    aspects: dict[int, list[float]] = field(default_factory=dict)

    def judge(self, x_NCHW: Tensor, looks_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Score images.

        Logits are measured from the threshold: it may lie where a sigmoid is saturated.

        Args:
            x_NCHW: uint8 images.
            looks_N: how many parts of the image are scored, of which the worst counts; None: one. The
                threshold rises with their number, so that as few clean images are flagged as with one look.

        Returns:
            p_N, the highest probability of poison over the families (0 without families), and flagged_AN, the
            families with a probability above 0.5, in the order of `families`. Both on the CPU.
        """
        if not self.families:
            return torch.zeros(len(x_NCHW)), torch.zeros(0, len(x_NCHW), dtype=torch.bool)
        x_NCHW = x_NCHW.to(device())
        beyond_AN = torch.stack(
            [poison_logit(models, x_NCHW) - cut for models, cut in self.families.values()]
        ).cpu()
        if looks_N is not None:
            tail_A1 = torch.tensor([[self.tails[family]] for family in self.families])
            beyond_AN = beyond_AN - tail_A1 * looks_N.log()
        p_AN = beyond_AN.sigmoid()
        return p_AN.amax(dim=0), p_AN > 0.5

    def locate(
        self, x_NCHW: Tensor, flagged_AN: Tensor, aspect_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Find the trigger on each flagged image.

        When several families flag an image, the one whose pictures correlate best with a place in it is
        chosen: an ensemble may also flag similar triggers of other families, and the logits of two ensembles
        cannot be compared.

        Args:
            x_NCHW: uint8 images.
            flagged_AN: which families flag each image, from `judge`.
            aspect_N: width over height, in stored pixels, of what each image shows; None: 1 of all.

        Returns:
            family_N and box_N4, the trigger's family and place in each image; 0 and -1 where no family flags
            the image. Both on the CPU.
        """
        family_N = torch.zeros(len(x_NCHW), dtype=torch.int64)
        box_N4 = torch.full((len(x_NCHW), 4), -1, dtype=torch.int64)
        best_N = torch.full((len(x_NCHW),), -torch.inf)
        step_N = _step(torch.ones(len(x_NCHW)) if aspect_N is None else aspect_N)
        for family, flagged_N in zip(self.families, flagged_AN, strict=True):
            # Images of about one aspect at a time.
            for step in step_N[flagged_N].unique().tolist():
                i_M = (flagged_N & (step_N == step)).nonzero()[:, 0]
                pictures = [t_Chw.to(device()) for t_Chw in self._on(family, step, x_NCHW.shape[-1])]
                found = locate(x_NCHW[i_M].to(device()).float() / 255, pictures)
                box_M4, ncc_M = (tensor.cpu() for tensor in found)
                better_M = ncc_M > best_N[i_M]
                i_M = i_M[better_M]
                family_N[i_M], box_N4[i_M], best_N[i_M] = family, box_M4[better_M], ncc_M[better_M]
        return family_N, box_N4

    def _on(self, family: int, step: float, side: int) -> list[Tensor]:
        """The family's pictures as they may look on images of this aspect: as large in the encoder's
        square as where they were cut from, or as large on the stored image."""
        pictures, aspects = self.pictures[family], self.aspects.get(family)
        if aspects is None:
            return pictures
        onto, of_each = _aspect(torch.tensor(step)), _aspect(_step(torch.tensor(aspects)))
        squeezed = [
            stretched(t_Chw, cut_from, float(onto), side)
            for t_Chw, cut_from in zip(pictures, of_each.tolist(), strict=True)
        ]
        others = [t for t, t_Chw in zip(squeezed, pictures, strict=True) if t.shape != t_Chw.shape]
        return pictures + others


def _step(aspect_N: Tensor) -> Tensor:
    """Aspects, in eighths of an octave: images of one step are looked at together."""
    return (8 * aspect_N.float().log2()).round()


def _aspect(step_N: Tensor) -> Tensor:
    return (step_N / 8).exp2()


def load_models(config: Config, classifier: Folder, family: int) -> list[nn.Module]:
    """The committed models of one family in evaluation mode, on this process's device."""
    models: list[nn.Module] = []
    for i in range(config.classify.models):
        model = PoisonClassifier(config.encoder.image_size)
        model.load_state_dict(classifier.read_tensors(artifact.model_name(family, i)))
        model.to(device()).eval().encoder.freeze(dtype_of(config.resources.precision))
        models.append(model)
    return models


def load_ensembles(config: Config, classifier: Folder) -> Ensembles:
    """The ensembles of the families that are to be erased, from the artifact of Classify."""
    validation = classifier.read_json(artifact.VALIDATION)["families"]
    families = {
        int(family): (load_models(config, classifier, int(family)), figures["threshold_logit"])
        for family, figures in validation.items()
        if figures["erased"]
    }
    pictures: dict[int, list[Tensor]] = {family: [] for family in families}
    aspects: dict[int, list[float]] = {family: [] for family in families}
    for row in classifier.read_table(artifact.WHOLE_TRIGGERS).to_pylist() if families else ():
        if row["family"] in pictures:
            pictures[row["family"]].append(from_png(row["picture"]))
            aspects[row["family"]].append(row["aspect"])
    tails = {family: validation[str(family)]["tail"] for family in families}
    return Ensembles(families, pictures, tails, aspects)
