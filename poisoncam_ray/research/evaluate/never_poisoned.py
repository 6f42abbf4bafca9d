"""The encoders that a table's rows are compared with: several trainings on the corpus before the attack.

All rows of a seed are compared with the same encoder, and its accuracy varies from training to training by as
much as the differences of interest. So the figures are means over several trainings.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from poisoncam_ray.config import SEEDS, Config
from poisoncam_ray.defence import stages as defence
from poisoncam_ray.folder import Folder
from poisoncam_ray.progress import Progress
from poisoncam_ray.research.evaluate.joined import Metrics
from poisoncam_ray.research.evaluate.probes import Validation, probe
from poisoncam_ray.research.evaluate.retrain import FEATURES, TRAIN, encoder_file, with_encoder
from poisoncam_ray.runner import Runner

APART = 100_000
"""Distance between the seeds of two trainings. A table's own seeds are close together, so no two trainings
have the same seed."""


def further_seed(seed: int, index: int) -> int:
    """The seed of training `index` = 1, 2, …; 0 is the run with the table's own seed."""
    return (seed + index * APART) % SEEDS


def train_again(
    corpus_uri: str, folder: Folder, config: Config, trainings: int, progress: Progress
) -> list[Folder]:
    """Pretrain further encoders on the corpus; they differ in the seed only.

    Trainings that an earlier call began in `folder` are finished and returned, too, even when fewer are asked
    for now.

    Args:
        corpus_uri: the never-poisoned corpus.
        folder: where the run folders lie.
        config: the configuration of the table's own run.
        trainings: number of encoders with the table's own: one less is trained here.
        progress: where the stages are shown.

    Returns:
        Run folders with the features of the corpus by each further encoder.
    """
    there = [int(name) for name in folder.names() if name.isdigit()]
    runs = []
    for index in range(1, max([trainings - 1, *there]) + 1):
        here = folder / str(index)
        own = config.model_copy(update={"seed": further_seed(config.seed, index)})
        Runner(corpus_uri, (here / "trained").uri, own, defence()[:TRAIN]).run(progress)
        # The table's own seed draws the labels of the linear probes, which are the same for all encoders.
        theirs = with_encoder(config, encoder_file(here / "trained"))
        Runner(corpus_uri, (here / "run").uri, theirs, defence()[:FEATURES]).run(progress)
        runs.append(here / "run")
    return runs


def mean_probes(
    runs: Sequence[Folder],
    labelled_uri: str,
    validation: Validation,
    linear: bool,
    probed: Sequence[dict[str, Metrics]] = (),
) -> dict[str, Metrics]:
    """The means of the figures of `probe` over several encoders.

    Args:
        runs: run folders of encoders that are probed now.
        labelled_uri: as in `probe`.
        validation: as in `probe`.
        linear: as in `probe`.
        probed: results of `probe` for further encoders.

    Returns:
        {probe: figures}; None for a figure that an encoder does not have.
    """
    every = [*probed, *(probe(run.uri, labelled_uri, validation, linear=linear) for run in runs)]
    return {
        name: {key: _mean([figures[name][key] for figures in every]) for key in every[0][name]}
        for name in every[0]
    }


def _mean(values: Sequence[float | int | None]) -> float | int | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if len(known) == len(values) else None
