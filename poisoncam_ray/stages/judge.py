"""Judge: score every indexed image with the ensembles, one for each trigger family, and locate the trigger on
the images that are to be removed.

N images   A families   C channels   H = W image side   box_N4 integer [x0, y0, x1, y1)
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import torch

from poisoncam_ray import artifact, facts, metrics
from poisoncam_ray.config import Config
from poisoncam_ray.folder import Folder, Ledger, part_name
from poisoncam_ray.method.geometry import unmap_box
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.compute import set_up
from poisoncam_ray.stages.dataflow import fill_parts, stream_images
from poisoncam_ray.stages.ensembles import load_ensembles
from poisoncam_ray.stages.pixels import Pixels
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
        done = fill_parts(run, lambda todo: stream_images(run, todo, JudgeSlice, arguments))
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

    def __call__(self, index: int, ids: list[str], x_NCHW: Pixels) -> dict[str, int]:
        p_N, flagged_AN = self.ensembles.judge(torch.from_numpy(x_NCHW))
        family_N, box_N4 = self.ensembles.locate(torch.from_numpy(x_NCHW), flagged_AN)
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
