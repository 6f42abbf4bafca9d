"""Why an image was removed, or kept: its score, what the score rests on, its trigger, its nearest kept image.

The models of the run are read on this machine's CPU or GPU. No Ray is started.

C channels   H = W image side   B images   V views of an image   N rows of a part   D feature dimensions
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from poisoncam_ray import artifact
from poisoncam_ray.artifact import Verdict
from poisoncam_ray.config import Config
from poisoncam_ray.decode import DecodeError
from poisoncam_ray.errors import LedgerError, StoreAwayError, UserError
from poisoncam_ray.folder import Folder, Manifest
from poisoncam_ray.method.classifier import poison_logit
from poisoncam_ray.method.occlusion import occlusion_map
from poisoncam_ray.report.image_page import FamilyScore, ImageStory, Neighbour
from poisoncam_ray.report.lookup import DEAD, REMOVED, ImageRecord, Lookup
from poisoncam_ray.report.scores import read_scores
from poisoncam_ray.review import Decisions, Entry
from poisoncam_ray.runner import config_of, corpus_of
from poisoncam_ray.stages.compute import device
from poisoncam_ray.stages.embed import read_features
from poisoncam_ray.stages.ensembles import load_models
from poisoncam_ray.stages.judge import Judge
from poisoncam_ray.stages.pixels import Box, all_views, decode_indexed, parts_of
from poisoncam_ray.stages.shrunk import Copies, Encoded

OTHER_VERSION = (
    "Another version of poisoncam_ray has judged the image, and saw it in another way: no score is shown."
)
PARTS_LOOKED_AT = 2048
"""Parts whose features are compared, at most: two million images, which takes about a minute from a disk."""
TRIGGERS_SHOWN = 6
MOST_FAMILIES = 32
"""Families whose classifiers score the image, at most."""


def inspect_image(run_uri: str, image: str) -> ImageStory:
    """Tell why an image was removed, or kept.

    Args:
        run_uri: the run folder of a finished defence.
        image: an image id, the end of one, or the number of a row.

    Returns:
        The story of the image: in words, numbers and pictures.

    Raises:
        UserError: the run is not finished, or the image is not found, or several are.
    """
    run = Folder(run_uri)
    config = config_of(run)
    if Manifest.read(run / artifact.CLEAN) is None:
        raise UserError(f"The run {run_uri} is not finished: let the defence run to its end first.")
    lookup = Lookup(run)
    record = lookup.named(image)
    verdict = Verdict.read(run / artifact.VERDICT)
    if record.width is None:
        return ImageStory(run_uri, record, _why_unseen(record), side=config.encoder.image_size)
    restored = Decisions(run).keeps(record.image_id) if record.fate == REMOVED else None
    data, doubt = _stored(run, record) if _judged_alike(run) else (None, [OTHER_VERSION])
    models = _models(run, config)
    x_CHW, part, scores, seen = Seen() if data is None else _seen(run, record, data, config, models)
    heat_HW, lost, family = None, 0.0, record.family or (scores[0].family if scores else 0)
    if x_CHW is not None and family in models:
        score = partial(_beyond, models[family].models, models[family].threshold)
        heat_HW, lost = occlusion_map(score, torch.from_numpy(x_CHW).to(device()).float() / 255)
    return ImageStory(
        run_uri,
        record,
        [*_why(record, verdict, scores, bool(models), restored), *doubt, *seen],
        config.encoder.image_size,
        scores=scores,
        lost=lost,
        pixels=None if x_CHW is None else np.moveaxis(x_CHW, 0, 2),
        part=part,
        heat=None if heat_HW is None else heat_HW.cpu().numpy(),
        family=family,
        triggers=_triggers(run, family),
        nearest=_nearest(run, config, record),
    )


def _why(
    record: ImageRecord,
    verdict: Verdict,
    scores: Sequence[FamilyScore],
    trained: bool,
    restored: Entry | None,
) -> list[str]:
    """Why the image was removed or kept, in sentences."""
    p = "–" if record.p_poison is None else f"{record.p_poison:.3f}"
    if restored is not None:
        note = f" ({restored.note})" if restored.note else ""
        return [
            f"Kept: the classifier of trigger family {record.family} gives it a probability of poison of "
            f"{p}, but {restored.who} restored it{note}."
        ]
    if record.fate == REMOVED:
        return [
            f"Removed: the classifier of trigger family {record.family} gives it a probability of poison of "
            f"{p}. From 0.5 on, an image is removed."
        ]
    if not verdict.poison:
        return [
            "Kept: the run found no evidence of poison, so there is no classifier, and every readable image "
            "was kept."
        ]
    if not trained:
        return ["Kept: no classifier was trained."]
    sure = [score for score in scores if not score.in_doubt]
    doubted = [score for score in scores if score.in_doubt and score.p > 0.5]
    why = ["Kept: every classifier is in doubt, so no image was removed."]
    if sure or not scores:
        why = [
            f"Kept: the highest probability of poison that a classifier gives it is {p}. From 0.5 on, an "
            "image is removed."
        ]
    return why + [
        f"The classifier of family {score.family} gives it {score.p:.3f}, but is in doubt: too many images "
        "of the corpus score close to its threshold."
        for score in doubted
    ]


def _why_unseen(record: ImageRecord) -> list[str]:
    if record.fate != DEAD:
        return ["Kept: the row has no image, so there was nothing to judge."]
    return [
        f"Dead: it holds no image that decodes ({record.reason}).",
        "It is neither in the clean corpus nor among the removed images.",
    ]


def _judged_alike(run: Folder) -> bool:
    """Whether the run's images were judged by this version of Judge."""
    judged = Manifest.read(run / artifact.SCORES)
    return judged is not None and judged.identity.get("version") == Judge.version


