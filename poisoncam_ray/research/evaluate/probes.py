"""What an encoder has learned, by three probes: k-NN, and linear classifiers on 1 % and 10 % of the labels.

Each probe gives clean accuracy, accuracy with the trigger, and attack success.

f, bank, q  L2-normalised features   D feature dimensions   N images of the bank   M queries   y class labels
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, open_corpus
from poisoncam_ray.decode import DecodeError
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.method.probes import (
    accuracy,
    attack_success,
    choose_labelled,
    false_positives,
    knn_predict,
    linear_predict,
)
from poisoncam_ray.research import corpora
from poisoncam_ray.research.evaluate.joined import Metrics, committed
from poisoncam_ray.runner import config_of
from poisoncam_ray.stages.embed import embed_images, load_encoder, read_features
from poisoncam_ray.stages.pixels import decode_part
from poisoncam_ray.stages.pool import image_seed
from poisoncam_ray.stages.shrunk import Encoded

LABELLED = {"linear_1": 0.01, "linear_10": 0.1}
"""Shares of the labels that the linear probes learn from, as in the paper."""


@dataclass(frozen=True)
class Validation:
    """The validation images.

    Attributes:
        uri: a labelled corpus.
        patched_uri: the same with the trigger on every image.
        target: the attack's target label; "" for an attack without one.
        label_column: the corpora's column of labels.
    """

    uri: str
    patched_uri: str
    target: str
    label_column: str = "label"


@dataclass(frozen=True)
class _Bank:
    """What the probes learn from.

    `draw_N` is a hash of the seed and the image's bytes: it chooses the same images for every encoder.
    """

    f_ND: Tensor
    y_N: Tensor
    draw_N: Tensor
    classes: dict[str, int]


def probe(
    run_uri: str, labelled_uri: str, validation: Validation, k: int = 20, linear: bool = True
) -> dict[str, Metrics]:
    """Probe the encoder of a run. The probes learn from the features that the run stored.

    Validation images that do not decode are left out. The features are held in memory.

    Args:
        run_uri: a run folder with features.
        labelled_uri: the corpus that the run read; its labels are used. In an image folder a label is the
            name of the parent folder.
        validation: the validation images.
        k: number of neighbours of the weighted k-NN.
        linear: with the linear probes, too. Each is a logistic regression on 1 % or 10 % of every class, at
            least one image.

    Returns:
        {knn, linear_1, linear_10: figures}. Shares are 0 … 1; figures of the target are None for an attack
        without one. The figures:

        acc_clean, acc_patched: share of validation images whose class is predicted right, without and with
        the trigger.
        asr: share of patched images of other classes that are predicted as the target.
        target_false_positives_patched: the number of these images.
        target_false_positives_clean: number of clean images of other classes predicted as the target.
        target_false_positive_rate_clean: their share.

    Raises:
        UserError: the run is not finished, no image has the target label, or the validation images have no
            other class.
    """
    run = Folder(run_uri)
    config = config_of(run)
    encoder = load_encoder(committed(run, artifact.ENCODER), config.resources.precision)
    bank = _bank(run, labelled_uri, config, validation)
    target = bank.classes[validation.target] if validation.target else None

    def queries(uri: str) -> tuple[Tensor, Tensor]:
        q_MD, labels = _embed(encoder, _open(uri, config), config, validation.label_column)
        # A class that only the validation set has can never be predicted: its images count as wrong.
        y_M = torch.tensor([bank.classes.get(label, -1) for label in labels])
        if target is not None and bool((y_M == target).all()):
            raise UserError(
                f"{uri} has no image of a class other than {validation.target!r}: give a validation set "
                "with some."
            )
        return q_MD, y_M

    (clean_MD, y_M), (patched_MD, y_patched_M) = queries(validation.uri), queries(validation.patched_uri)
    both_MD = torch.cat([clean_MD, patched_MD])
    n_classes = len(bank.classes)
    predicted = {"knn": knn_predict(bank.f_ND, bank.y_N, both_MD, k=k, n_classes=n_classes)}
    for name, share in LABELLED.items() if linear else ():
        row_n = choose_labelled(bank.draw_N, bank.y_N, share)
        predicted[name] = linear_predict(bank.f_ND[row_n], bank.y_N[row_n], both_MD, n_classes)
    return {
        name: _figures(both_M[: len(y_M)], y_M, both_M[len(y_M) :], y_patched_M, target)
        for name, both_M in predicted.items()
    }


def _figures(
    clean_M: Tensor, y_M: Tensor, patched_M: Tensor, y_patched_M: Tensor, target: int | None
) -> Metrics:
    found: Metrics = {
        "acc_clean": accuracy(clean_M, y_M),
        "acc_patched": accuracy(patched_M, y_patched_M),
        "asr": None,
        "target_false_positives_patched": None,
        "target_false_positives_clean": None,
        "target_false_positive_rate_clean": None,
    }
    if target is not None:
        found |= {
            "asr": attack_success(patched_M, y_patched_M, target),
            "target_false_positives_patched": false_positives(patched_M, y_patched_M, target),
            "target_false_positives_clean": false_positives(clean_M, y_M, target),
            "target_false_positive_rate_clean": attack_success(clean_M, y_M, target),
        }
    return found


def _bank(run: Folder, labelled_uri: str, config: Config, validation: Validation) -> _Bank:
    label_of = _labels(_open(labelled_uri, config), validation.label_column)
    classes = {label: y for y, label in enumerate(sorted(set(label_of.values())))}
    if validation.target and validation.target not in classes:
        raise UserError(
            f"No image of {labelled_uri} carries the label {validation.target!r}: give one that does."
        )
    features, index = committed(run, artifact.FEATURES), committed(run, artifact.INDEX)
    f_parts, y_parts, draw_parts = [], [], []
    for name in features.parts():
        ids, f_ND = read_features(features, name)
        if strange := next((image_id for image_id in ids if image_id not in label_of), None):
            raise UserError(f"{labelled_uri} has no image {strange}: give the corpus that the run read.")
        indexed = index.read_table(name, ["image_id", "sha256"])
        bytes_of = dict(zip(*(column.to_pylist() for column in indexed.columns), strict=True))
        f_parts.append(f_ND)
        y_parts += [classes[label_of[image_id]] for image_id in ids]
        draw_parts += [image_seed(config.seed, bytes_of[image_id]) for image_id in ids]
    return _Bank(torch.cat(f_parts), torch.tensor(y_parts), torch.tensor(draw_parts), classes)


def _open(uri: str, config: Config) -> Corpus:
    return open_corpus(uri, config.corpus.format, config.corpus.image_column)


def _labels(corpus: Corpus, column: str) -> dict[str, str]:
    label_of: dict[str, str] = {}
    for slice_ in corpus.slices():
        ids = (slice_.image_id(i) for i in range(slice_.stop - slice_.start))
        label_of.update(zip(ids, corpora.labels(corpus, slice_, column), strict=True))
    return label_of


def _embed(encoder: Encoder, corpus: Corpus, config: Config, column: str) -> tuple[Tensor, list[str]]:
    """q_MD and labels of the images that decode, slice by slice."""
    parts, labels = [], []
    for slice_ in corpus.slices():
        pictures = []
        for row, label in zip(corpus.read(slice_), corpora.labels(corpus, slice_, column), strict=True):
            try:
                pictures.append(decode_part(Encoded(row.data), config, row.image_id))
            except DecodeError:
                continue
            labels.append(label)
        if pictures:
            parts.append(embed_images(encoder, torch.from_numpy(np.stack(pictures)), config.embed.batch_size))
    if not parts:
        raise UserError(f"No image of {corpus.uri} decodes: give a validation set of images.")
    return torch.cat(parts), labels
