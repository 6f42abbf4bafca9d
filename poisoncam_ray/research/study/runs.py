"""The runs that a study measures: given one by one, or found below the folder of a results table."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from poisoncam_ray import artifact
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, Manifest, absolute
from poisoncam_ray.research.evaluate.joined import committed, read_truth
from poisoncam_ray.runner import corpus_of

TRUTH = "poisoned/truth.parquet"


@dataclass(frozen=True)
class StudyRun:
    """A run folder with its truth.

    `name` is part of the seed of every random draw, so it must not depend on where the folder lies.
    """

    name: str
    run_uri: str
    truth_uri: str

    def check(self) -> None:
        """Check that the run can be measured.

        Raises:
            UserError: the run has no features yet, its corpus does not exist any more, or the truth is
                missing or has no box.
        """
        run = Folder(self.run_uri)
        corpus_of(run)
        for stage in (artifact.INDEX, artifact.ENCODER, artifact.FEATURES):
            committed(run, stage)
        poisoned = read_truth(self.truth_uri).poisoned
        if not pc.any(pc.greater(poisoned["x1"], poisoned["x0"])).as_py():
            raise UserError(
                f"The attack on the run {self.run_uri} put no patch on any image: leave that run out (of a "
                "--table, by --only)."
            )

    def identity(self) -> dict[str, str]:
        """What the measurements depend on."""
        features = Manifest.read(Folder(self.run_uri) / artifact.FEATURES)
        truth = Folder(posixpath.dirname(self.truth_uri)).read_bytes(posixpath.basename(self.truth_uri))
        return {
            "features": features.fingerprint if features else "",
            "truth": hashlib.sha256(truth).hexdigest(),
        }


def given(runs: Sequence[str], truths: Sequence[str]) -> list[StudyRun]:
    """The runs with their truths, named by their order.

    Args:
        runs: run folders.
        truths: the truth.parquet of each.

    Raises:
        UserError: there is another number of truths than of runs.
    """
    if len(runs) != len(truths):
        raise UserError(f"Give one --truth for each --run: there are {len(truths)} for {len(runs)}.")
    pairs = enumerate(zip(runs, truths, strict=True))
    return [StudyRun(f"run-{i}", absolute(run), absolute(truth)) for i, (run, truth) in pairs]


def found(table_uri: str, only: str = "") -> list[StudyRun]:
    """Every folder below with a poisoned/truth.parquet and a run that has features, named by its path.

    Args:
        table_uri: the folder of a results table, or one above it.
        only: only paths that contain this text.

    Raises:
        UserError: there is none.
    """
    table = Folder(absolute(table_uri))
    filesystem, root = table.filesystem, table.path
    filesystem.invalidate_cache()
    paths = sorted(str(path) for path in filesystem.find(root) if str(path).endswith(f"/{TRUTH}"))
    names = [posixpath.relpath(path, root).removesuffix(TRUTH).rstrip("/") for path in paths]
    runs = [StudyRun(n, (table / n / "run").uri, (table / n / TRUTH).uri) for n in names if n and only in n]
    finished = [one for one in runs if Manifest.read(Folder(one.run_uri) / artifact.FEATURES) is not None]
    if not finished:
        named = f" under a path with {only!r}" if only else ""
        raise UserError(
            f"Below {table_uri} lies no finished run beside its {TRUTH}{named}: give another --table"
            f"{' or --only' if only else ''}."
        )
    return finished
