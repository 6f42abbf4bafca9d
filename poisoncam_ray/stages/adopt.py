"""Adopt: take over what an earlier run has found, its verdict and its classifiers, to look for the same
triggers in other images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from poisoncam_ray import artifact, facts
from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.fingerprint import fingerprint
from poisoncam_ray.folder import MANIFEST, STARTED, Folder, Manifest
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.classify import Classify
from poisoncam_ray.store import in_parallel


class Adopt(Stage):
    """Copies an artifact of an earlier run. The earlier run, and what its artifact was made from, are part of
    the identity.

    Args:
        source: the run folder of the earlier run.
    """

    version = 1
    # Not of the earlier run: a stage without inputs would be taken for one that reads the corpus.
    inputs = (artifact.INDEX,)
    sections = ()

    def __init__(self, source: Folder) -> None:
        self.source = source

    def depends_on(self, config: Config) -> dict[str, Any]:
        return {"adopted_from": self.source.uri, "adopted": _digest(self.source, self.name)}

    def copy(self, run: Run) -> Manifest:
        """Copy the files of the artifact.

        Returns:
            The manifest of the earlier run's artifact.

        Raises:
            UserError: the earlier run changed meanwhile.
        """
        there, wanted = self.source / self.name, self.depends_on(run.config)
        manifest = Manifest.read(there)
        names = [name for name in there.names() if name not in (MANIFEST, STARTED)]
        in_parallel(lambda name: run.out.write_bytes(name, there.read_bytes(name)), names)
        if manifest is None or self.depends_on(run.config) != wanted:
            raise UserError(f"The earlier run {self.source.uri} changes: let its defence end first.")
        return manifest


class AdoptVerdict(Adopt):
    name = artifact.VERDICT
    title = "Adopt"

    def run(self, run: Run) -> Outcome:
        self.copy(run)
        # Whoever reads the verdict must know that no new trigger was looked for.
        found = replace(artifact.Verdict.read(run.out), applied_from=self.source.uri)
        found.write(run.out)
        return Outcome(facts.Decided(found.verdict, len(found.families)))


class AdoptClassifier(Adopt):
    name = artifact.CLASSIFIER
    title = "Models"
    # The artifact is that of Classify, also for a run that applies this one.
    version = Classify.version

    def check(self, config: Config, rows: int | None) -> None:
        made = Manifest.read(self.source / self.name)
        if made is not None and made.identity.get("version") != self.version:
            raise UserError(
                f"The classifiers of the earlier run {self.source.uri} were trained by another version of "
                "poisoncam_ray, which saw images in another way: run its defence again with this version."
            )

    def run(self, run: Run) -> Outcome:
        return Outcome(facts.of_manifest(facts.Classified, self.copy(run)))


def _digest(source: Folder, name: str) -> str:
    """A hash of what an artifact of the earlier run was made from, and of what its stage reported.

    Raises:
        UserError: the artifact is not committed.
    """
    manifest = Manifest.read(source / name)
    if manifest is None:
        raise UserError(
            f"The earlier run {source.uri} has no finished {name}: let its defence run to its end first."
        )
    return fingerprint({"manifest": (source / name).read_json(MANIFEST)})
