"""Judge: score every indexed image with the ensembles, one for each trigger family, and locate the trigger on
the images that are to be removed. An image that a viewer shows otherwise than a training loader reads it
(transparency, 16 bits) is as suspicious as the worse of both views.

N images   M images with a second view   A families   C channels   H = W image side
box_N4 integer [x0, y0, x1, y1)
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from poisoncam_ray import artifact, facts, metrics
from poisoncam_ray.config import Config
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
    version = 5
    inputs = (artifact.INDEX, artifact.CLASSIFIER)
    sections = ("encoder",)

    def run(self, run: Run) -> Outcome:
        folders = (run.folder / artifact.INDEX, run.folder / artifact.CLASSIFIER, run.out)
        arguments = (run.config, *folders)
        done = fill_parts(run, lambda todo: stream_images(run, todo, JudgeSlice, arguments, both_views=True))
        flagged = sum(in_parallel(partial(_count_flagged, run.out), run.out.parts()))
        said = facts.Judged(done.rows, flagged, done.reused)
        return Outcome(said, Ledger(sum(run.slice_rows()), done.rows))


def _count_flagged(out: Folder, name: str) -> int:
    return out.read_table(name, ["fate"])["fate"].to_pylist().count(artifact.REMOVE)


class JudgeSlice:
    """The actor: holds the ensembles, and writes the scores of one slice at a time."""

    def __init__(self, config: Config, index: Folder, classifier: Folder, out: Folder) -> None:
        set_up(config.resources)
        self.index, self.out, self.side = index, out, config.encoder.image_size
        self.ensembles = load_ensembles(config, classifier)

    def __call__(self, index: int, ids: list[str], x_NCHW: Pixels, second: SecondViews) -> dict[str, int]:
        p_N, family_N, box_N4 = self._judge(x_NCHW)
        if len(second.rows_M):
            p_M, family_M, box_M4 = self._judge(second.x_MCHW)
            rows_M = torch.from_numpy(second.rows_M).long()
            worse_M = p_M > p_N[rows_M]
            rows_M = rows_M[worse_M]
            p_N[rows_M], family_N[rows_M], box_N4[rows_M] = p_M[worse_M], family_M[worse_M], box_M4[worse_M]
        sizes = self.index.read_table(part_name(index), ["width", "height"])
        width_N, height_N = (torch.tensor(sizes[name].to_pylist()) for name in sizes.column_names)
        stored_N4 = unmap_box(box_N4, width_N, height_N, self.side).numpy()
        kept_N = (family_N == 0).numpy()
        columns = {
            "image_id": ids,
            "p_poison": p_N.numpy(),
            "fate": [artifact.KEEP if kept else artifact.REMOVE for kept in kept_N],
            "family": family_N.numpy().astype(np.int32),
        }
        # In pixels of the stored image; null where the image is kept.
        for i, side in enumerate(artifact.SIDES):
            columns[side] = pa.array(stored_N4[:, i], pa.int32(), mask=kept_N)
        self.out.write_table(part_name(index), pa.table(columns, schema=artifact.SCORE_SCHEMA))
        metrics.count("rows", len(ids), stage=Judge.title)
        return {"index": index}

    def _judge(self, x_NCHW: Pixels) -> tuple[Tensor, Tensor, Tensor]:
        """p_N, family_N and box_N4 in pixels of x_NCHW."""
        p_N, flagged_AN = self.ensembles.judge(torch.from_numpy(x_NCHW))
        return p_N, *self.ensembles.locate(torch.from_numpy(x_NCHW), flagged_AN)
