"""The runner: skips what is done, refuses other work, checks the ledger, commits last."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import Any

from pydantic import ValidationError

import poisoncam_ray
from poisoncam_ray import artifact, metrics
from poisoncam_ray.config import Config, Precision
from poisoncam_ray.corpus import Corpus, open_by
from poisoncam_ray.errors import LedgerError, UserError
from poisoncam_ray.fingerprint import differences, fingerprint
from poisoncam_ray.folder import MANIFEST, STARTED, Folder, Manifest, absolute
from poisoncam_ray.lease import Lease
from poisoncam_ray.progress import Progress
from poisoncam_ray.review import digest
from poisoncam_ray.stage import Run, Stage
from poisoncam_ray.store import real_path

DIFFERENCES_SHOWN = 20


@dataclass(frozen=True)
class Done:
    """One stage of a finished run. `reused`: an earlier attempt had committed it."""

    stage: str
    title: str
    manifest: Manifest
    reused: bool


class Runner:
    """Runs stages over one run folder. The constructor checks all that can be checked without work.

    Args:
        input_uri: the corpus.
        output_uri: the run folder: empty, or one to resume.
        config: the configuration.
        stages: the stages, in order.
        redo: the title of a stage (any case) that is done again, with all after it, whatever they were made
            with; None: nothing is done again.

    Raises:
        UserError: the folder is not ours, has another format, or was made with other settings or input.
    """

    def __init__(
        self,
        input_uri: str,
        output_uri: str,
        config: Config,
        stages: Sequence[Stage],
        redo: str | None = None,
    ) -> None:
        # Workers have working folders of their own, so a relative path would mean another place there.
        self.input_uri, output_uri = absolute(input_uri), absolute(output_uri)
        self.wanted, self.stages, self.folder = config, list(stages), Folder(output_uri)
        self.redone = _from(self.stages, redo)
        if f"{real_path(output_uri)}/".startswith(f"{real_path(self.input_uri).rstrip('/')}/"):
            raise UserError(
                f"The output {output_uri} lies inside the input {self.input_uri}: give another place."
            )
        refuse_foreign(self.folder)
        self.config = decided(config, self.folder)
        self.corpus = open_by(config.corpus, self.input_uri)
        self.sources = {source.path: [source.size, source.tag] for source in self.corpus.sources()}
        self.identities = {stage.name: self._identity(stage) for stage in self.stages}
        self._refuse_other_work()
        self._lease: Lease | None = None
        self._check(rows=None)

    @staticmethod
    def of_run(uri: str, stages: Sequence[Stage]) -> Runner:
        """The runner that made a run folder: with the input and the configuration that the folder names.

        Args:
            uri: the run folder.
            stages: the stages, in order.

        Raises:
            UserError: there is no run, it is of another version, or its input is not what it was.
        """
        folder = Folder(absolute(uri))
        config = config_of(folder)
        return Runner(folder.read_json(artifact.RUN)["input"], folder.uri, config, stages)

    def pending(self) -> list[Stage]:
        """Stages that are not committed, are to be done again, or were revised."""
        return [
            stage
            for stage in self.stages
            if stage in self.redone
            or not (self.folder / stage.name).exists(MANIFEST)
            or self._is_revised(stage)
        ]

    def _is_revised(self, stage: Stage) -> bool:
        """Whether what a committed stage reads was revised since: a log has grown, or an input was made
        again."""
        committed = Manifest.read(self.folder / stage.name) if stage.revised_by else None
        if committed is None:
            return False
        now = self._logs(stage) | {
            name: self._digest(name) for name in stage.revised_by if name in stage.inputs
        }
        return any(committed.inputs.get(name) != now.get(name) for name in stage.revised_by)

    def _digest(self, name: str) -> str | None:
        """The digest of an artifact's manifest; None where it is not committed."""
        made = self.folder / name
        return fingerprint({"manifest": made.read_json(MANIFEST)}) if made.exists(MANIFEST) else None

    def _logs(self, stage: Stage) -> dict[str, str]:
        """The digest of each log that the stage reads and that is not empty."""
        names = [name for name in stage.revised_by if name not in stage.inputs]
        found = {name: digest(self.folder / name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def run(self, progress: Progress) -> list[Done]:
        """Commit every pending stage.

        Raises:
            UserError: another driver works on the folder, or a stage finds a mistake of the user's.
            LeaseLostError: another driver has taken the folder over.
        """
        if not self.pending() and (done := self._all_done(progress)):
            return done
        told = partial(progress.console.print, markup=False)
        with Lease(self.folder, told, work=progress.as_json) as self._lease:
            # Another driver may have begun here, with other settings, since this one was checked.
            self._obey(decided(self.wanted, self.folder))
            self._refuse_other_work()
            self._forget()
            # The last first, as above: what is being written again must not look like a finished run.
            for stage in reversed([stage for stage in self.stages if self._is_revised(stage)]):
                (self.folder / stage.name).delete(MANIFEST)
            return self._run(progress)

    def _obey(self, config: Config) -> None:
        """Work with another decided configuration than was known at the start."""
        if config != self.config:
            self.config = config
            self.identities = {stage.name: self._identity(stage) for stage in self.stages}

    def _all_done(self, progress: Progress) -> list[Done] | None:
        """All stages, where each is committed; None where a review has begun to revise one meanwhile."""
        done = []
        for stage in self.stages:
            manifest = self._committed(stage)
            if manifest is None:
                return None
            done.append(Done(stage.name, stage.title, manifest, reused=True))
        for stage in self.stages:
            progress.skip(stage.title)
        return done

    def _run(self, progress: Progress) -> list[Done]:
        self.folder.write_json(artifact.RUN, self._about())
        done = []
        for stage in self.stages:
            done.append(self._run_stage(stage, progress))
            if not stage.inputs and done[-1].manifest.ledger:
                self._check(done[-1].manifest.ledger.rows_out)
        return done

    def _about(self) -> dict[str, Any]:
        versions = {name: version(name) for name in ("ray", "torch", "pyarrow")}
        return {
            "format": artifact.FORMAT,
            "input": self.input_uri,
            "stages": [[stage.name, stage.title] for stage in self.stages],
            "config": self.config.model_dump(mode="json"),
            "versions": {
                "poisoncam_ray": poisoncam_ray.__version__,
                "python": platform.python_version(),
                **versions,
            },
        }

    def _forget(self) -> None:
        """Delete what is to be done again, the last artifact first: what is left is a whole, shorter run.

        Of an artifact the commit goes first. What it was made from goes last, so that no part that is left
        can be taken for another's.
        """
        for stage in reversed(self.redone):
            out = self.folder / stage.name
            out.delete(MANIFEST)
            for name in stage.writes:
                (self.folder / name).delete()
            for name in out.names():
                if name != STARTED:
                    out.delete(name)
            out.delete()

    def _check(self, rows: int | None) -> None:
        for stage in self.pending():
            stage.check(self.config, rows)

    def _run_stage(self, stage: Stage, progress: Progress) -> Done:
        out = self.folder / stage.name
        committed = self._committed(stage)
        if committed:
            progress.skip(stage.title)
            return Done(stage.name, stage.title, committed, reused=True)
        identity, inputs = self.identities[stage.name], self._inputs(stage)
        if missing := [name for name in stage.inputs if name not in inputs]:
            raise LedgerError(f"{stage.title}: {' and '.join(missing)} is not committed")
        stamp = Manifest(identity, inputs, fingerprint({"of": identity}))
        stamp.write(out, STARTED)
        began = time.monotonic()
        with progress.stage(stage.title):
            outcome = stage.run(Run(self.config, self.corpus, self.folder, out, progress))
        if outcome.ledger and not outcome.ledger.balanced:
            raise LedgerError(f"{stage.title}: rows in ≠ out + removed + dead: {asdict(outcome.ledger)}")
        seconds = round(time.monotonic() - began, 2)
        manifest = Manifest(
            identity, inputs, stamp.fingerprint, outcome.ledger, seconds, outcome.facts.as_json()
        )
        if self._lease:
            self._lease.check()
        manifest.write(out)
        metrics.gauge("stage_seconds", manifest.seconds, stage=stage.title)
        progress.finish(stage.title, manifest)
        return Done(stage.name, stage.title, manifest, reused=False)

    def _inputs(self, stage: Stage) -> dict[str, str]:
        """The digest of each input's manifest, and of each log."""
        made = {name: self._digest(name) for name in stage.inputs}
        return {name: value for name, value in made.items() if value is not None} | self._logs(stage)

    def _committed(self, stage: Stage) -> Manifest | None:
        """The committed manifest, if there is one that needs no revision.

        Raises:
            UserError: the artifact was made, or begun, from other inputs than lie there now, and not because
                of a revision.
        """
        out, inputs = self.folder / stage.name, self._inputs(stage)
        committed = Manifest.read(out)
        earlier = committed or Manifest.read(out, STARTED)
        if earlier is None or earlier.inputs == inputs:
            return committed
        remade = [
            name
            for name in {**inputs, **earlier.inputs}
            if earlier.inputs.get(name) != inputs.get(name) and name not in stage.revised_by
        ]
        if not remade:
            return None
        raise UserError(
            f"{stage.name} was made from another {' and '.join(remade)} than lies there now: give the same "
            f"command with --redo {stage.title.lower()}, or use an empty output folder."
        )

    def _identity(self, stage: Stage) -> dict[str, Any]:
        identity = {
            "stage": stage.name,
            "version": stage.version,
            "seed": self.config.seed,
            "config": {name: getattr(self.config, name).outcome() for name in stage.sections},
        }
        if not stage.inputs:
            identity["sources"] = fingerprint(self.sources)
        return identity | stage.depends_on(self.config)

    def _refuse_other_work(self) -> None:
        """Raise UserError with every difference between what the folder was made with and the present."""
        found: list[str] = []
        for stage in self.stages:
            out = self.folder / stage.name
            earlier = Manifest.read(out) or Manifest.read(out, STARTED)
            if earlier is None or stage in self.redone:
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
        if not index.exists(artifact.SOURCES):
            return ["input: other files than when the folder was started"]
        columns = index.read_table(artifact.SOURCES).to_pydict()
        then = {path: [size, tag] for path, size, tag in zip(*columns.values(), strict=True)}
        gone = [f"input {name}: gone" for name in sorted(set(then) - set(self.sources))]
        new = [f"input {name}: new" for name in sorted(set(self.sources) - set(then))]
        changed = [
            f"input {name}: changed ({then[name][0]} bytes then, {self.sources[name][0]} now)"
            for name in sorted(set(then) & set(self.sources))
            if then[name] != self.sources[name]
        ]
        return gone + new + changed or ["input: another order of files"]


def refuse_foreign(folder: Folder) -> None:
    """Refuse a folder that is not empty and not a run folder of this format.

    Raises:
        UserError: it holds something else, or a run of another version.
    """
    names = folder.names()
    if artifact.RUN in names:
        about = folder.read_json(artifact.RUN)
        found = about.get("format") if isinstance(about, dict) else None
        if found != artifact.FORMAT:
            raise UserError(
                f"The run folder {folder.uri} was made by another version of poisoncam_ray (format "
                f"{found or 1}, this version has format {artifact.FORMAT}): use a new output folder."
            )
        return
    # A driver that was killed at once leaves only its lease.
    if names == [artifact.WORK] and set((folder / artifact.WORK).names()) <= {"lease"}:
        return
    if names:
        raise UserError(
            f"The output folder {folder.uri} holds {names[0]!r} and no {artifact.RUN}, so it is no run "
            "folder: give an empty one."
        )


def decided(config: Config, run: Folder) -> Config:
    """The configuration with a decided precision: the user's, or the one that the run began with, or the
    hardware's. So a run that goes on on another machine keeps its precision.

    Args:
        config: the configuration.
        run: the run folder, of this format or empty.
    """
    resources = config.resources
    if resources.precision != "auto":
        return config
    about = run.read_json(artifact.RUN) if run.exists(artifact.RUN) else {}
    wanted = about.get("config", {}).get("resources", {}).get("precision", "auto")
    if wanted == "auto":
        wanted = _by_hardware(resources.gpus_per_actor > 0)
    return config.model_copy(update={"resources": resources.model_copy(update={"precision": wanted})})


@cache
def _by_hardware(gpu: bool) -> Precision:
    """The precision that this machine's hardware decides for. Once a process: on CPUs it is measured."""
    # Reading a run must not wait for torch.
    from poisoncam_ray.stages.precision import choose

    return choose("auto", gpu)


def config_of(run: Folder) -> Config:
    """The configuration of a run.

    Raises:
        UserError: this is no run folder, or one of another version.
    """
    if not run.exists(artifact.RUN):
        raise UserError(f"{run.uri} is not a run folder: give the --output of a defence.")
    refuse_foreign(run)
    try:
        return Config.model_validate(run.read_json(artifact.RUN)["config"])
    except ValidationError as error:
        raise UserError(
            f"{run.uri} was made by another version of poisoncam_ray: {error.errors()[0]['msg']}."
        ) from None


def corpus_of(run: Folder) -> Corpus:
    """The corpus that the run read.

    Raises:
        UserError: it does not exist any more.
    """
    return open_by(config_of(run).corpus, run.read_json(artifact.RUN)["input"])


def _from(stages: Sequence[Stage], redo: str | None) -> list[Stage]:
    """The stage of this title, and all after it.

    Raises:
        UserError: there is no such stage.
    """
    if redo is None:
        return []
    titles = [stage.title.lower() for stage in stages]
    if redo.lower() not in titles:
        raise UserError(f"There is no stage {redo!r} to do again: there are {', '.join(titles)}.")
    return list(stages)[titles.index(redo.lower()) :]
