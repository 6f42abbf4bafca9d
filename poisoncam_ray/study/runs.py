"""Which runs a study looks at: given in pairs, or found below a folder of the results table."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from poisoncam_ray.artifact import Folder, Manifest, absolute
from poisoncam_ray.errors import UserError
from poisoncam_ray.evaluate.joined import artifact, settings

TRUTH = "poisoned/truth.parquet"


@dataclass(frozen=True)
class StudyRun:
    """A run folder with its truth. `name` is part of every random draw, so it must not hang on the place."""

    name: str
    run_uri: str
    truth_uri: str

    def check(self) -> None:
        """Raises UserError when the defence has not got to its features, or there is no truth."""
        run = Folder(self.run_uri)
        settings(run)
        for stage in ("00_index", "01_encoder", "02_features"):
            artifact(run, stage)
        if not Folder(posixpath.dirname(self.truth_uri)).exists(posixpath.basename(self.truth_uri)):
            raise UserError(f"There is no truth at {self.truth_uri}: give the attack's truth.parquet.")

    def identity(self) -> dict[str, str]:
        """What the measurements depend on."""
        features = Manifest.read(Folder(self.run_uri) / "02_features")
        truth = Folder(posixpath.dirname(self.truth_uri)).read_bytes(posixpath.basename(self.truth_uri))
        return {
            "features": features.fingerprint if features else "",
            "truth": hashlib.sha256(truth).hexdigest(),
        }


def given(runs: Sequence[str], truths: Sequence[str]) -> list[StudyRun]:
    """Pairs, named by their order. Raises UserError when they do not pair up."""
    if len(runs) != len(truths):
        raise UserError(f"Give one --truth for each --run: there are {len(truths)} for {len(runs)}.")
    pairs = enumerate(zip(runs, truths, strict=True))
    return [StudyRun(f"run-{i}", absolute(run), absolute(truth)) for i, (run, truth) in pairs]


def found(table_uri: str) -> list[StudyRun]:
    """Every folder below with a poisoned/truth.parquet and a run that has its features, named by its path.

    Raises UserError when there is none.
    """
    table = Folder(absolute(table_uri))
    filesystem, root = table.filesystem, table.path
    filesystem.invalidate_cache()
    paths = sorted(str(path) for path in filesystem.glob(f"{root}/**/{TRUTH}"))
    names = [posixpath.relpath(path, root).removesuffix(TRUTH).rstrip("/") for path in paths]
    runs = [StudyRun(n, (table / n / "run").uri, (table / n / TRUTH).uri) for n in names if n]
    finished = [one for one in runs if Manifest.read(Folder(one.run_uri) / "02_features") is not None]
    if not finished:
        raise UserError(f"Below {table_uri} lies no finished run beside its {TRUTH}: give another --table.")
    return finished
