"""What the removal achieves: the same encoder trained again, on the cleaned corpus and on the corpus before
the attack.

All encoders are probed on the same labelled images, those of the never-poisoned corpus, as a user of the
encoder would label images that he trusts. On the poisoned corpus a probe would learn the poison's labels, and
the cleaned corpus may lack a class of which every image was poisoned.
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
from poisoncam_ray.research.evaluate.joined import Metrics, committed
from poisoncam_ray.research.evaluate.probes import Validation, probe
from poisoncam_ray.runner import Runner, config_of
from poisoncam_ray.stage import Stage

MODELS = f"{artifact.WORK}/models"
TRAIN, FEATURES = 2, 3
"""Numbers of the first stages of the defence: up to the encoder, and up to the features."""


@dataclass(frozen=True)
class OtherModels:
    """The encoders that the threat model is compared with.

    Attributes:
        clean_uri: the corpus before the attack.
        never_poisoned_uri: a run folder on that corpus with the same settings. It is resumed if it is not
            finished, and refused if it has another corpus or other settings. None: a run is made.
        retrain: train encoders on the cleaned and on the never-poisoned corpus.
        cleaned_uri: the run folder of an encoder that was trained on the same cleaned corpus before. None:
            one is trained.
    """

    clean_uri: str
    never_poisoned_uri: str | None = None
    retrain: bool = False
    cleaned_uri: str | None = None


def probe_models(
    run_uri: str, beside: OtherModels, validation: Validation, progress: Progress
) -> dict[str, dict[str, Metrics]]:
    """Probe the threat model and, with `beside.retrain`, encoders trained without poison.

    New encoders and features are stored in `work/models/` of the run folder and reused from there. The
    further encoders are pretrained even where the threat model is a checkpoint of the user's. Ray must be
    connected when something is left to do.

    Args:
        run_uri: the run folder.
        beside: the encoders to compare with.
        validation: the validation images.
        progress: where the stages are shown.

    Returns:
        {threat, cleaned, never_poisoned: {probe: figures}}; only threat without `beside.retrain`.

    Raises:
        UserError: the run is not finished.
    """
    # The folders below record the checkpoint's address, so it must not depend on the working folder.
    run_uri = absolute(run_uri)
    folders = {"threat": labelled_features(run_uri, "threat", Folder(run_uri), beside.clean_uri, progress)}
    if beside.retrain:
        cleaned = Folder(beside.cleaned_uri) if beside.cleaned_uri else train_on_cleaned(run_uri, progress)
        run = train_on_never_poisoned(run_uri, beside, progress)
        folders["cleaned"] = labelled_features(run_uri, "cleaned", cleaned, beside.clean_uri, progress)
        folders["never_poisoned"] = run
    return {name: probe(folder.uri, beside.clean_uri, validation) for name, folder in folders.items()}


def train_on_cleaned(run_uri: str, progress: Progress) -> Folder:
    """Train an encoder on the cleaned corpus. Returns its run folder."""
    run = Folder(run_uri)
    committed(run, artifact.CLEAN)
    cleaned = run / artifact.CLEAN_ROWS
    config = own_pretraining(config_of(run))
    return _run(cleaned.uri, run / MODELS / "cleaned", config, defence()[:TRAIN], progress)


def train_on_never_poisoned(run_uri: str, beside: OtherModels, progress: Progress) -> Folder:
    """Train an encoder on the never-poisoned corpus and embed it. Returns the run folder."""
    run = Folder(run_uri)
    theirs = beside.never_poisoned_uri
    out = Folder(theirs) if theirs else run / MODELS / "never_poisoned"
    config = own_pretraining(config_of(run))
    return _run(beside.clean_uri, out, config, defence()[:FEATURES], progress, ours=not theirs)


def labelled_features(
    run_uri: str, name: str, model: Folder, labelled_uri: str, progress: Progress
) -> Folder:
    """Embed the labelled corpus by a trained encoder.

    Args:
        run_uri: the run of the threat model, which gives the settings.
        name: the name of the new run folder.
        model: the run folder of the encoder.
        labelled_uri: the corpus to embed.
        progress: where the stages are shown.

    Returns:
        The new run folder.
    """
    run = Folder(run_uri)
    config = with_encoder(config_of(run), encoder_file(model))
    return _run(labelled_uri, run / MODELS / "labelled" / name, config, defence()[:FEATURES], progress)


def encoder_file(run: Folder) -> str:
    """The file of a run's encoder, as `encoder.checkpoint` takes it.

    Raises:
        UserError: the run has no encoder yet.
    """
    return f"{committed(run, artifact.ENCODER).uri}/{artifact.WEIGHTS}"


def own_pretraining(config: Config) -> Config:
    """The same settings without a checkpoint of the user's."""
    return with_encoder(config, None)


def with_encoder(config: Config, checkpoint: str | None) -> Config:
    """The same settings with this checkpoint; None: with pretraining."""
    encoder = config.encoder.model_copy(update={"checkpoint": checkpoint})
    # Where nobody trains, weights to begin with are refused.
    init = None if checkpoint else config.pretrain.init
    pretrain = config.pretrain.model_copy(update={"init": init})
    return config.model_copy(update={"encoder": encoder, "pretrain": pretrain})


def _run(
    corpus_uri: str,
    out: Folder,
    config: Config,
    stages: Sequence[Stage],
    progress: Progress,
    ours: bool = True,
) -> Folder:
    """Run the stages. `ours`: the folder is one of MODELS and may be deleted; a run of the user's may not."""
    try:
        runner = Runner(corpus_uri, out.uri, config, stages)
    except UserError as error:
        way_out = f"To start again, delete {out.uri}." if ours else "Or leave --never-poisoned-run out."
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
