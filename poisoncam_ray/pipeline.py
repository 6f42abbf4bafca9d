"""The order of the stages, and the runner's four duties: skip, refuse, check the ledger, commit last."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from poisoncam_ray.artifact import MANIFEST, STARTED, Folder, Ledger, Manifest, absolute
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, Slice, open_corpus
from poisoncam_ray.errors import LedgerError, UserError
from poisoncam_ray.fingerprint import differences, fingerprint
from poisoncam_ray.progress import Progress

RUN = "run.json"
DIFFERENCES_SHOWN = 20


@dataclass(frozen=True)
class Outcome:
    """What a stage hands back to the runner: where its rows went, and numbers for people."""

    ledger: Ledger | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What a stage may see: the configuration, the corpus, the committed artifacts, and its own folder."""

    config: Config
    corpus: Corpus
    folder: Folder
    out: Folder
    progress: Progress

    def artifact(self, name: str) -> Folder:
        return self.folder / name

    def manifest(self, name: str) -> Manifest:
        manifest = Manifest.read(self.folder / name)
        if manifest is None:
            raise LedgerError(f"{name} is not committed")
        return manifest

    def slices(self) -> list[Slice]:
        return [Slice(**item) for item in self.artifact("00_index").read_json("slices.json")]

    def slice_rows(self) -> list[int]:
        """Indexed rows of each slice."""
        return self.artifact("00_index").read_json("rows.json")


class Stage(ABC):
    """Turns committed artifacts, `inputs`, into one committed artifact, `name`; `sections` are the parts of
    the configuration that it reads. Raise `version` when the same inputs give another artifact."""

    name: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[int]
    inputs: ClassVar[tuple[str, ...]]
    sections: ClassVar[tuple[str, ...]]

    def check(self, config: Config, rows: int | None) -> None:  # noqa: B027
        """Raise UserError for a mistake that can be told before the work: called at the start (`rows` None),
        and again once the first stage has counted the corpus's images."""

    @abstractmethod
    def run(self, run: Run) -> Outcome:
        """Write the artifact into `run.out`; the runner commits it when the ledger holds."""


@dataclass(frozen=True)
class Done:
    """One line of the summary."""

    title: str
    manifest: Manifest
    reused: bool


def defence() -> list[Stage]:
    """DEFEND, in order."""
    from poisoncam_ray.stages.classify import Classify
    from poisoncam_ray.stages.clean import Clean
    from poisoncam_ray.stages.cluster import Cluster
    from poisoncam_ray.stages.embed import Embed
    from poisoncam_ray.stages.index import Index
    from poisoncam_ray.stages.judge import Judge
    from poisoncam_ray.stages.pretrain import Pretrain
    from poisoncam_ray.stages.report import Report
    from poisoncam_ray.stages.search import Search

    return [Index(), Pretrain(), Embed(), Cluster(), Search(), Classify(), Judge(), Clean(), Report()]


