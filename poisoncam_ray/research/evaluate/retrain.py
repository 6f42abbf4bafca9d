"""What the removal is good for: the same model trained again by the same stages, on the cleaned corpus and on
the corpus as it was before the attack.

All models are probed on the same labelled images, those of the never-poisoned corpus, as a user of the model
would label some that he trusts: the threat model on its own corpus would learn the poison's labels with it,
and a cleaned corpus may have lost a class of which every image was poisoned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.defence import stages as defence
from poisoncam_ray.errors import StageFailedError, UserError
from poisoncam_ray.folder import Folder, absolute
from poisoncam_ray.progress import Progress
from poisoncam_ray.research.evaluate.joined import Metrics, committed, settings
from poisoncam_ray.research.evaluate.probes import Validation, probe
from poisoncam_ray.runner import Runner
from poisoncam_ray.stage import Stage

MODELS = "models"
TRAIN, FEATURES = 2, 3
"""Stages of the defence up to a trained encoder, and up to the features of its corpus."""


@dataclass(frozen=True)
class OtherModels:
    """What the threat model is compared with.

    clean_uri: the corpus before the attack     never_poisoned_uri: a run on it when there is one already
    (unfinished ones are resumed; of another corpus or other settings they are refused)
    retrain: with the two further trainings     cleaned_uri: not with that on the cleaned corpus: the folder
    of a model that was trained on the same one before
    """

    clean_uri: str
    never_poisoned_uri: str | None = None
    retrain: bool = False
    cleaned_uri: str | None = None


def probe_models(
    run_uri: str, beside: OtherModels, validation: Validation, progress: Progress
) -> dict[str, dict[str, Metrics]]:
    """{threat, cleaned, never_poisoned: {probe: figures}}; only the threat model without `beside.retrain`.

    What is trained and embedded goes into `<run>/models/` and is reused from there. The further models are
    pretrained even where the threat model was a checkpoint of the user's own. Ray must be connected when
    something is left to do. Raises UserError for an unfinished run.
    """
    # The checkpoint's address is part of what the folders below were made with.
    run_uri = absolute(run_uri)
    folders = {"threat": labelled_features(run_uri, "threat", Folder(run_uri), beside.clean_uri, progress)}
    if beside.retrain:
        cleaned = Folder(beside.cleaned_uri) if beside.cleaned_uri else train_on_cleaned(run_uri, progress)
        run = train_on_never_poisoned(run_uri, beside, progress)
        folders["cleaned"] = labelled_features(run_uri, "cleaned", cleaned, beside.clean_uri, progress)
        folders["never_poisoned"] = run
    return {name: probe(folder.uri, beside.clean_uri, validation) for name, folder in folders.items()}


def train_on_cleaned(run_uri: str, progress: Progress) -> Folder:
    """The run folder of a model trained on what the defence left."""
    run = Folder(run_uri)
    committed(run, artifact.CLEAN)
    cleaned = run / artifact.CLEAN_ROWS
    config = own_pretraining(settings(run))
    return _run(cleaned.uri, run / MODELS / "cleaned", config, defence()[:TRAIN], progress)


def train_on_never_poisoned(run_uri: str, beside: OtherModels, progress: Progress) -> Folder:
    """The run folder of a model trained on the never-poisoned corpus, with its features."""
    run = Folder(run_uri)
    theirs = beside.never_poisoned_uri
    out = Folder(theirs) if theirs else run / MODELS / "never_poisoned"
    config = own_pretraining(settings(run))
    return _run(beside.clean_uri, out, config, defence()[:FEATURES], progress, ours=not theirs)


def labelled_features(
    run_uri: str, name: str, model: Folder, labelled_uri: str, progress: Progress
) -> Folder:
    """A run folder that holds the features of the labelled corpus by the encoder of the run `model`."""
    run = Folder(run_uri)
    config = with_encoder(settings(run), encoder_file(model))
    return _run(labelled_uri, run / MODELS / "labelled" / name, config, defence()[:FEATURES], progress)


def encoder_file(run: Folder) -> str:
    """Where the encoder that a run has trained is, as `encoder.checkpoint` asks for it. Raises UserError when
    the run has not got that far."""
    return f"{committed(run, artifact.ENCODER).uri}/{artifact.WEIGHTS}"


def own_pretraining(config: Config) -> Config:
    """The same settings, without the user's own checkpoint."""
    return with_encoder(config, None)


def with_encoder(config: Config, checkpoint: str | None) -> Config:
    encoder = config.encoder.model_copy(update={"checkpoint": checkpoint})
    return config.model_copy(update={"encoder": encoder})


def _run(
    corpus_uri: str,
    out: Folder,
    config: Config,
    stages: Sequence[Stage],
    progress: Progress,
    ours: bool = True,
) -> Folder:
    """`ours`: the folder is one of MODELS, which may be lost; a run of the user's own may not."""
    try:
        runner = Runner(corpus_uri, out.uri, config, stages)
    except UserError as error:
        way_out = f"To begin it anew delete {out.uri}." if ours else "Or leave --never-poisoned-run out."
        raise UserError(f"{error} {way_out}") from None
    if runner.pending():
        progress.console.print(f"{corpus_uri} into {out.uri}", markup=False)
    try:
        runner.run(progress)
    except UserError:
        raise
    except Exception as error:
        raise StageFailedError(f"{progress.title or 'Start'} into {out.uri} failed") from error
    return out
