"""A labelled corpus in memory, as small pictures, from which random crops are cut a batch at a time.

The defence cuts its crops while it decodes the stored images. A study of many trainings decodes once.

N pictures of one size   B pictures of a batch   2 crops of a picture   C = 3 colours   H × W pixels
h = w side of a crop
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.decode import DecodeError
from poisoncam_ray.errors import UserError
from poisoncam_ray.method.augment import random_resized_crop
from poisoncam_ray.method.crops import CropShape
from poisoncam_ray.research import corpora
from poisoncam_ray.research.attacks.encoded import pixels


@dataclass(frozen=True)
class Pictures:
    """The pictures of a corpus in its order. Pictures that do not decode are left out.

    Attributes:
        ids: image ids.
        labels: one for each picture.
        size_N: which size a picture has: an index of `x_NCHW`.
        row_N: its row there.
        x_NCHW: uint8 pictures, one tensor for each size.
    """

    ids: list[str]
    labels: list[str]
    size_N: Tensor
    row_N: Tensor
    x_NCHW: list[Tensor]

    def __len__(self) -> int:
        return len(self.ids)

    def crops(
        self,
        i_B: Tensor,
        side: int,
        least: float,
        generator: Generator,
        views: int = 1,
        shape: CropShape = "square",
    ) -> Tensor:
        """Cut random crops, mirror half of them, and resize them to squares.

        Args:
            i_B: which pictures.
            side: of a crop in pixels.
            least: the smallest share of a picture's area.
            generator: CPU generator.
            views: crops of a picture.
            shape: as in method/crops.draw_crop. But where no try fits, the whole picture is shown (14 % of
                square crops of a 2:1 picture with `least` 0.4, 0.2 % with 0.08), and pictures longer than
                2:1 are not cut into parts.

        Returns:
            x_BVChw, uint8.
        """
        x_BVChw = torch.empty(len(i_B), views, 3, side, side, dtype=torch.uint8)
        for size, x_NCHW in enumerate(self.x_NCHW):
            b_A = torch.nonzero(self.size_N[i_B] == size).flatten()
            if not len(b_A):
                continue
            x_ACHW = x_NCHW[self.row_N[i_B[b_A]]].float()
            aspect = x_ACHW.shape[-1] / x_ACHW.shape[-2] if shape == "own" else 1.0
            for view in range(views):
                x_AChw = random_resized_crop(
                    x_ACHW, (least, 1.0), generator, side, ratio=(aspect * 3 / 4, aspect * 4 / 3)
                )
                x_BVChw[b_A, view] = x_AChw.round().clamp(0, 255).to(torch.uint8)
        return x_BVChw

    def squares(self, side: int, batch: int = 1024) -> Tensor:
        """All pictures, each squeezed into a square: x_NChw, uint8."""
        x_NChw = torch.empty(len(self), 3, side, side, dtype=torch.uint8)
        for size, x_MCHW in enumerate(self.x_NCHW):
            n_M = torch.nonzero(self.size_N == size).flatten()
            for part_A in n_M.split(batch):
                x_ACHW = x_MCHW[self.row_N[part_A]].float()
                x_AChw = torch.nn.functional.interpolate(
                    x_ACHW, (side, side), mode="bilinear", antialias=True, align_corners=False
                )
                x_NChw[part_A] = x_AChw.round().clamp(0, 255).to(torch.uint8)
        return x_NChw


def hold(uri: str, label_column: str, shorter: int) -> Pictures:
    """Read a labelled corpus into memory.

    Args:
        uri: the corpus.
        label_column: its column of labels.
        shorter: larger pictures are shrunk until their shorter side has so many pixels.

    Raises:
        UserError: no picture decodes.
    """
    ids: list[str] = []
    labels: list[str] = []
    size_of: dict[tuple[int, int], int] = {}
    size_N: list[int] = []
    row_N: list[int] = []
    held: list[list[Tensor]] = []
    for image_id, label, x_CHW in _decoded(uri, label_column, shorter):
        size = size_of.setdefault((x_CHW.shape[1], x_CHW.shape[2]), len(size_of))
        if size == len(held):
            held.append([])
        ids.append(image_id)
        labels.append(label)
        size_N.append(size)
        row_N.append(len(held[size]))
        held[size].append(x_CHW)
    if not ids:
        raise UserError(f"No image of {uri} decodes.")
    x_NCHW = [torch.stack(of_one_size) for of_one_size in held]
    return Pictures(ids, labels, torch.tensor(size_N), torch.tensor(row_N), x_NCHW)


def batches(n: int, size: int, seed: int, start: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Numbers of steps and which pictures they train on: every picture once an epoch, in a new order.

    The last pictures of an epoch that fill no batch are left out of it. Endless.

    Args:
        n: pictures.
        size: of a batch.
        seed: of the orders.
        start: the first step; the order does not depend on it.

    Yields:
        A step and its i_B.

    Raises:
        UserError: there are fewer pictures than a batch has.
    """
    a_epoch = n // size
    if a_epoch == 0:
        raise UserError(f"A batch has {size} pictures and the corpus {n}: use smaller batches.")
    step, epoch, order_N = start, -1, torch.empty(0, dtype=torch.int64)
    while True:
        if step // a_epoch != epoch:
            epoch = step // a_epoch
            order_N = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        at = step % a_epoch * size
        yield step, order_N[at : at + size]
        step += 1


def _decoded(uri: str, label_column: str, shorter: int) -> Iterator[tuple[str, str, Tensor]]:
    corpus = open_corpus(uri)
    for slice_ in corpus.slices():
        labels = corpora.labels(corpus, slice_, label_column)
        for label, row in zip(labels, corpus.read(slice_), strict=True):
            try:
                image = pixels(row.data or b"")
            except DecodeError:
                continue
            shrink = shorter / min(image.size)
            if shrink < 1:
                width, height = (max(1, round(side * shrink)) for side in image.size)
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            yield row.image_id, label, torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
