"""The results table: attack, defend and measure labelled photographs over seeds × triggers × shares × kinds.

Every run has its own folder. A killed table resumes, and a table that is asked for more runs does only those.
Each seed draws its classes from the allowed labels; the first is the target.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from poisoncam_ray import artifact
from poisoncam_ray.config import SEEDS, Config
from poisoncam_ray.defence import stages as defence
from poisoncam_ray.errors import UserError
from poisoncam_ray.fingerprint import differences
from poisoncam_ray.folder import Folder, Manifest, absolute
from poisoncam_ray.progress import Progress
from poisoncam_ray.research.attacks.kinds import KINDS, kind_named
from poisoncam_ray.research.evaluate import MAIN_FIGURES, OtherModels, Validation, evaluate_run
from poisoncam_ray.research.evaluate.controls import CONTROLS, control_encoder
from poisoncam_ray.research.evaluate.corpora import REFERENCE, SEED, Attacked, take_classes, trigger_name
from poisoncam_ray.research.evaluate.joined import read_truth
from poisoncam_ray.research.evaluate.never_poisoned import mean_probes, train_again
from poisoncam_ray.research.evaluate.peer import peer_config
from poisoncam_ray.research.evaluate.results import CLEANED, gaps, single_figures, write_results
from poisoncam_ray.research.evaluate.retrain import FEATURES, MODELS, encoder_file, with_encoder
from poisoncam_ray.research.evaluate.stored import SUFFIX, candidates_of, no_poison
from poisoncam_ray.runner import Runner

# Compared with the run's own windows: the paper's masks and score, the peer's Grad-CAM, random windows.
STRATEGIES = ("full_coverage:hard", "gradcam", "random")
SHARDS = 3
ROW, SETTING = "row.json", "setting.json"
NEVER_POISONED, AGAIN = "never-poisoned", "never-poisoned-again"
CANDIDATES = "candidates"
"""Folder of the stored candidates of all finished runs, a file for each."""
POISONED, RUN, WITH = "poisoned", "run", "with-"
TRUTH = "truth.parquet"


@dataclass(frozen=True)
class Setting:
    """What a table measures.

    Attributes:
        train_uri: the labelled training corpus.
        validation_uri: the labelled validation corpus.
        triggers: image files or "generated:<seed>".
        seeds: seeds of the runs.
        labels: labels from which classes are drawn.
        n_classes: number of classes of a corpus.
        per_class: photographs of each class, at most.
        width: the trigger's width as a share of the image's shorter side.
        shares: shares of the target's images that are poisoned.
        kinds: kinds of attack, as in jobs/attack.py.
        retrain: also train encoders on the cleaned corpora, and probe with 1 % and 10 % of the labels.
        peer: also search by PatchSearch on the same encoders.
        clean: also defend the never-poisoned corpora.
        trainings: trainings of a seed's never-poisoned encoder; its figures are means over them.
        encoders: also defend with these encoders, names of CONTROLS.
        options: settings of the kinds, by name: each kind must have them.
        region: where the trigger lies, shares of each side (from, to); None: the kind's own region.
    """

    train_uri: str
    validation_uri: str
    triggers: tuple[str, ...]
    seeds: tuple[int, ...]
    labels: tuple[int, ...]
    n_classes: int = 10
    per_class: int = 300
    width: float = 20 / 64
    shares: tuple[float, ...] = (1.0,)
    kinds: tuple[str, ...] = (REFERENCE,)
    retrain: bool = False
    peer: bool = False
    clean: bool = False
    trainings: int = 1
    encoders: tuple[str, ...] = ()
    options: tuple[tuple[str, float], ...] = ()
    region: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for kind in self.kinds:
            kind_named(kind).settings(kind, dict(self.options))
        of_themselves = [kind_named(kind).makes_its_trigger for kind in self.kinds]
        for share in self.shares:
            if not 0 < share <= 1:
                raise UserError(f"The share is {share}: use a number above 0 and at most 1.")
        if wrong := [seed for seed in self.seeds if not 0 <= seed < SEEDS]:
            raise UserError(f"The seed is {wrong[0]}: use one from 0 to {SEEDS - 1:,}.")
        if unknown := [name for name in self.encoders if name not in CONTROLS]:
            raise UserError(f"There is no control {unknown[0]}: use {' or '.join(CONTROLS)}.")
        if self.region and not 0 <= self.region[0] < self.region[1] <= 1:
            start, stop = self.region
            raise UserError(f"The region is {start} to {stop}: use two rising numbers from 0 to 1.")
        if self.trainings < 1:
            raise UserError(f"--trainings is {self.trainings}: at least one model is needed to compare with.")
        if not (self.triggers or self.clean or any(of_themselves)):
            raise UserError("There is nothing to run: give triggers, or ask for clean corpora (--clean).")
        if len({trigger_name(trigger) for trigger in self.triggers}) < len(self.triggers):
            raise UserError(f"The triggers {', '.join(self.triggers)} share a file name: give each its own.")
        if len(self.labels) < self.n_classes:
            raise UserError(
                f"{self.n_classes} classes cannot be drawn from {len(self.labels)} labels: ask for fewer."
            )

    @property
    def extras(self) -> set[str]:
        """What is asked for beside the defence: "retrain", "peer", and names of CONTROLS."""
        return {name for name in ("retrain", "peer") if getattr(self, name)} | set(self.encoders)


@dataclass(frozen=True)
class _Seed:
    """What all runs of one seed share.

    `folder` holds clean/ and validation/. `never_poisoned` are the runs on clean/; the first has the table's
    own seed.
    """

    config: Config
    target: str
    folder: Folder
    never_poisoned: Sequence[Folder]


def make_table(setting: Setting, config: Config, out: Folder, progress: Progress) -> list[dict[str, Any]]:
    """Run what is missing. Ray must be connected.

    results.csv and results.md in `out` hold all runs that are finished there, and CANDIDATES a file of each.

    Args:
        setting: what to measure.
        config: the configuration of the defence.
        out: the folder of the table.
        progress: where the stages are shown.

    Returns:
        One row for each run that was asked for.

    Raises:
        UserError: `out` holds a table of other corpora or settings.
    """
    if setting.peer:
        peer_config(config, "checkpoint")
    _claim(setting, config, out)
    rows = []
    for seed in setting.seeds:
        of_seed = _prepare(setting, config.model_copy(update={"seed": seed}), out, progress)
        if setting.clean:
            rows.append(_clean_row(of_seed.config.seed, of_seed.never_poisoned[0]))
        for attacked in _attacks(setting, of_seed):
            here = of_seed.folder / attacked.name
            # Rows of earlier versions lack the number of trainings: it was one.
            earlier: dict[str, Any] = {"extras": [], "trainings": 1, "row": None}
            earlier |= here.read_json(ROW) if here.exists(ROW) else {}
            extras = setting.extras | set(earlier["extras"])
            same = (sorted(extras), len(of_seed.never_poisoned)) == (earlier["extras"], earlier["trainings"])
            if earlier["row"] and same:
                rows.append(earlier["row"])
            else:
                # The figures beside the candidates are written anew.
                _forget_candidates(out, here)
                rows.append(_row(extras, of_seed, attacked, here, progress))
                write_results(out, _finished(out))
                store_candidates(out)
    write_results(out, _finished(out))
    stored, size = store_candidates(out), (out / CANDIDATES).total_bytes()
    where = (out / CANDIDATES).uri
    progress.console.print(f"candidates of {stored} runs: {size / 1e6:.1f} MB in {where}", markup=False)
    return rows


def store_candidates(out: Folder) -> int:
    """Store the candidates of every finished run that has no file yet, control encoders' runs among them.

    A run whose folder or truth was deleted keeps its file, or gets none.

    Args:
        out: the folder of the table.

    Returns:
        the number of files.
    """
    folder = out / CANDIDATES
    there = set(folder.names())
    for name, run, truth_uri in _with_candidates(out):
        if name not in there and Manifest.read(run / artifact.VERDICT):
            truth = read_truth(truth_uri) if truth_uri else no_poison(_rows_read(run))
            candidates_of(run, truth, name.removesuffix(SUFFIX)).write(folder, name)
            there.add(name)
    return len(there)


def _with_candidates(out: Folder) -> Iterator[tuple[str, Folder, str | None]]:
    """File name, run folder and truth of every finished run; no truth where nothing is poisoned."""
    for seed in out.names():
        if seed.startswith(SEED):
            never = out / seed / NEVER_POISONED
            if Manifest.read(never / artifact.CLEAN):
                yield _file_name(out, never), never, None
            for here in _finished_runs(out / seed):
                if (here / POISONED).exists(TRUTH):
                    for run in _runs(here):
                        yield _file_name(out, run), run, (here / POISONED / TRUTH).uri


def _runs(here: Folder) -> list[Folder]:
    return [here / name for name in (RUN, *(f"{WITH}{control}" for control in CONTROLS))]


def _file_name(out: Folder, run: Folder) -> str:
    """The path of the run in the table, as the name of one file."""
    path = run.uri.removeprefix(f"{out.uri.rstrip('/')}/").removesuffix(f"/{RUN}")
    return f"{path.replace('/', '_')}{SUFFIX}"


def _forget_candidates(out: Folder, here: Folder) -> None:
    for run in _runs(here):
        (out / CANDIDATES).delete(_file_name(out, run))


def _rows_read(run: Folder) -> int:
    cleaned = Manifest.read(run / artifact.CLEAN)
    assert cleaned and cleaned.ledger
    return cleaned.ledger.rows_in


def _finished(out: Folder) -> list[dict[str, Any]]:
    """All rows in the folder: clean corpora, then the attacks by kind, share and seed."""
    clean, attacked = [], []
    for name in out.names():
        if name.startswith(SEED):
            never = out / name / NEVER_POISONED
            if Manifest.read(never / artifact.CLEAN):
                clean.append(_clean_row(int(name.removeprefix(SEED)), never))
            attacked += [here.read_json(ROW)["row"] for here in _finished_runs(out / name)]
    order = list(KINDS)
    return clean + sorted(attacked, key=lambda row: (order.index(row["kind"]), -row["share"], row["seed"]))


def _finished_runs(of_seed: Folder) -> list[Folder]:
    kinds = [of_seed / kind for kind in KINDS]
    shares = [kind / share for kind in kinds for share in kind.names()]
    runs = [share / trigger for share in shares for trigger in share.names()]
    return [run for run in runs if run.exists(ROW)]


def _trained_on(of_seed: Folder, run: Folder, corpus: str) -> str | None:
    """The run folder of an encoder that another run of the seed trained on this cleaned corpus (`_content`).

    Attacks that differ only in the trigger leave the same cleaned corpus when nothing but the poison is
    removed. None when there is no such run, or `run` has trained its own before it was killed.
    """
    if Manifest.read(run / MODELS / "cleaned" / artifact.ENCODER):
        return None
    for here in _finished_runs(of_seed):
        model = here / RUN / MODELS / "cleaned"
        if here.read_json(ROW)["row"].get(CLEANED) == corpus and Manifest.read(model / artifact.ENCODER):
            return model.uri
    return None


def _content(corpus: Folder) -> str:
    """A digest of a corpus's files."""
    digest = hashlib.sha256()
    for name in corpus.parts():
        digest.update(name.encode() + corpus.read_bytes(name))
    return digest.hexdigest()[:12]


