"""Judge: the ensembles' verdict on every indexed image, one ensemble a trigger family."""

from __future__ import annotations

from functools import partial

import pyarrow as pa
import torch

from poisoncam_ray import metrics
from poisoncam_ray.artifact import Folder, Ledger, part_name
from poisoncam_ray.config import Config
from poisoncam_ray.pipeline import Outcome, Run, Stage
from poisoncam_ray.stages.classify import load_ensembles
from poisoncam_ray.stages.compute import set_threads
from poisoncam_ray.stages.dataflow import Pixels, missing, stream_images
from poisoncam_ray.store import in_parallel


class Judge(Stage):
    name = "06_verdicts"
    title = "Judge"
    version = 2
    inputs = ("00_index", "05_classifier")
    sections = ("encoder",)

    def run(self, run: Run) -> Outcome:
        slices = run.slices()
        todo = missing(slices, run.out)
        for _ in stream_images(run, todo, JudgeSlice, (run.config, run.artifact("05_classifier"), run.out)):
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

    def __init__(self, config: Config, classifier: Folder, out: Folder) -> None:
        set_threads(config.resources)
        self.ensembles, self.out = load_ensembles(config, classifier), out

    def __call__(self, index: int, ids: list[str], x_NCHW: Pixels) -> dict[str, int]:
        p_N, family_N = self.ensembles.judge(torch.from_numpy(x_NCHW))
        verdicts = ["remove" if family else "keep" for family in family_N.tolist()]
        columns = {
            "image_id": pa.array(ids, pa.string()),
            "p_poison": pa.array(p_N.numpy(), pa.float32()),
            "verdict": pa.array(verdicts, pa.string()),
            "family": pa.array(family_N.numpy(), pa.int32()),
        }
        self.out.write_table(part_name(index), pa.table(columns))
        metrics.count("rows", len(ids), stage=Judge.title)
        return {"index": index}
