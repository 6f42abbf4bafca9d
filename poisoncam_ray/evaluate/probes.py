"""What the run's encoder has learned, by its neighbours: clean accuracy and the attack's success.

f, bank, q  L2-normalised features   D feature dimensions   N images of the bank   M queries   y class labels
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from poisoncam_ray.artifact import Folder
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, open_corpus
from poisoncam_ray.decode import DecodeError
from poisoncam_ray.errors import UserError
from poisoncam_ray.evaluate.joined import Metrics, artifact, settings
from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.method.probe import accuracy, attack_success, knn_predict
from poisoncam_ray.stages.dataflow import decode_indexed
from poisoncam_ray.stages.embed import embed_images, load_encoder, read_features


def probe(
    run_uri: str,
    train_corpus_uri: str,
    val_corpus_uri: str,
    patched_val_uri: str,
    label_column: str,
    target: str,
    k: int = 20,
) -> Metrics:
    """Weighted k-NN over the run's own features (02_features): {acc_clean, acc_patched, asr}, all 0 to 1.

    The labels of the bank are those of the corpus that the run read; queries are the validation images, and
    the same with the trigger pasted in. asr: share of patched images of other classes that are taken for
    `target`. In image folders the label is the parent folder, and `label_column` is not used. Validation
    images that do not decode are left out. The bank is held in memory.

    Raises UserError for an unfinished run, a label `target` that nothing carries, or a validation corpus
    without images of other classes.
    """
    run = Folder(run_uri)
    config, encoder = settings(run), load_encoder(artifact(run, "01_encoder"))
    label_of = _labels(_open(train_corpus_uri, config), label_column)
    classes = {label: y for y, label in enumerate(sorted(set(label_of.values())))}
    if target not in classes:
        raise UserError(f"No image of {train_corpus_uri} carries the label {target!r}: give one that does.")
    features = artifact(run, "02_features")
    f_parts, y_parts = [], []
    for name in features.parts():
        ids, f_ND = read_features(features, name)
        if strange := next((image_id for image_id in ids if image_id not in label_of), None):
            raise UserError(f"{train_corpus_uri} has no image {strange}: give the corpus that the run read.")
        f_parts.append(f_ND)
        y_parts += [classes[label_of[image_id]] for image_id in ids]
    bank_ND, y_N = torch.cat(f_parts), torch.tensor(y_parts)

    def predict(uri: str) -> tuple[Tensor, Tensor]:
        q_MD, labels = _embed(encoder, _open(uri, config), config, label_column)
        # A class that only the validation set has can never be predicted: it counts as wrong.
        y_M = torch.tensor([classes.get(label, -1) for label in labels])
        if bool((y_M == classes[target]).all()):
            raise UserError(
                f"{uri} has no image of a class other than {target!r}: give a validation set with some."
            )
        return knn_predict(bank_ND, y_N, q_MD, k=k, n_classes=len(classes)), y_M

    clean_M, y_clean_M = predict(val_corpus_uri)
    patched_M, y_patched_M = predict(patched_val_uri)
    return {
        "acc_clean": accuracy(clean_M, y_clean_M),
        "acc_patched": accuracy(patched_M, y_patched_M),
        "asr": attack_success(patched_M, y_patched_M, classes[target]),
    }


def _open(uri: str, config: Config) -> Corpus:
    return open_corpus(uri, config.index.format, config.index.image_column)


def _labels(corpus: Corpus, column: str) -> dict[str, str]:
    label_of: dict[str, str] = {}
    for part in corpus.slices():
        ids = part.files or [f"{part.source}#{row}" for row in range(part.start, part.stop)]
        label_of.update(zip(ids, corpus.labels(part, column), strict=True))
    return label_of


def _embed(encoder: Encoder, corpus: Corpus, config: Config, column: str) -> tuple[Tensor, list[str]]:
    """q_MD and labels of the images that decode, slice by slice."""
    parts, labels = [], []
    for part in corpus.slices():
        pictures = []
        for row, label in zip(corpus.read(part), corpus.labels(part, column), strict=True):
            try:
                pictures.append(decode_indexed(row.data, config))
            except DecodeError:
                continue
            labels.append(label)
        if pictures:
            parts.append(embed_images(encoder, torch.from_numpy(np.stack(pictures)), config.embed.batch_size))
    if not parts:
        raise UserError(f"No image of {corpus.uri} decodes: give a validation set of images.")
    return torch.cat(parts), labels