def _claim(setting: Setting, config: Config, out: Folder) -> None:
    """Write down what all rows depend on, or refuse a folder where it differs.

    Seeds, triggers, shares and kinds may be added, since the rows are kept.
    """
    sections = {name: getattr(config, name) for name in type(config).model_fields if name != "seed"}
    now = {
        "train": absolute(setting.train_uri),
        "validation": absolute(setting.validation_uri),
        "labels": list(setting.labels),
        "n_classes": setting.n_classes,
        "per_class": setting.per_class,
        "width": setting.width,
        "config": {name: section.outcome() for name, section in sections.items() if name != "resources"},
    }
    # Tables of earlier versions lack these.
    strength = {"options": dict(setting.options), "region": list(setting.region or ())}
    now |= {name: value for name, value in strength.items() if value}
    if not out.exists(SETTING):
        out.write_json(SETTING, now)
    elif found := differences(out.read_json(SETTING), now):
        raise UserError(
            f"The table in {out.uri} is another one ({'; '.join(found)}): give a new --output, or what it "
            "was made with."
        )


def _prepare(setting: Setting, config: Config, out: Folder, progress: Progress) -> _Seed:
    folder = out / f"{SEED}{config.seed}"
    classes = np.random.default_rng(config.seed).choice(setting.labels, setting.n_classes, replace=False)
    take_classes(setting.train_uri, folder / "clean", classes, setting.per_class, SHARDS)
    take_classes(setting.validation_uri, folder / "validation", classes, setting.per_class, 1)
    never = folder / NEVER_POISONED
    stages = defence() if setting.clean else defence()[:FEATURES]
    progress.console.print(f"[bold]seed {config.seed}, never poisoned[/]")
    done = Runner((folder / "clean").uri, never.uri, config, stages).run(progress)
    if not all(stage.reused for stage in done):
        # The stored candidates are of an earlier run.
        (out / CANDIDATES).delete(_file_name(out, never))
    again = train_again((folder / "clean").uri, folder / AGAIN, config, setting.trainings, progress)
    return _Seed(config, str(classes[0]), folder, [never, *again])