class Runner:
    """Runs stages over one run folder. Constructing it checks everything that can be checked without work.

    Raises UserError when the folder is not ours, or holds artifacts of another configuration or input.
    """

    def __init__(self, input_uri: str, output_uri: str, config: Config, stages: Sequence[Stage]) -> None:
        # Cluster workers have working folders of their own.
        input_uri, output_uri = absolute(input_uri), absolute(output_uri)
        self.config, self.stages, self.folder = config, list(stages), Folder(output_uri)
        if f"{self.folder.path}/".startswith(f"{Folder(input_uri).path.rstrip('/')}/"):
            raise UserError(f"The output {output_uri} lies inside the input {input_uri}: give another place.")
        names = self.folder.names()
        if names and RUN not in names:
            raise UserError(
                f"The output folder {output_uri} holds {names[0]!r}, which no run of ours wrote: "
                "give an empty one."
            )
        self.corpus = open_corpus(
            input_uri,
            format=config.index.format,
            image_column=config.index.image_column,
            rows_per_slice=config.index.rows_per_slice,
        )
        self.sources = {source.path: [source.size, source.tag] for source in self.corpus.sources()}
        self.identities = {stage.name: self._identity(stage) for stage in self.stages}
        self._refuse_other_work()
        self.input_uri = input_uri
        self._check(rows=None)

    def pending(self) -> list[Stage]:
        """Stages that are not committed yet."""
        return [stage for stage in self.stages if not (self.folder / stage.name).exists(MANIFEST)]

    def run(self, progress: Progress) -> list[Done]:
        self.folder.write_json(RUN, {"input": self.input_uri, "config": self.config.model_dump()})
        done = []
        for stage in self.stages:
            done.append(self._run_stage(stage, progress))
            if not stage.inputs and done[-1].manifest.ledger:
                self._check(done[-1].manifest.ledger.rows_out)
        return done

    def _check(self, rows: int | None) -> None:
        for stage in self.pending():
            stage.check(self.config, rows)

    def _run_stage(self, stage: Stage, progress: Progress) -> Done:
        out = self.folder / stage.name
        inputs = {name: self._digest(name) for name in stage.inputs}
        stamp = Manifest(
            self.identities[stage.name], inputs, fingerprint({"of": self.identities[stage.name]})
        )
        committed = Manifest.read(out)
        earlier = committed or Manifest.read(out, STARTED)
        if earlier and earlier.inputs != inputs:
            remade = [name for name in inputs if earlier.inputs.get(name) != inputs[name]]
            raise UserError(
                f"{stage.name} was made from another {' and '.join(remade)} than lies there now: "
                f"delete {out.uri} or use an empty output folder."
            )
        if committed:
            progress.skip(stage.title)
            return Done(stage.title, committed, reused=True)
        stamp.write(out, STARTED)
        began = time.monotonic()
        with progress.stage(stage.title):
            outcome = stage.run(Run(self.config, self.corpus, self.folder, out, progress))
        if outcome.ledger and not outcome.ledger.balanced:
            raise LedgerError(f"{stage.title}: rows in ≠ out + removed + dead: {asdict(outcome.ledger)}")
        manifest = Manifest(
            stamp.identity,
            stamp.inputs,
            stamp.fingerprint,
            outcome.ledger,
            round(time.monotonic() - began, 2),
            outcome.facts,
        )
        manifest.write(out)
        progress.finish(stage.title, manifest)
        return Done(stage.title, manifest, reused=False)

    def _identity(self, stage: Stage) -> dict[str, Any]:
        sections = {}
        for name in stage.sections:
            section = getattr(self.config, name)
            sections[name] = section.model_dump(exclude=set(section.how))
        identity = {
            "stage": stage.name,
            "version": stage.version,
            "seed": self.config.seed,
            "config": sections,
        }
        if not stage.inputs:
            identity["sources"] = fingerprint(self.sources)
        return identity

    def _digest(self, name: str) -> str:
        return fingerprint({"manifest": (self.folder / name).read_json(MANIFEST)})

    def _refuse_other_work(self) -> None:
        """Name every difference between what the folder was made with and what is asked for now."""
        found: list[str] = []
        for stage in self.stages:
            out = self.folder / stage.name
            earlier = Manifest.read(out) or Manifest.read(out, STARTED)
            if earlier is None:
                continue
            then, now = dict(earlier.identity), dict(self.identities[stage.name])
            if then.pop("sources", None) != now.pop("sources", None):
                found += self._changed_sources(out)
            found += differences({"seed": then.pop("seed")}, {"seed": now.pop("seed")})
            found += differences(then.pop("config"), now.pop("config"))
            found += differences(then, now, stage.name)
        if found:
            raise UserError(
                f"{self.folder.uri} was made with other settings or input; use another output folder, or go "
                "back: " + "; ".join(list(dict.fromkeys(found))[:DIFFERENCES_SHOWN]) + "."
            )

    def _changed_sources(self, index: Folder) -> list[str]:
        if not index.exists("sources.json"):
            return ["input: other files than when the folder was started"]
        then = index.read_json("sources.json")
        gone = [f"input {name}: gone" for name in sorted(set(then) - set(self.sources))]
        new = [f"input {name}: new" for name in sorted(set(self.sources) - set(then))]
        changed = [
            f"input {name}: changed ({then[name][0]} bytes then, {self.sources[name][0]} now)"
            for name in sorted(set(then) & set(self.sources))
            if list(then[name]) != list(self.sources[name])
        ]
        return gone + new + changed or ["input: another order of files"]
