"""The contract between the stages and the runner.

A stage turns committed artifacts into one committed artifact. It writes; the runner decides whether it runs,
checks its ledger, and commits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, Slice
from poisoncam_ray.corpus.slices import slices_of
from poisoncam_ray.errors import LedgerError
from poisoncam_ray.facts import Facts
from poisoncam_ray.folder import Folder, Ledger, Manifest
from poisoncam_ray.progress import Progress


@dataclass(frozen=True)
class Outcome:
    """What a stage hands back to the runner.

    Attributes:
        facts: numbers for people, written into the manifest.
        ledger: where the stage's rows went; None for a stage that handles no rows.
    """

    facts: Facts
    ledger: Ledger | None = None


@dataclass(frozen=True)
class Run:
    """What a stage may see: the configuration, the corpus, the committed artifacts, and its own folder.

    Attributes:
        folder: the run folder.
        out: the folder of the stage's own artifact.
    """

    config: Config
    corpus: Corpus
    folder: Folder
    out: Folder
    progress: Progress

    def manifest(self, name: str) -> Manifest:
        """The manifest of a committed artifact.

        Raises:
            LedgerError: it is not committed.
        """
        manifest = Manifest.read(self.folder / name)
        if manifest is None:
            raise LedgerError(f"{name} is not committed")
        return manifest

    def slices(self) -> list[Slice]:
        """The slices of the corpus, as Index cut them."""
        return slices_of((self.folder / artifact.INDEX).read_table(artifact.SLICES))

    def slice_rows(self) -> list[int]:
        """Indexed rows of each slice."""
        return (self.folder / artifact.INDEX).read_table(artifact.SLICES, ["rows"])["rows"].to_pylist()


class Stage(ABC):
    """Turns the artifacts `inputs` into the artifact `name`.

    Attributes:
        name: where the artifact lies in the run folder (poisoncam_ray.artifact).
        title: what people call the stage.
        version: to be raised when the same inputs give another artifact.
        inputs: the artifacts that it reads.
        sections: the sections of the configuration that it reads.
        revised_by: what may change after the artifact was committed: a log that people write to, or an input
            that was revised itself. The stage is then run again over what it left. Any other change of an
            input is refused.
        writes: what it writes at the top of the run folder, beside the artifact.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[int]
    inputs: ClassVar[tuple[str, ...]]
    sections: ClassVar[tuple[str, ...]]
    revised_by: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()

    def check(self, config: Config, rows: int | None) -> None:  # noqa: B027
        """Refuse a mistake that can be seen before the work.

        Args:
            config: the configuration.
            rows: the number of indexed images; None at the start, when it is not known yet.

        Raises:
            UserError: the configuration cannot work.
        """

    def depends_on(self, config: Config) -> dict[str, Any]:
        """What the artifact depends on beside its inputs and its sections: part of the fingerprint.

        Raises:
            UserError: a file that the configuration names cannot be read.
        """
        return {}

    @abstractmethod
    def run(self, run: Run) -> Outcome:
        """Write the artifact into `run.out`. The runner commits it when the ledger balances."""
