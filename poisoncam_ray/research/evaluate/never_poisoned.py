"""The models that a table's rows are compared with: the corpus before the attack, trained on several times.

What 20 epochs leave to chance moves clean accuracy by as much as the marks allow, and all rows of a seed are
compared with the same model: its luck would be read as the cost of the defence.
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
"""Between the seeds of two trainings: tables count their seeds in small steps, and no two trainings shall be
the same."""


def further_seed(seed: int, index: int) -> int:
    """Of training `index` (1, 2, …; 0 is the run with the table's own seed)."""
    return (seed + index * APART) % SEEDS


def train_again(
    corpus_uri: str, folder: Folder, config: Config, trainings: int, progress: Progress
) -> list[Folder]:
    """Pretrain `trainings` − 1 further encoders on the corpus, each with a seed of its own, all else equal;
    returns run folders with the corpus's features by them. What is in `folder` is kept, and finished and
    counted where fewer are asked for now.
    """
    there = [int(name) for name in folder.names() if name.isdigit()]
    runs = []
    for index in range(1, max([trainings - 1, *there]) + 1):
        here = folder / str(index)
        own = config.model_copy(update={"seed": further_seed(config.seed, index)})
        Runner(corpus_uri, (here / "trained").uri, own, defence()[:TRAIN]).run(progress)
        # By the table's own seed: it draws the labels of the linear probes, which all models share.
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
    """What `probe` says of the encoders of `runs`, and has said of others (`probed`): {probe: figures}, each
    figure its mean; None where a model has none."""
    every = [*probed, *(probe(run.uri, labelled_uri, validation, linear=linear) for run in runs)]
    return {
        name: {key: _mean([figures[name][key] for figures in every]) for key in every[0][name]}
        for name in every[0]
    }


def _mean(values: Sequence[float | int | None]) -> float | int | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if len(known) == len(values) else None
