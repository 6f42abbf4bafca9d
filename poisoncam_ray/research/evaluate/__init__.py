"""How well a run did, measured against truth. Nothing but this package and study/ reads the truth; labels are
read here and by attacks/, never by the defence.

Images are joined on image_id, part by part: for detection memory grows with the poisoned and the dead images,
not with the corpus. Probes hold the features and labels of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder
from poisoncam_ray.progress import Progress
from poisoncam_ray.report.page import build_report
from poisoncam_ray.research.evaluate.detection import detection_metrics
from poisoncam_ray.research.evaluate.joined import settings
from poisoncam_ray.research.evaluate.probes import Validation, probe
from poisoncam_ray.research.evaluate.retrain import OtherModels, probe_models
from poisoncam_ray.research.evaluate.strategies import compare_strategies

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
    """Measure a finished run, write report/metrics.json and put it into the report; returns the metrics.

    Detection always; each of `strategies` on the same scored poisoned images. With `validation` also what the
    run's encoder has learned: acc_clean, acc_patched and asr by k-NN over the run's own features, and
    `probes`, {threat: {knn, linear_1, linear_10: figures}} as `probe` gives them. With `beside` these
    are over the corpus before the attack (`probes_labels` says so), and may be joined by the other models'.
    """
    run = Folder(run_uri)
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
        if checkpoint := settings(run).encoder.checkpoint:
            metrics["threat_model"] = f"your own checkpoint {checkpoint}; further models are pretrained here"
    (run / artifact.PAGE).write_json(artifact.METRICS, metrics)
    (run / artifact.PAGE).write_bytes(artifact.HTML, build_report(run_uri).encode())
    return metrics
