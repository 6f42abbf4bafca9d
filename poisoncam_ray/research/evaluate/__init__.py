"""How well a run did, measured against the truth.

Only this package and study/ read the truth. Labels are read here and in attacks/, never by the defence.

Images are joined on image_id, part by part. The memory for detection grows with the poisoned and the dead
images, and by 20 bytes for each image of the corpus (its score and shape). Probes hold the features and the
labels of their images.

joined.py            a run's artifacts joined with the truth
scored.py            windows of poisoned images against the true boxes
removed.py           removed images against poisoned ones
shapes.py            recall and false positives of squares, wide and long images
detection.py         the detection figures of metrics.json
stored.py            a run's candidates in one file, with the truth beside them
strategies.py        other ways of finding windows, on the same images
probes.py            what an encoder has learned
retrain.py           further encoders, trained on the cleaned and on the never-poisoned corpus
never_poisoned.py    several trainings on the never-poisoned corpus
peer.py              PatchSearch on the same encoder
controls.py          encoders that cannot hold the backdoor
corpora.py           the corpora of a results table
table.py             the results table; results.py writes it
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder
from poisoncam_ray.progress import Progress
from poisoncam_ray.report.page import build_report
from poisoncam_ray.research.evaluate.detection import detection_metrics
from poisoncam_ray.research.evaluate.probes import Validation, probe
from poisoncam_ray.research.evaluate.retrain import OtherModels, probe_models
from poisoncam_ray.research.evaluate.strategies import compare_strategies
from poisoncam_ray.runner import config_of

__all__ = [
    "OtherModels",
    "Validation",
    "compare_strategies",
    "detection_metrics",
    "evaluate_run",
    "probe",
    "probe_models",
]

MAIN_FIGURES = ("acc_clean", "acc_patched", "asr")


def evaluate_run(
    run_uri: str,
    truth_uri: str,
    strategies: Iterable[str] = (),
    validation: Validation | None = None,
    beside: OtherModels | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a finished run, write report/metrics.json, and build the report again with the figures.

    Args:
        run_uri: the run folder.
        truth_uri: truth.parquet of the attack.
        strategies: ways of finding windows to compare on the scored poisoned images (`compare_strategies`).
        validation: measures what the run's encoder has learned: acc_clean, acc_patched and asr by k-NN over
            the run's own features, and `probes`, {threat: {knn, linear_1, linear_10: figures}}.
        beside: the corpus before the attack. The probes then learn from its labels (`probes_labels` says so),
            and may include the encoders trained on it and on the cleaned corpus.
        progress: where training further encoders is shown.

    Returns:
        What metrics.json holds: the detection figures (`detection_metrics`) and what was asked for.

    Raises:
        UserError: the run is not finished, or the truth or a corpus does not belong to it.
    """
    run = Folder(run_uri)
    config = config_of(run)
    metrics: dict[str, Any] = detection_metrics(run_uri, truth_uri)
    corpus_uri = run.read_json(artifact.RUN)["input"]
    if strategies:
        metrics["strategies"] = compare_strategies(run_uri, corpus_uri, truth_uri, strategies)
    if validation:
        own = probe(run_uri, corpus_uri, validation, linear=beside is None)
        metrics |= {key: own["knn"][key] for key in MAIN_FIGURES}
        metrics |= {"probes": {"threat": own}, "probes_labels": "those of the run's own corpus"}
        if beside:
            metrics["probes"] = probe_models(run_uri, beside, validation, progress or Progress())
            metrics["probes_labels"] = "those of the never-poisoned corpus"
        if checkpoint := config.encoder.checkpoint:
            metrics["threat_model"] = f"your own checkpoint {checkpoint}; further models are pretrained here"
    (run / artifact.PAGE).write_json(artifact.METRICS, metrics)
    (run / artifact.PAGE).write_bytes(artifact.HTML, build_report(run_uri).encode())
    return metrics
