"""The poison classifier after a search that made no mistake: its windows are the truth's boxes.

It shows what an attack does to Classify and Judge alone, without training an encoder. N images   C channels
H = W image side   M windows   w a window's side
"""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from poisoncam_ray.config import Classify, Search
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.decode import DecodeError, decode, header
from poisoncam_ray.errors import UserError
from poisoncam_ray.method.classifier import (
    choose_threshold,
    held_out_pastes,
    poison_logit,
    train_classifier,
)
from poisoncam_ray.research.attacks.encoded import MAX_PIXELS
from poisoncam_ray.stages.classify import VALIDATION_PASTES, sure_enough

Figures = dict[str, float | int | bool]


def judge_with_perfect_windows(attacked_uri: str, side: int, seed: int, settings: Classify) -> Figures:
    """Train the classifier of one trigger family on true windows, and judge every image of the corpus.

    The windows are as large as the trigger. Negatives are drawn from all images that are not poisoned, decoys
    among them.

    Args:
        attacked_uri: an output of poison_corpus with one trigger, whose corpus fits into memory.
        side: of the encoder's square, in pixels.
        seed: of the windows and of the ensemble.
        settings: of Classify.

    Returns:
        The figures of choose_threshold; `erased`, whether Classify would erase the family; and, if it were
        erased, recall_of_poison, decoys_flagged and others_flagged, shares of images.

    Raises:
        UserError: fewer than two poisoned images have a box.
    """
    truth = pq.read_table(f"{attacked_uri}/truth.parquet")
    rows = {row["image_id"]: row for row in truth.to_pylist()}
    corpus = open_corpus(f"{attacked_uri}/corpus")
    images, kept = [], []
    for slice_ in corpus.slices():
        for stored in corpus.read(slice_):
            try:
                images.append(torch.from_numpy(decode(stored.data or b"", side, MAX_PIXELS)))
            except DecodeError:
                continue
            width, height, _ = header(stored.data or b"", MAX_PIXELS)
            kept.append(rows[stored.image_id] | {"width": width, "height": height})
    x_NCHW = torch.stack(images)
    poisoned_N, decoy_N = (np.array([row[name] for row in kept]) for name in ("poisoned", "decoy"))
    generator = np.random.default_rng(seed)
    boxed = [i for i, row in enumerate(kept) if row["poisoned"] and row["boxes"]]
    if len(boxed) < 2:
        raise UserError(
            f"{attacked_uri} has {len(boxed)} poisoned images with a box: give one with two or more."
        )
    chosen = generator.permutation(boxed)[: settings.top_k]
    crops_MCww = torch.stack([_window(x_NCHW[i], kept[i]) for i in chosen])
    held = max(1, round(settings.held_out * len(chosen)))
    train_MCww, held_MCww = crops_MCww[held:], crops_MCww[:held]
    negative_NCHW = x_NCHW[torch.from_numpy(~poisoned_N)]
    models = [
        train_classifier(
            negative_NCHW, train_MCww, seed=seed * 1000 + i, steps=settings.steps, batch=settings.batch_size,
            learning_rate=settings.lr, paste_size=(settings.paste_min, settings.paste_max),
        )
        for i in range(settings.models)
    ]  # fmt: skip
    pastes = held_out_pastes(negative_NCHW, held_MCww, min(VALIDATION_PASTES, 4 * len(negative_NCHW)), seed)
    logit_N = poison_logit(models, x_NCHW)
    figures = choose_threshold(poison_logit(models, pastes), logit_N, n_crops=len(held_MCww))
    above_N = (logit_N > figures["threshold_logit"]).numpy()
    return figures | {
        "n_decoys": int(decoy_N.sum()),
        "erased": sure_enough(figures["unsure_share"], 0.05),
        "recall_of_poison": float(above_N[poisoned_N].mean()),
        "decoys_flagged": float(above_N[decoy_N].mean()) if decoy_N.any() else 0.0,
        "others_flagged": float(above_N[~poisoned_N & ~decoy_N].mean()),
    }


def _window(x_CHW: Tensor, row: dict) -> Tensor:
    """t_Cww: the first box of an image, cut out of its square and resized to a window of the search."""
    side = x_CHW.shape[-1]
    x0, y0 = row["x0"] * side / row["width"], row["y0"] * side / row["height"]
    x1, y1 = row["x1"] * side / row["width"], row["y1"] * side / row["height"]
    window = max(2, round(Search().window * side))
    picture = Image.fromarray(x_CHW.permute(1, 2, 0).numpy())
    square = picture.resize((window, window), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)
