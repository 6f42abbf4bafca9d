"""Judge: score every indexed image with the ensembles, one for each trigger family, and locate the trigger on
the images that are to be removed. An image is as suspicious as its worst view: what a viewer shows where that
differs from what a training loader reads (transparency, 16 bits), and the parts of a long image.

N images   M second views   A families   C channels   H = W image side
box_N4 integer [x0, y0, x1, y1)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from poisoncam_ray import artifact, facts, metrics
from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, Ledger, part_name
from poisoncam_ray.method.geometry import unmap_box
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.compute import set_up
from poisoncam_ray.stages.dataflow import fill_parts, stream_images
from poisoncam_ray.stages.ensembles import load_ensembles
from poisoncam_ray.stages.pixels import Pixels, SecondViews
from poisoncam_ray.store import in_parallel


class Judge(Stage):
    name = artifact.SCORES
    title = "Judge"
    version = 10
    inputs = (artifact.INDEX, artifact.CLASSIFIER)
    sections = ("encoder",)

    def check(self, config: Config, rows: int | None) -> None:
        # Up to three views of each image: all of it, a part of a long one, and both as a viewer shows them.
        side, most = config.encoder.image_size, config.corpus.rows_per_slice
        if most * 9 * side**2 >= 2**31:
            raise UserError(
                f"corpus.rows_per_slice={most} images of {side} px, in up to three views each, are more than "
                f"the 2 GiB that travel at once: use at most {(2**31 - 1) // (9 * side**2)}."
            )

    def depends_on(self, config: Config) -> dict[str, Any]:
        return {"resources.precision": config.resources.precision}

    def run(self, run: Run) -> Outcome:
        folders = (run.folder / artifact.INDEX, run.folder / artifact.CLASSIFIER, run.out)
        arguments = (run.config, *folders)
        done = fill_parts(run, lambda todo: stream_images(run, todo, JudgeSlice, arguments, both_views=True))
        flagged = sum(in_parallel(partial(_count_flagged, run.out), run.out.parts()))
        said = facts.Judged(done.rows, flagged, done.reused)
        return Outcome(said, Ledger(sum(run.slice_rows()), done.rows))


def _count_flagged(out: Folder, name: str) -> int:
    return out.read_table(name, ["fate"])["fate"].to_pylist().count(artifact.REMOVE)


def _different_parts(rows_M: Tensor, part_M4: Tensor, whole_N4: Tensor) -> Tensor:
    """count_N: in how many parts each image is judged, beside the whole."""
    boxes = torch.cat([rows_M[:, None], part_M4], dim=1)[(part_M4 != whole_N4[rows_M]).any(dim=1)]
    return torch.bincount(boxes.unique(dim=0)[:, 0], minlength=len(whole_N4))


class JudgeSlice:
    """The actor: holds the ensembles, and writes the scores of one slice at a time."""

    def __init__(self, config: Config, index: Folder, classifier: Folder, out: Folder) -> None:
        set_up(config.resources)
        self.index, self.out, self.side = index, out, config.encoder.image_size
        self.ensembles = load_ensembles(config, classifier)

    def __call__(self, index: int, ids: list[str], x_NCHW: Pixels, second: SecondViews) -> dict[str, int]:
        sizes = self.index.read_table(part_name(index), ["width", "height"])
        width_N, height_N = (torch.tensor(sizes[name].to_pylist()) for name in sizes.column_names)
        zero_N = torch.zeros_like(width_N)
        whole_N4 = torch.stack([zero_N, zero_N, width_N, height_N], dim=1)
        rows_M, part_M4 = (torch.tensor(array).long() for array in (second.rows_M, second.part_M4))
        # The whole, and each different part.
        looks_N = 1 + _different_parts(rows_M, part_M4, whole_N4)
        p_N, family_N, stored_N4 = self._judge(x_NCHW, looks_N, whole_N4)
        if len(rows_M):
            p_M, family_M, stored_M4 = self._judge(second.x_MCHW, looks_N[rows_M], part_M4)
            # One at a time: an image may have several further views.
            for view in (p_M > p_N[rows_M]).nonzero()[:, 0].tolist():
                if p_M[view] > p_N[row := rows_M[view]]:
                    p_N[row], family_N[row], stored_N4[row] = p_M[view], family_M[view], stored_M4[view]
        kept_N = (family_N == 0).numpy()
        columns = {
            "image_id": ids,
            "p_poison": p_N.numpy(),
            "fate": [artifact.KEEP if kept else artifact.REMOVE for kept in kept_N],
            "family": family_N.numpy().astype(np.int32),
        }
        # In pixels of the stored image; null where the image is kept.
        for i, side in enumerate(artifact.SIDES):
            columns[side] = pa.array(stored_N4[:, i].numpy(), pa.int32(), mask=kept_N)
        self.out.write_table(part_name(index), pa.table(columns, schema=artifact.SCORE_SCHEMA))
        metrics.count("rows", len(ids), stage=Judge.title)
        return {"index": index}

    def _judge(self, x_NCHW: Pixels, looks_N: Tensor, part_N4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p_N, family_N, and box_N4 in pixels of the stored images, of which x_NCHW shows part_N4."""
        several_N = looks_N if bool((looks_N > 1).any()) else None
        p_N, flagged_AN = self.ensembles.judge(torch.from_numpy(x_NCHW), several_N)
        size_N2 = part_N4[:, 2:] - part_N4[:, :2]
        aspect_N = size_N2[:, 0] / size_N2[:, 1]
        family_N, box_N4 = self.ensembles.locate(torch.from_numpy(x_NCHW), flagged_AN, aspect_N)
        inside_N4 = unmap_box(box_N4, size_N2[:, 0], size_N2[:, 1], self.side)
        return p_N, family_N, inside_N4 + part_N4[:, :2].repeat(1, 2)
