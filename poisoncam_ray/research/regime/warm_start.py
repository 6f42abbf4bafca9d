"""An encoder trained with labels on clean pictures: the weights that a warm start continues from.

Teams seldom train from random weights: they take a public checkpoint and continue on their own scraped
images. Without such a checkpoint at hand, this makes one, from pictures of another data set than the one that
is attacked.

N pictures   B pictures of a batch   C = 3 colours   H = W image side
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.small_maps import use_products
from poisoncam_ray.research.claim import claim
from poisoncam_ray.research.regime.pictures import batches, hold
from poisoncam_ray.stages.precision import choose, dtype_of
from poisoncam_ray.stages.pretrain import restore, save

WEIGHTS, REPORT, SETTINGS = "encoder.safetensors", "warm_start.json", "settings.json"
MOMENTUM, WEIGHT_DECAY, WARM_UP = 0.9, 5e-4, 0.1
"""Of SGD, the usual ones for small residual networks, and the share of the steps in which the rate rises."""
HELD = 2
"""Pictures are held at so many times the encoder's side: a crop of a quarter of the area is not enlarged."""


def warm_start(
    input_uri: str,
    output_uri: str,
    backbone: str,
    image_size: int,
    patch_size: int | None = None,
    validation_uri: str | None = None,
    label_column: str = "label",
    images: int = 700_000,
    batch: int = 256,
    lr: float = 0.15,
    crop_min: float = 0.35,
    seed: int = 0,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train an encoder with labels, and write its weights.

    A cut training goes on from its last epoch. A finished one is not made again.

    Args:
        input_uri: the labelled corpus.
        output_uri: the folder for `encoder.safetensors` and `warm_start.json`.
        backbone: as `encoder.backbone` of the configuration.
        image_size: as `encoder.image_size`.
        patch_size: as `encoder.patch_size`.
        validation_uri: a labelled corpus for the accuracy; None: it is not measured.
        label_column: the corpora's column of labels.
        images: shown in all.
        batch: pictures of a step.
        lr: the highest learning rate of SGD.
        crop_min: the smallest share of a picture's area that a crop shows.
        seed: of all random choices.
        tell: gets a line an epoch.

    Returns:
        The report: the settings, and `history` with images shown, loss and accuracy an epoch.

    Raises:
        UserError: the folder holds a training with other settings, the backbone cannot be built, or a
            validation label does not occur in the corpus.
    """
    settings = {
        "input": input_uri, "backbone": backbone, "image_size": image_size, "patch_size": patch_size,
        "validation": validation_uri, "label_column": label_column, "images": images, "batch": batch,
        "lr": lr, "crop_min": crop_min, "seed": seed,
    }  # fmt: skip
    out = Folder(output_uri)
    claim(out, SETTINGS, settings, "another training")
    if out.exists(REPORT):
        return out.read_json(REPORT)
    train = hold(input_uri, label_column, HELD * image_size)
    classes = {label: c for c, label in enumerate(sorted(set(train.labels)))}
    y_N = torch.tensor([classes[label] for label in train.labels])
    checked = None if validation_uri is None else _checked(validation_uri, label_column, image_size, classes)
    torch.manual_seed(seed)
    try:
        encoder = build_encoder(backbone, image_size, patch_size)
    except ValueError as error:
        raise UserError(str(error)) from None
    model = nn.Sequential(encoder, nn.Linear(encoder.dim, len(classes)))
    use_products(model)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    a_epoch = max(1, len(train) // batch)
    total = max(1, images // batch)
    done, history = restore(out, model, optimizer)
    dtype, began = dtype_of(choose("auto", gpu=False)), time.monotonic()
    losses: list[float] = []
    for step, i_B in batches(len(train), batch, seed, done):
        if step == total:
            break
        for group in optimizer.param_groups:
            group["lr"] = lr * rate_at(step, total)
        model.train()
        x_BCHW = train.crops(
            i_B, image_size, crop_min, torch.Generator().manual_seed(seed * 1_000_003 + step)
        )[:, 0]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logit_BC = model(x_BCHW.float() / 255)
        loss = cross_entropy(logit_BC.float(), y_N[i_B])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % a_epoch == 0 or step + 1 == total:
            accuracy = None if checked is None else _accuracy(model, *checked)
            history.append({
                "images": (step + 1) * batch, "loss": sum(losses) / len(losses), "accuracy": accuracy,
            })  # fmt: skip
            losses = []
            told = "" if accuracy is None else f", accuracy {accuracy:.3f}"
            tell(
                f"{(step + 1) * batch:,} images, loss {history[-1]['loss']:.3f}{told}, "
                f"{time.monotonic() - began:.0f} s"
            )
            save(out, step + 1, model, optimizer, history)
    out.write_tensors(WEIGHTS, encoder.state_dict())
    report = {"settings": settings, "classes": len(classes), "pictures": len(train), "history": history}
    out.write_json(REPORT, report)
    return report


def rate_at(step: int, total: int) -> float:
    """The share of the highest learning rate: a linear rise, then half a cosine to 0."""
    rise = max(1, round(WARM_UP * total))
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / max(1, total - rise))) / 2


def _checked(uri: str, label_column: str, side: int, classes: dict[str, int]) -> tuple[Tensor, Tensor]:
    pictures = hold(uri, label_column, HELD * side)
    if unknown := sorted(set(pictures.labels) - set(classes)):
        raise UserError(f"{uri} has labels that the corpus lacks: {', '.join(unknown[:5])}.")
    return pictures.squares(side), torch.tensor([classes[label] for label in pictures.labels])


@torch.inference_mode()
def _accuracy(model: nn.Module, x_NCHW: Tensor, y_N: Tensor) -> float:
    model.eval()
    right = [
        (model(x_BCHW.float() / 255).argmax(1) == y_B).sum()
        for x_BCHW, y_B in zip(x_NCHW.split(512), y_N.split(512), strict=True)
    ]
    return float(torch.stack(right).sum()) / len(y_N)