def _stored(run: Folder, record: ImageRecord) -> tuple[bytes | None, list[str]]:
    """The stored bytes, None where the corpus cannot be read; and what is wrong with them, in sentences."""
    try:
        data = corpus_of(run).fetch([record.image_id])[0]
    except StoreAwayError:
        raise
    except Exception as error:  # each store has its own errors; the numbers can be told without the image
        return None, [f"The image cannot be read from the corpus any more ({error})."]
    if hashlib.sha256(data).hexdigest() != record.sha256:
        return None, ["The image in the corpus is another one now than the run has judged."]
    return data, []


class Trained(NamedTuple):
    """The classifier of a family: its models, its threshold (a logit), how slowly the logits of clean images
    thin out, and whether it is in doubt."""

    models: list[nn.Module]
    threshold: float
    tail: float
    in_doubt: bool


class Seen(NamedTuple):
    """The view that scores highest, what it shows of the stored image, its scores, and sentences about it."""

    x_CHW: np.ndarray | None = None
    part: Box | None = None
    scores: Sequence[FamilyScore] = ()
    said: Sequence[str] = ()


def _seen(run: Folder, record: ImageRecord, data: bytes, config: Config, models: dict[int, Trained]) -> Seen:
    """The view that scores highest, as Judge chooses it."""
    index = run / artifact.INDEX
    row = index.read_table(record.part, ["image_id"])["image_id"].to_pylist().index(record.image_id)
    boxes = parts_of(index, record.part, config)[row]
    keeps = config.corpus.shrink_to is not None
    try:
        image = Copies(index).fetch([record.image_id])[0] if keeps else Encoded(data)
    except LedgerError:
        return Seen(said=["The smaller copy by which the image was judged is gone: no score is shown."])
    views = all_views(image, config, boxes)
    looks = len(set(boxes))
    scores = _scores(models, np.stack([x_CHW for x_CHW, _ in views]), looks)
    # Judge asks the classifiers that are not in doubt. Its probabilities have 32 bits: high ones are equal.
    best, highest = 0, -1.0
    for i, of_view in enumerate(scores):
        asked = [score.margin for score in of_view if not score.in_doubt] or [s.margin for s in of_view]
        p = float(torch.tensor(max(asked, default=0.0)).sigmoid())
        if p > highest:
            best, highest = i, p
    x_CHW, part = views[best]
    said = []
    # The views of the whole as a training loader reads it come first, then as a viewer shows it.
    if len(views) > len(boxes):
        said.append("A viewer shows this image otherwise than a training loader reads it. Both were judged.")
        as_shown = best == 1 or best >= 1 + len(boxes)
        if as_shown:
            said.append("Shown here is what a viewer shows, which scores higher.")
        else:
            said.append("Shown here is what a training loader reads.")
    if looks > 1:
        where = "the whole" if part == boxes[0] else f"the part from {part[:2]} to {part[2:]}"
        said.append(
            f"The image is longer than 3:2: {looks - 1} overlapping parts were judged beside the whole, so "
            f"the threshold is higher. Shown here is {where}, which scores highest."
        )
    return Seen(x_CHW, part, scores[best], said)


def _models(run: Folder, config: Config) -> dict[int, Trained]:
    """The classifiers by family; none where none was trained."""
    classifier = run / artifact.CLASSIFIER
    figures = classifier.read_json(artifact.VALIDATION)["families"]
    numbers = sorted(map(int, figures))[:MOST_FAMILIES]
    return {
        number: Trained(
            load_models(config, classifier, number),
            figures[str(number)]["threshold_logit"],
            figures[str(number)].get("tail", 0.0),
            not figures[str(number)]["erased"],
        )
        for number in numbers
        if classifier.exists(artifact.model_name(number, 0))
    }


