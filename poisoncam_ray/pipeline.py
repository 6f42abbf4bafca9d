"""The order of the stages, and the runner's four duties: skip, refuse, check the ledger, commit last."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from poisoncam_ray import metrics, retry
from poisoncam_ray.artifact import MANIFEST, STARTED, Folder, Ledger, Manifest, absolute
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, Slice, open_corpus
from poisoncam_ray.corpus.slices import SLICES, SOURCES, slices_of
from poisoncam_ray.errors import LedgerError, UserError
from poisoncam_ray.fingerprint import differences, fingerprint
from poisoncam_ray.lease import LEASE, Lease
from poisoncam_ray.progress import Progress
from poisoncam_ray.store import real_path

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
        return slices_of(self.artifact("00_index").read_table(SLICES))

    def slice_rows(self) -> list[int]:
        """Indexed rows of each slice."""
        return self.artifact("00_index").read_table(SLICES, ["rows"])["rows"].to_pylist()


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

    def reads(self, config: Config) -> dict[str, str]:
        """What the artifact depends on beside its inputs and the configuration's words: a fingerprint of each
        file that these name. UserError when there is none."""
        return {}

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
        if f"{real_path(output_uri)}/".startswith(f"{real_path(input_uri).rstrip('/')}/"):
            raise UserError(f"The output {output_uri} lies inside the input {input_uri}: give another place.")
        names = [name for name in self.folder.names() if name != LEASE]
        if names and RUN not in names:
            raise UserError(
                f"The output folder {output_uri} holds {names[0]!r}, which no run of ours wrote: "
                "give an empty one."
            )
        self.corpus = open_corpus(
            input_uri,
            format=config.corpus.format,
            image_column=config.corpus.image_column,
            rows_per_slice=config.corpus.rows_per_slice,
        )
        self.sources = {source.path: [source.size, source.tag] for source in self.corpus.sources()}
        self.identities = {stage.name: self._identity(stage) for stage in self.stages}
        self._refuse_other_work()
        self.input_uri = input_uri
        self._lease: Lease | None = None
        self._check(rows=None)

    def pending(self) -> list[Stage]:
        """Stages that are not committed yet, or will not stay so."""
        retrying = retry.under_way(self.folder)
        return [
            stage
            for stage in self.stages
            if not (self.folder / stage.name).exists(MANIFEST) or (retrying and stage.name not in retry.KEPT)
        ]

    def run(self, progress: Progress, retry_dead: bool = False) -> list[Done]:
        """Commit what is pending; with `retry_dead`, first see what of the dead rows lives again.

        Raises UserError when another driver works on the folder, LeaseLostError when one has taken it over.
        """
        if not retry_dead and not self.pending():
            return self._run(progress, retry_dead=False)
        with Lease(self.folder, lambda text: progress.console.print(text, markup=False)) as self._lease:
            # Another driver may have begun here, with other settings, since this one was checked.
            self._refuse_other_work()
            return self._run(progress, retry_dead)

    def _run(self, progress: Progress, retry_dead: bool) -> list[Done]:
        self.folder.write_json(RUN, {"input": self.input_uri, "config": self.config.model_dump()})
        self._retry(retry_dead, progress)
        done = []
        for stage in self.stages:
            done.append(self._run_stage(stage, progress))
            if not stage.inputs and done[-1].manifest.ledger:
                self._check(done[-1].manifest.ledger.rows_out)
        retry.end(self.folder)
        return done

    def _retry(self, retry_dead: bool, progress: Progress) -> None:
        index = self._of(self.stages[0], progress)
        if retry_dead:
            if not self.pending():
                for stage in self.stages:
                    self._earlier(stage)
            retry.begin(index, self.stages)
        retry.take_back(index)

    def _check(self, rows: int | None) -> None:
        for stage in self.pending():
            stage.check(self.config, rows)

    def _run_stage(self, stage: Stage, progress: Progress) -> Done:
        out = self.folder / stage.name
        committed = self._earlier(stage)
        if committed:
            progress.skip(stage.title)
            return Done(stage.title, committed, reused=True)
        identity = self.identities[stage.name]
        stamp = Manifest(identity, self._inputs(stage), fingerprint({"of": identity}))
        stamp.write(out, STARTED)
        began = time.monotonic()
        with progress.stage(stage.title):
            outcome = stage.run(self._of(stage, progress))
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
        if self._lease:
            self._lease.check()
        manifest.write(out)
        metrics.gauge("stage_seconds", manifest.seconds, stage=stage.title)
        progress.finish(stage.title, manifest)
        return Done(stage.title, manifest, reused=False)

    def _of(self, stage: Stage, progress: Progress) -> Run:
        return Run(self.config, self.corpus, self.folder, self.folder / stage.name, progress)

    def _inputs(self, stage: Stage) -> dict[str, str]:
        return {name: self._digest(name) for name in stage.inputs}

    def _earlier(self, stage: Stage) -> Manifest | None:
        """What is committed. UserError when it, or what was begun, was made from other inputs than lie there
        now; in a retry they are others, and models are kept."""
        out, inputs = self.folder / stage.name, self._inputs(stage)
        committed = Manifest.read(out)
        earlier = committed or Manifest.read(out, STARTED)
        if earlier is None or earlier.inputs == inputs:
            return committed
        if retry.under_way(self.folder) and (not committed or stage.name in retry.KEPT):
            return committed and retry.keep(out, committed, inputs)
        remade = [name for name in inputs if earlier.inputs.get(name) != inputs[name]]
        raise UserError(
            f"{stage.name} was made from another {' and '.join(remade)} than lies there now: "
            f"delete {out.uri} or use an empty output folder."
        )

    def _identity(self, stage: Stage) -> dict[str, Any]:
        sections = {name: getattr(self.config, name).outcome() for name in stage.sections}
        identity = {
            "stage": stage.name,
            "version": stage.version,
            "seed": self.config.seed,
            "config": sections,
        }
        if not stage.inputs:
            identity["sources"] = fingerprint(self.sources)
        return identity | stage.reads(self.config)

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
        if not index.exists(SOURCES):
            return ["input: other files than when the folder was started"]
        columns = index.read_table(SOURCES).to_pydict()
        then = {path: [size, tag] for path, size, tag in zip(*columns.values(), strict=True)}
        gone = [f"input {name}: gone" for name in sorted(set(then) - set(self.sources))]
        new = [f"input {name}: new" for name in sorted(set(self.sources) - set(then))]
        changed = [
            f"input {name}: changed ({then[name][0]} bytes then, {self.sources[name][0]} now)"
            for name in sorted(set(then) & set(self.sources))
            if then[name] != self.sources[name]
        ]
        return gone + new + changed or ["input: another order of files"]
