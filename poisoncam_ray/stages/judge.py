"""Judge: the ensembles' verdict on every indexed image, one ensemble a trigger family, and where the trigger
is on those to be removed."""

from __future__ import annotations

from functools import partial

import pyarrow as pa
import torch

from poisoncam_ray import metrics
from poisoncam_ray.artifact import SIDES, Folder, Ledger, part_name
from poisoncam_ray.config import Config
from poisoncam_ray.method.boxes import unmap_box
from poisoncam_ray.pipeline import Outcome, Run, Stage
from poisoncam_ray.stages.compute import set_up
from poisoncam_ray.stages.dataflow import Pixels, missing, stream_images
from poisoncam_ray.stages.ensembles import load_ensembles
from poisoncam_ray.store import in_parallel


class Judge(Stage):
    name = "06_verdicts"
    title = "Judge"
    version = 4
    inputs = ("00_index", "05_classifier")
    sections = ("encoder",)

    def run(self, run: Run) -> Outcome:
        slices = run.slices()
        todo = missing(slices, run.out)
        folders = (run.artifact("00_index"), run.artifact("05_classifier"), run.out)
        for _ in stream_images(run, todo, JudgeSlice, (run.config, *folders)):
            pass
        counts = in_parallel(partial(_count_verdicts, run.out), run.out.parts())
        rows, removed = sum(n for n, _ in counts), sum(n for _, n in counts)
        facts = {
            "summary": f"{removed:,} of {rows:,} images flagged",
            "flagged": removed,
            "slices_reused": len(slices) - len(todo),
        }
        return Outcome(Ledger(sum(run.slice_rows()), rows), facts)


def _count_verdicts(out: Folder, name: str) -> tuple[int, int]:
    """All verdicts of a part, and those that remove."""
    verdicts = out.read_table(name, ["verdict"])["verdict"].to_pylist()
    return len(verdicts), verdicts.count("remove")


class JudgeSlice:
    """Holds the ensembles in an actor and writes one part a slice."""

    def __init__(self, config: Config, index: Folder, classifier: Folder, out: Folder) -> None:
        set_up(config.resources)
        self.index, self.out, self.side = index, out, config.encoder.image_size
        self.ensembles = load_ensembles(config, classifier)

    def __call__(self, index: int, ids: list[str], x_NCHW: Pixels) -> dict[str, int]:
        p_N, flagged_AN = self.ensembles.judge(torch.from_numpy(x_NCHW))
        family_N, box_N4 = self.ensembles.locate(torch.from_numpy(x_NCHW), flagged_AN)
        stored = self.index.read_table(part_name(index), ["width", "height"])
        width_N, height_N = (torch.tensor(stored[name].to_pylist()) for name in stored.column_names)
        stored_N4 = unmap_box(box_N4, width_N, height_N, self.side).numpy()
        kept_N = (family_N == 0).numpy()
        verdicts = ["keep" if kept else "remove" for kept in kept_N]
        columns = {
            "image_id": pa.array(ids, pa.string()),
            "p_poison": pa.array(p_N.numpy(), pa.float32()),
            "verdict": pa.array(verdicts, pa.string()),
            "family": pa.array(family_N.numpy(), pa.int32()),
        }
        # In pixels of the stored image; of a kept one nothing.
        for i, side in enumerate(SIDES):
            columns[side] = pa.array(stored_N4[:, i], pa.int32(), mask=kept_N)
        self.out.write_table(part_name(index), pa.table(columns))
        metrics.count("rows", len(ids), stage=Judge.title)
        return {"index": index}