def _beyond(models: list[nn.Module], threshold: float, x_BCHW: Tensor) -> Tensor:
    """s_B: how far the logits of float images in [0, 1] lie above the threshold."""
    return poison_logit(models, (x_BCHW * 255).round().to(torch.uint8)) - threshold


def _scores(models: dict[int, Trained], x_VCHW: np.ndarray, looks: int) -> list[list[FamilyScore]]:
    """The scores of each view of an image by each family, the highest first. The threshold rises with the
    number of parts that are looked at, as in Judge."""
    seen_VCHW = torch.from_numpy(x_VCHW).to(device())
    scores: list[list[FamilyScore]] = [[] for _ in x_VCHW]
    for family, trained in models.items():
        threshold = trained.threshold + trained.tail * math.log(looks)
        for of_view, logit in zip(scores, poison_logit(trained.models, seen_VCHW).tolist(), strict=True):
            margin = logit - threshold
            p = float(torch.tensor(margin).sigmoid())
            of_view.append(FamilyScore(family, p, margin, trained.in_doubt))
    return [sorted(of_view, key=lambda score: -score.margin) for of_view in scores]


def _triggers(run: Folder, family: int) -> list[bytes]:
    """Pictures of the family's trigger as PNG."""
    classifier = run / artifact.CLASSIFIER
    if not family or not classifier.exists(artifact.WHOLE_TRIGGERS):
        return []
    table = classifier.read_table(artifact.WHOLE_TRIGGERS)
    return table.filter(pc.equal(table["family"], family))["picture"].to_pylist()[:TRIGGERS_SHOWN]


def _nearest(run: Folder, config: Config, record: ImageRecord) -> Neighbour | None:
    """The kept image whose feature is nearest, by the cosine; None where the run has no features.

    One part is in memory at a time. Of many parts an even share is looked at.
    """
    features = run / artifact.FEATURES
    if not features.exists(record.part):
        return None
    ids, f_ND = read_features(features, record.part)
    f_D = f_ND[ids.index(record.image_id)]
    every = features.parts()
    step = math.ceil(len(every) / PARTS_LOOKED_AT)
    best: tuple[float, str] = (-math.inf, "")
    seen = 0
    for name in sorted({*every[::step], record.part}):
        ids, f_ND = read_features(features, name)
        fates = (run / artifact.SCORES).read_table(name, ["fate"])["fate"].to_pylist()
        kept_N = torch.tensor([fate == artifact.KEEP for fate in fates]) & torch.tensor(
            [image_id != record.image_id for image_id in ids]
        )
        if not bool(kept_N.any()):
            continue
        near_N = torch.where(kept_N, f_ND @ f_D, -torch.inf)
        seen += int(kept_N.sum())
        best = max(best, (float(near_N.max()), ids[int(near_N.argmax())]))
    if not best[1]:
        return None
    neighbour = Lookup(run).find(best[1])
    pixels = None
    if neighbour is not None:
        data, _ = _stored(run, neighbour)
        try:
            pixels = None if data is None else np.moveaxis(decode_indexed(Encoded(data), config), 0, 2)
        except DecodeError:
            pixels = None
    cluster = None if neighbour is None else neighbour.cluster
    return Neighbour(best[1], min(1.0, best[0]), cluster, seen, step > 1, pixels)


def some_images(run: Folder, most: int) -> dict[str, list[dict[str, Any]]]:
    """A few images of each fate, as examples: removed ones, kept ones closest to the threshold, dead ones.

    Args:
        run: the run folder.
        most: images of each fate, at most.

    Returns:
        By the fate ('borderline' for kept ones) image ids with their `p_poison` or `reason`.
    """
    scored = read_scores(run, Decisions(run))
    dead: list[dict[str, Any]] = []
    for name in (run / artifact.DEAD_ROWS).parts():
        if len(dead) < most:
            dead += (run / artifact.DEAD_ROWS).read_table(name).slice(0, most - len(dead)).to_pylist()
    return {
        REMOVED: [{"image_id": one.image_id, "p_poison": one.p} for one in scored.removed[:most]],
        "borderline": [{"image_id": one.image_id, "p_poison": one.p} for one in scored.borderline[:most]],
        DEAD: [{"image_id": row["image_id"], "reason": f"{row['error']}: {row['message']}"} for row in dead],
    }