def _attacks(setting: Setting, of_seed: _Seed) -> Iterator[Attacked]:
    for kind in setting.kinds:
        for share in setting.shares:
            # Such a kind has one run per seed, not one for each trigger.
            for trigger in ("",) if kind_named(kind).makes_its_trigger else setting.triggers:
                yield Attacked(
                    kind,
                    share,
                    trigger,
                    of_seed.target,
                    setting.width,
                    of_seed.config.seed,
                    setting.n_classes,
                    setting.options,
                    setting.region,
                )


def _row(
    extras: set[str], of_seed: _Seed, attacked: Attacked, here: Folder, progress: Progress
) -> dict[str, Any]:
    """Make one run with `extras` (Setting.extras) in the folder `here`. Returns its row."""
    clean = of_seed.folder / "clean"
    poisoned, patched, run = (here / name for name in (POISONED, "patched", RUN))
    made = attacked.poison(clean, poisoned)
    attacked.patch(of_seed.folder / "validation", poisoned, patched)
    target = attacked.target if attacked.targeted else ""
    progress.console.print(f"[bold]seed {of_seed.config.seed}, {attacked.name}, target {target or 'none'}[/]")
    done = Runner((poisoned / "corpus").uri, run.uri, of_seed.config, defence()).run(progress)
    validation = Validation((of_seed.folder / "validation").uri, (patched / "corpus").uri, target)
    truth = (poisoned / TRUTH).uri
    cleaned, retrain = _content(run / artifact.CLEAN_ROWS), "retrain" in extras
    twin = _trained_on(of_seed.folder, run, cleaned) if retrain else None
    beside = OtherModels(clean.uri, of_seed.never_poisoned[0].uri, retrain, twin)
    metrics = evaluate_run(run.uri, truth, STRATEGIES, validation, beside, progress)
    # With --retrain, evaluate_run has probed the first one already.
    probed = [first] if (first := metrics["probes"].get("never_poisoned")) else []
    never = mean_probes(of_seed.never_poisoned[len(probed) :], clean.uri, validation, retrain, probed)
    if retrain:
        metrics["probes"]["never_poisoned"] = never
    row: dict[str, Any] = {"seed": of_seed.config.seed, "kind": attacked.kind, "share": attacked.share}
    row |= {"poison_rate": made["poison_rate"], "trigger": attacked.name.rsplit("/", 1)[-1], "target": target}
    row |= _verdict(run) | {CLEANED: cleaned}
    row |= single_figures(metrics) | gaps(metrics)
    row |= {f"{key}_never_poisoned": never["knn"][key] for key in MAIN_FIGURES}
    row |= {"trainings_never_poisoned": len(of_seed.never_poisoned)}
    if "peer" in extras:
        config = peer_config(of_seed.config, encoder_file(run))
        Runner((poisoned / "corpus").uri, (here / "peer").uri, config, defence()).run(progress)
        found = evaluate_run((here / "peer").uri, truth)
        row |= {f"peer {key}": value for key, value in single_figures(found).items()}
    for control in CONTROLS:
        if control in extras:
            encoder = control_encoder(
                control, of_seed.config, of_seed.never_poisoned[0], of_seed.folder / f"{control}-encoder"
            )
            theirs = here / f"{WITH}{control}"
            config = with_encoder(of_seed.config, encoder)
            Runner((poisoned / "corpus").uri, theirs.uri, config, defence()).run(progress)
            figures = _verdict(theirs) | single_figures(evaluate_run(theirs.uri, truth))
            row |= {f"{control} encoder: {key}": value for key, value in figures.items()}
    row |= {f"seconds {stage.title}": stage.manifest.seconds for stage in done}
    here.write_json(ROW, {"extras": sorted(extras), "trainings": len(of_seed.never_poisoned), "row": row})
    return row


def _clean_row(seed: int, run: Folder) -> dict[str, Any]:
    """The row of a corpus without poison."""
    cleaned = Manifest.read(run / artifact.CLEAN)
    assert cleaned and cleaned.ledger
    ledger = cleaned.ledger
    return {
        "seed": seed,
        "kind": "clean",
        "share": 0.0,
        "poison_rate": 0.0,
        "trigger": "",
        "target": "",
        "n_images": ledger.rows_in,
        "n_removed": ledger.removed,
        "removed_share": ledger.removed / ledger.rows_in,
    } | _verdict(run)


def _verdict(run: Folder) -> dict[str, Any]:
    search = Manifest.read(run / artifact.SEARCH)
    assert search
    found = artifact.Verdict.read(run / artifact.VERDICT)
    best, threshold = found.best_group, found.threshold
    return {
        "verdict": found.verdict,
        "n_families": len(found.families),
        "best_group_in_thresholds": best / threshold if best is not None and threshold else None,
        "search_version": search.identity["version"],
    }
